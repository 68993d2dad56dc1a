"""What holds for the package and the repository as a whole."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import bayesian_active_learning

REPOSITORY = pathlib.Path(__file__).parent.parent
PROBE = str(pathlib.Path(__file__).with_name("import_probe.py"))
# The one timing that is asserted: it is promised. Processor time, as others share the machine.
IMPORT_BUDGET_SECONDS = 1.5
BALD_MODULE = "bayesian_active_learning.acquisition_functions"
MACHINE_PATH = re.compile(r"/(?:home|root|Users|mnt|work)/[A-Za-z.]")


def probe(*arguments: str) -> dict:
    """What the probe reports, from a fresh process that sees the package these tests see."""
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tracked_files() -> list[pathlib.Path]:
    try:
        command = ["git", "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    names = filter(None, listed.stdout.split("\0"))
    return [path for path in (REPOSITORY / name for name in names) if path.is_file()]


@pytest.mark.parametrize("module", ["bayesian_active_learning", BALD_MODULE])
def test_import_budget(module: str):
    seconds = min(probe(PROBE, module)["processor_seconds"] for _ in range(3))
    assert seconds < IMPORT_BUDGET_SECONDS


def test_import_touches_no_device_and_nothing_heavy():
    names = [f"bayesian_active_learning.{name}" for name in bayesian_active_learning._SUBMODULES]
    report = probe(PROBE, "bayesian_active_learning", *names)
    assert not report["devices_touched"]
    assert report["heavy"] == []


def test_probe_notices_a_device_and_a_heavy_module(tmp_path: pathlib.Path):
    (tmp_path / "matplotlib.py").write_text("import jax; jax.devices()\n")
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); "
        f"runpy.run_path({PROBE!r}, run_name='__main__')"
    )
    report = probe("-c", code, "bayesian_active_learning", "matplotlib")
    assert report["devices_touched"]
    assert report["heavy"] == ["matplotlib"]


@pytest.mark.parametrize("name", bayesian_active_learning._SUBMODULES)
def test_submodules_are_attributes(name: str):
    module = importlib.import_module(f"bayesian_active_learning.{name}")
    assert getattr(bayesian_active_learning, name) is module
    assert name in dir(bayesian_active_learning)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bayesian_active_learning.nothing


def test_version_is_the_packages_own():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "bayesian_active_learning.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", bayesian_active_learning.__version__)


@pytest.mark.parametrize(
    "pins", sorted((REPOSITORY / "requirements").glob("py*.txt")), ids=lambda path: path.stem
)
def test_pins_are_plain_versions(pins: pathlib.Path):
    lines = [line for line in pins.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["tests"]
    asked = {re.match(r"[\w.-]+", line)[0] for line in asked} - {project["name"]}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in asked} <= names


def test_tracked_files_name_no_path_of_one_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {hit}" for hit in MACHINE_PATH.findall(text)]
    assert found == []


def test_source_files_stay_short():
    long = [p for p in tracked_files() if p.suffix == ".py" and p.read_text().count("\n") > 600]
    assert long == []


def test_readme_states_the_protocol_that_is_run():
    from bayesian_active_learning import experiment

    config, text = experiment.Config(), " ".join((REPOSITORY / "README.md").read_text().split())
    fit = config.fit
    for statement in (
        f"({config.num_initial_per_class} per class), {config.num_validation} validation labels",
        f"{config.acquisition_size} labels a round from a random {config.pool_size:,} of the pool",
        f"K = {config.num_samples}, a fresh network each round",
        f"batches of {fit.batch_size} for {fit.epochs:g} epochs and at least {fit.min_steps} steps",
        f"falls from {config.learning_rate:g} to 0 over a {fit.schedule}",
        f"weight decay {fit.weight_decay:g}/N on the first dense layer, no early stopping",
        f"averaged over {config.num_test_samples} posterior samples",
    ):
        assert statement in text
    assert (fit.decay_coverage, fit.monitor) == ("first_dense", "none")
    assert not config.warm_start
