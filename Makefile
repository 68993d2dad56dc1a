# `make help` says what there is. Needs make, git and Python 3.11 or later, nothing else.

VENV        ?= .venv
MNIST_ARGS  ?=
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help mnist test test-all lint format pytest pytest-all pins clean

# The first Python that starts, is recent enough and can make environments. A command being there
# is not enough: a pyenv shim may exist and not run.
ifndef PYTHON
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3; do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
        >/dev/null 2>&1 && echo $$python && break; done)
endif
PY   := $(shell $(PYTHON) -c 'import sys, venv, ensurepip; \
    sys.version_info >= (3, 11) and print("%d%d" % sys.version_info[:2])' 2>/dev/null)
PINS := $(firstword $(wildcard requirements/py$(PY).txt) requirements/py313.txt)

# Stamps lie inside the environment, and name the Python version: another one means a new environment.
CREATED    := $(VENV)/.created-py$(PY)
RUN_READY  := $(VENV)/.run-ready-py$(PY)
TEST_READY := $(VENV)/.test-ready-py$(PY)
PIP        := $(VENV)/bin/python -m pip -qq --disable-pip-version-check

# Tests compile the same programs again and again, in many processes.
TEST_ENV := JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/jax" \
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5

help:
	@echo 'make mnist     active learning on MNIST: BALD and random side by side'
	@echo '               (MNIST_ARGS="--help" lists its options; BAL_DATA_DIR is the data folder)'
	@echo 'make test      lint and tests'
	@echo 'make test-all  lint and tests, slow ones included'
	@echo 'make lint      ruff and mypy'
	@echo 'make format    let ruff rewrite the sources'
	@echo 'make pins      resolve requirements/ anew for PYTHON'
	@echo 'make clean     remove the environment and all caches'
	@echo 'PYTHON=$(PYTHON) VENV=$(VENV)'

mnist: $(RUN_READY)
	$(VENV)/bin/python -m experiments.mnist_bald $(MNIST_ARGS)

test: lint pytest

test-all: lint pytest-all

lint: $(TEST_READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

format: $(TEST_READY)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

pytest: $(TEST_READY)
	$(TEST_ENV) $(VENV)/bin/python -m pytest -m 'not slow' $(PYTEST_ARGS)

pytest-all: $(TEST_READY)
	$(TEST_ENV) $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

$(CREATED): pyproject.toml $(PINS)
ifeq ($(PY),)
	@echo 'No Python 3.11 or later with venv was found to start (tried $(or $(PYTHON),python3.11 python3.12 python3.13 python3)).' >&2
	@echo 'Install one, or name it: make PYTHON=/path/to/python3.12 ...' >&2
	@false
endif
	@if [ -e '$(VENV)' ] && [ ! -e '$(VENV)/pyvenv.cfg' ]; then \
	    echo 'VENV=$(VENV) is not a virtual environment: it will not be overwritten.' >&2; false; fi
	@echo 'Making $(VENV) with $(PYTHON), versions from $(PINS)'
	@$(PYTHON) -m venv --clear '$(VENV)'
	@touch $@

$(RUN_READY): $(CREATED)
	@echo 'Installing what the experiments need (about a minute)'
	@$(PIP) install -c $(PINS) -e '.[experiments]'
	@touch $@

$(TEST_READY): $(CREATED)
	@echo 'Installing what the tests need (one or two minutes)'
	@$(PIP) install -c $(PINS) -e '.[experiments,tfds,frameworks,tests]'
	@touch $@

# In an environment of its own, so that nothing of an old one is written down.
pins:
	rm -rf .cache/pins
	$(PYTHON) -m venv .cache/pins
	.cache/pins/bin/python -m pip -qq install '.[experiments,tfds,frameworks,tests]' setuptools wheel
	{ sed -n '/^#/p' requirements/py$(PY).txt; \
	  .cache/pins/bin/python -m pip freeze --all | grep -vE '^(pip|bayesian_active_learning)( |==)' | LC_ALL=C sort -f; \
	} > .cache/pins/new.txt
	mv .cache/pins/new.txt requirements/py$(PY).txt

clean:
	rm -rf .venv .venv-3* .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find bayesian_active_learning experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
