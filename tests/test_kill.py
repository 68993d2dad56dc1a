"""A run is killed with SIGKILL at random moments, run again, and must not show it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bayesian_active_learning import data_utils, history

pytestmark = pytest.mark.kill

REPOSITORY = pathlib.Path(__file__).parent.parent
FUNCTIONS, SEEDS = ("bald", "random"), (0, 1)
BUDGET = 50
CHILD = f"""
import signal
import sys
import time
import numpy as np
from bayesian_active_learning import data_utils, experiment, training

# A shell that starts the tests in the background has them ignore it, and what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
arrays = np.load(sys.argv[2])
data = data_utils.from_arrays(arrays["x"], arrays["y"], arrays["test_x"], arrays["test_y"])
fit = training.FitConfig(batch_size=8, epochs=0, min_steps=20, check_every=20, weight_decay=0.1)
config = experiment.Config(
    model="mlp", num_initial_per_class=1, num_validation=10, acquisition_size=5, num_samples=5,
    num_test_samples=5, pool_size=60, learning_rate=1e-2, fit=fit,
)
experiment.run(
    config, data, {FUNCTIONS}, {SEEDS}, labels={BUDGET}, directory=sys.argv[1],
    on_round=lambda progress: time.sleep(0.02),  # or it is over before anyone can kill it
)
"""
EVENTS = 1 + 9 * 2 + 8 * 2  # in each cell


class Runs:
    """Starts the child; all share one compilation cache, so that they are quick."""

    def __init__(self, folder: pathlib.Path):
        self.data = folder / "data.npz"
        digits = data_utils.load_digits()
        train, test = digits.train_rows[:200], digits.test_rows[:40]
        np.savez(
            self.data,
            x=digits.images[train],
            y=digits.labels[train],
            test_x=digits.images[test],
            test_y=digits.labels[test],
        )
        self.environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def start(self, directory: pathlib.Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory), str(self.data)],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, directory: pathlib.Path) -> None:
        with self.start(directory) as process:
            _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def uninterrupted(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The logs of a run in one go."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    runs.finish(directory)
    whole = logs(directory)
    assert sorted(whole) == sorted(f"{f}/{s}/log.jsonl" for f in FUNCTIONS for s in SEEDS)
    assert {content.count(b"\n") for content in whole.values()} == {EVENTS}
    return whole


def logs(directory: pathlib.Path) -> dict[str, bytes]:
    paths = directory.glob("*/*/log.jsonl")
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def num_events(directory: pathlib.Path) -> int:
    return sum(content.count(b"\n") for content in logs(directory).values())


def stop(process: subprocess.Popen, directory: pathlib.Path, events: int, delay: float, how: int):
    """Sends signal `how` once `events` are logged and `delay` seconds have passed."""
    deadline = time.monotonic() + 120
    while num_events(directory) < events and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(how)
    return process.wait(60)


def check_readable(directory: pathlib.Path, uninterrupted: dict[str, bytes]) -> None:
    """All whole lines are those of the run that was never stopped."""
    for name, content in logs(directory).items():
        whole = content[: content.rfind(b"\n") + 1]
        assert uninterrupted[name].startswith(whole)
        assert len(history.read_events(directory / name)) == whole.count(b"\n")


def test_the_same_command_in_two_processes_gives_the_same_bytes(
    runs: Runs, uninterrupted: dict[str, bytes], tmp_path: pathlib.Path
):
    runs.finish(tmp_path / "run")
    assert logs(tmp_path / "run") == uninterrupted


def test_killed_again_and_again_it_ends_in_the_same_bytes(
    runs: Runs, uninterrupted: dict[str, bytes], tmp_path: pathlib.Path
):
    directory = tmp_path / "run"
    generator = np.random.default_rng(2017)
    total = EVENTS * len(uninterrupted)
    # While the interpreter starts, then anywhere: the delay ends in any phase of a round.
    moments = [(0, 0.1 + generator.random())]
    parts = np.linspace(1, total - 30, 6)
    for low, high in zip(parts, parts[1:]):
        moments.append((int(generator.uniform(low, high)), 0.05 * generator.random()))
    kills = 0
    for events, delay in moments:
        with runs.start(directory) as process:
            code = stop(process, directory, events, delay, signal.SIGKILL)
            errors = process.stderr.read() if process.stderr else ""
        assert code in (0, -signal.SIGKILL), errors
        kills += code == -signal.SIGKILL
        check_readable(directory, uninterrupted)
    assert kills >= 5
    runs.finish(directory)
    assert logs(directory) == uninterrupted
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    assert names <= {"config.json", "log.jsonl", "clock.jsonl"}  # nothing temporary is left


def test_ctrl_c_leaves_a_log_to_go_on_from(
    runs: Runs, uninterrupted: dict[str, bytes], tmp_path: pathlib.Path
):
    directory = tmp_path / "run"
    with runs.start(directory) as process:
        code = stop(process, directory, EVENTS + 5, 0.0, signal.SIGINT)
        errors = process.stderr.read() if process.stderr else ""
    assert code in (130, -signal.SIGINT) and "KeyboardInterrupt" in errors
    check_readable(directory, uninterrupted)
    # A line is cut off again where the interrupt comes before it is synced.
    assert EVENTS + 4 <= num_events(directory) < EVENTS * len(uninterrupted)
    assert {path.name for path in directory.rglob(".*")} == set()  # locks are given back
