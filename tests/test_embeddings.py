"""`python -m experiments.embeddings`, as it is typed."""

import pathlib

import numpy as np
import pytest

from bayesian_active_learning import history
from bayesian_active_learning.frozen_features import FrozenConfig
from experiments import embeddings

SMALL = ["--seeds", "2", "--labels", "26", "--num-samples", "8", "--pool-size", "60"]


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> pathlib.Path:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    centres = 3 * generator.normal(size=(10, 8))
    path = tmp_path_factory.mktemp("features") / "ten.npz"
    points = centres[labels] + generator.normal(size=(300, 8))
    np.savez(path, features=points.astype(np.float32), labels=labels)
    return path


def test_options_say_what_the_config_says():
    defaults = {name: value for name, (value, _) in embeddings.SETTINGS.items()}
    assert defaults == FrozenConfig()._asdict()
    options = embeddings.parser().parse_args(["--data", "digits"])
    assert {name: getattr(options, name) for name in defaults} == defaults


def test_from_a_file_in_two_processes(features: pathlib.Path, tmp_path: pathlib.Path, capsys):
    run = tmp_path / "run"
    command = ["--data", f"npz:{features}", "--output-dir", str(run), *SMALL]
    command += ["--acquisition", "margin", "random"]
    assert embeddings.main([*command, "--processes", "2"]) == 0
    printed = capsys.readouterr()
    assert "npz:ten.npz" in printed.out and "97 % first" in printed.out
    for name in ("summary.txt", "learning_curves.png", "history.json", "config.json"):
        assert str(run / name) in printed.out and (run / name).stat().st_size
    logs = {path: path.read_bytes() for path in run.glob("*/*/log.jsonl")}
    assert len(logs) == 4
    # One process gives the same bytes, and what is there is not made again.
    again = tmp_path / "again"
    command[command.index(str(run))] = str(again)
    assert embeddings.main([*command, "--processes", "1", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert {again / path.relative_to(run): text for path, text in logs.items()} == {
        path: path.read_bytes() for path in again.glob("*/*/log.jsonl")
    }
    found = history.read_history(run)
    assert found.cells["margin", 1].labels.tolist() == list(range(20, 27))


def test_images_are_flattened(tmp_path: pathlib.Path, capsys):
    command = ["--data", "digits", "--output-dir", str(tmp_path / "run"), *SMALL]
    command += ["--acquisition", "random", "--processes", "1", "--scaling", "standardise"]
    command += ["--initial", "random"]
    assert embeddings.main(command) == 0
    assert "of 64 features" in capsys.readouterr().out
    assert embeddings.main([*command, "--bias", "0.2"]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert embeddings.main([*command, "--fresh", "--quiet"]) == 0


def test_list_acquisitions(capsys):
    """Only what runs here, the upper bound included."""
    assert embeddings.main(["--list-acquisitions"]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] != " "}
    assert {"bald", "greedy_oracle", "bait"} <= names
    assert names.isdisjoint({"qbc", "vaal", "vae_coreset"})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "--data is needed: npz:PATH"),
        (["--data", "npz:nowhere.npz"], "nowhere.npz"),
        (["--data", "digits", "--acquisition", "bold"], "unknown acquisition function 'bold'"),
        (["--data", "digits", "--acquisition", "vaal"], "vaal needs unlabelled_log_odds"),
        (["--data", "digits", "--processes", "0"], "--processes must be at least 1, got 0"),
        (["--data", "digits", "--seeds", "0"], "at least one seed is needed"),
    ],
)
def test_what_is_wrong_is_said(more: list[str], message: str, tmp_path: pathlib.Path, capsys):
    command = [*SMALL, "--processes", "1", "--output-dir", str(tmp_path / "run"), *more]
    assert embeddings.main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("log.jsonl"))
