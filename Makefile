# `make help` says what there is. Needs make, git and Python 3.11 or later, nothing else.

VENV        ?= .venv
MNIST_ARGS  ?=
SCALE       ?= default
NOTEBOOKS   ?= $(wildcard notebooks/*.py)
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help mnist test test-all lint format pytest pytest-all docs notebooks notebooks-small peers bench browser \
        pins clean

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
DOCS_READY := $(VENV)/.docs-ready-py$(PY)
NOTEBOOKS_READY := $(VENV)/.notebooks-ready-py$(PY)
PIP        := $(VENV)/bin/python -m pip -qq --disable-pip-version-check

# Tests compile the same programs again and again, in many processes.
TEST_ENV := JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.cache/jax" \
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.5
# Most of the tests' time is compilation. Without LLVM's optimisation a file of them takes a fifth to a
# quarter less; with whole modules, and fusions emitted in the older way that jaxlib 0.10 still has, all
# of them 7 minutes in the place of 11. `make test-all` compiles as users do, as does
# `make pytest TEST_XLA_FLAGS=`.
OLDER_FUSIONS   = $(if $(shell grep -s '^jaxlib==0[.]10[.]' $(PINS)),--xla_cpu_use_fusion_emitters=false)
TEST_XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 $(OLDER_FUSIONS)

help:
	@echo 'make mnist     active learning on MNIST: BALD and random side by side'
	@echo '               (MNIST_ARGS="--help" lists its options; BAL_DATA_DIR is the data folder)'
	@echo 'make test      lint and tests'
	@echo 'make test-all  lint and tests, slow ones included'
	@echo 'make lint      ruff and mypy'
	@echo 'make format    let ruff rewrite the sources'
	@echo 'make docs      this documentation as pages, in docs/_build/html; a warning is an error'
	@echo 'make notebooks        execute notebooks/ from clean kernels, outputs kept (minutes each;'
	@echo '                      SCALE=small or full, NOTEBOOKS=notebooks/NAME.py for one)'
	@echo 'make notebooks-small  the same at small scale, into .cache: are they whole?'
	@echo 'make peers     compare with baal, batchbald_redux and scikit-activeml (needs python3.11)'
	@echo 'make bench     speed and memory beside the same and PyTorch, small sizes (BENCH_ARGS= for all sizes)'
	@echo 'make browser   look at the HTML report with Chromium (a download of 300 MB)'
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
	$(TEST_ENV) XLA_FLAGS='$(strip $(XLA_FLAGS) $(TEST_XLA_FLAGS))' $(VENV)/bin/python -m pytest -m 'not slow' $(PYTEST_ARGS)

pytest-all: $(TEST_READY)
	$(TEST_ENV) $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

docs: $(DOCS_READY)
	$(VENV)/bin/python -m sphinx -W --keep-going -E -q -b html -d docs/_build/doctrees docs docs/_build/html
	@echo 'Written: docs/_build/html/index.html'

# The .py is the source; outputs come from a run. Times of cells are left out: they never repeat.
EXECUTE := -m nbconvert --to notebook --execute --inplace --log-level WARN \
           --ExecutePreprocessor.record_timing=False --ExecutePreprocessor.timeout=-1

notebooks: $(NOTEBOOKS_READY)
	$(VENV)/bin/python -m jupytext --quiet --update --to ipynb $(NOTEBOOKS)
	BAL_NOTEBOOK_SCALE='$(SCALE)' $(TEST_ENV) $(VENV)/bin/python $(EXECUTE) $(NOTEBOOKS:.py=.ipynb)

SMALL := .cache/notebooks-small

notebooks-small: $(NOTEBOOKS_READY)
	rm -rf $(SMALL)
	mkdir -p $(SMALL)/notebooks
	ln -s '$(CURDIR)/experiments' $(SMALL)/experiments
	cp $(NOTEBOOKS) $(SMALL)/notebooks/
	$(VENV)/bin/python -m jupytext --quiet --to ipynb $(SMALL)/notebooks/*.py
	BAL_NOTEBOOK_SCALE=small $(TEST_ENV) $(VENV)/bin/python $(EXECUTE) $(SMALL)/notebooks/*.ipynb
	@echo 'Executed without an error: $(NOTEBOOKS)'

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

$(DOCS_READY): $(CREATED)
	@echo 'Installing what the documentation needs (about a minute)'
	@$(PIP) install -c $(PINS) -e '.[docs]'
	@touch $@

$(NOTEBOOKS_READY): $(CREATED)
	@echo 'Installing what the notebooks need (about a minute)'
	@$(PIP) install -c $(PINS) -e '.[notebooks]'
	@touch $@

# Python 3.11, for which a CPU build of the pinned torch is to be had. What the peers name and do
# not import (Jupyter, torchvision, CUDA) stays out: hence --no-deps, and a list of all they need.
# Without that torch the peers that need it are skipped, and named.
PEERS_VENV   := .venv-peers
PEERS_PYTHON ?= python3.11
PEERS_PINS   := requirements/peers-py311.txt
PEERS_READY  := $(PEERS_VENV)/.ready
PEERS_PIP    := $(PEERS_VENV)/bin/python -m pip -qq --disable-pip-version-check

peers: $(PEERS_READY)
	$(TEST_ENV) $(PEERS_VENV)/bin/python -m pytest -m peers tests/test_peers*.py

# Where a peer could not be installed, the tables name it as missing.
BENCH_ARGS ?= --quick

bench: $(PEERS_READY)
	$(PEERS_VENV)/bin/python -m benchmarks $(BENCH_ARGS)

$(PEERS_READY): pyproject.toml $(PEERS_PINS) requirements/py311.txt
	@$(PEERS_PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	    echo 'The peers are pinned for Python 3.11: make peers PEERS_PYTHON=/path/to/python3.11' >&2; false; }
	@echo 'Making $(PEERS_VENV) with $(PEERS_PYTHON), versions from $(PEERS_PINS) (1.6 GB, a few minutes)'
	@$(PEERS_PYTHON) -m venv --clear $(PEERS_VENV)
	@$(PEERS_PIP) install -c requirements/py311.txt -e . pytest scikit-learn fsspec pillow psutil \
	    setuptools tqdm typing_extensions
	@$(PEERS_PIP) install --no-deps -r $(PEERS_PINS) || { \
	    echo 'Missing: torch (no CPU build of the pinned version was found), so baal and batchbald_redux.' >&2; \
	    echo 'Only scikit-activeml is compared. PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL can name a place.' >&2; \
	    grep -E '^(scikit-activeml|makefun)==' $(PEERS_PINS) > $(PEERS_VENV)/rest.txt; \
	    $(PEERS_PIP) install --no-deps -r $(PEERS_VENV)/rest.txt; }
	@touch $@

BROWSER_READY := $(VENV)/.browser-ready-py$(PY)

browser: $(BROWSER_READY)
	$(TEST_ENV) $(VENV)/bin/python -m pytest tests/test_report.py

$(BROWSER_READY): $(TEST_READY) requirements/browser.txt
	@$(PIP) install -r requirements/browser.txt
	@touch $@

# In an environment of its own, so that nothing of an old one is written down.
pins:
	rm -rf .cache/pins
	$(PYTHON) -m venv .cache/pins
	.cache/pins/bin/python -m pip -qq install '.[experiments,tfds,frameworks,tests,docs,notebooks]' setuptools wheel
	{ sed -n '/^#/p' requirements/py$(PY).txt; \
	  .cache/pins/bin/python -m pip freeze --all | grep -vE '^(pip|bayesian_active_learning)( |==)' | LC_ALL=C sort -f; \
	} > .cache/pins/new.txt
	mv .cache/pins/new.txt requirements/py$(PY).txt

clean:
	rm -rf .venv .venv-3* $(PEERS_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist docs/_build notebooks/runs *.egg-info
	find bayesian_active_learning benchmarks experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +
