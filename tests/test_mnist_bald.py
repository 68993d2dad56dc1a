"""The command, from options to files, on the digits that are always there."""

import io
import json
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest

from bayesian_active_learning import data_utils, experiment, history
from bayesian_active_learning.acquisition_functions import STRATEGIES, make_strategy
from bayesian_active_learning.history import labels_to_threshold, load_history, read_events
from bayesian_active_learning.posteriors import POSTERIORS, make_posterior
from experiments import mnist_bald, options
from experiments.options import PRESETS, parse_seeds, parser

SMALL = (
    "--dataset digits --model mlp --min-steps 5 --epochs 0 --num-samples 5 --num-test-samples 3 "
    "--pool-size 100"
).split()


def command(directory, *more):
    return mnist_bald.main([*SMALL, "--output-dir", str(directory), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run of two functions and two seeds."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    assert command(directory, "--seeds", "2", "--labels", "50") == 0
    return directory


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["3"], (0, 1, 2)),
        (["4", "1"], (4, 1)),
        (["5-7"], (5, 6, 7)),
        (["0-1", "9"], (0, 1, 9)),
    ],
)
def test_seeds(tokens, expected):
    assert parse_seeds(tokens) == expected


@pytest.mark.parametrize("tokens", [["x"], ["3-1"], ["-1"], ["1.5"]])
def test_seeds_refused(tokens):
    with pytest.raises(ValueError, match="cannot read --seeds"):
        parse_seeds(tokens)


def test_help_names_every_option_and_preset(capsys):
    with pytest.raises(SystemExit) as end:
        parser().parse_args(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PRESETS)
    for option in ("--acquisition", "--seeds", "--labels", "--data-dir", "--fresh"):
        assert option in text


def test_help_tells_the_true_defaults():
    config = experiment.Config()
    shown = {name: default for name, (default, _) in (options._SETTINGS | options._FIT).items()}
    true = config._asdict() | config.fit._asdict()
    assert shown == {name: true[name] for name in shown}
    assert "(default: 2.5)" in parser().format_help()
    assert config.fit.weight_decay == 2.5


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys; from experiments import mnist_bald\n"
        "try: mnist_bald.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_acquisitions(capsys):
    assert mnist_bald.main(["--list-acquisitions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in named] == list(STRATEGIES)
    assert all("(" in line for line in named)
    shown = [line.strip() for line in lines if line.startswith(" ")]
    assert "power_bald:beta=1.0" in shown and "softmax:score=bald,beta=1.0" in shown
    for spec in shown:  # what is shown can be typed
        assert make_strategy(spec) is make_strategy(spec.partition(":")[0])


def test_list_posteriors(capsys):
    assert mnist_bald.main(["--list-posteriors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(POSTERIORS)
    shown = [line.strip() for line in lines if line.startswith(" ")]
    assert "ensemble:members=5,dropout=False" in shown
    for spec in shown:  # what is shown can be typed
        make_posterior(spec)


def test_a_function_is_one_cell_however_it_is_spelt(tmp_path, capsys):
    spelt = ["power:beta=8.0, score=margin", "power:score=margin,beta=8"]
    assert command(tmp_path / "run", "--labels", "30", "--acquisition", spelt[0]) == 0
    cell = history.cell_directory(tmp_path / "run", "power:score=margin,beta=8", 0)
    log = cell / "log.jsonl"
    before = log.stat().st_mtime_ns
    assert command(tmp_path / "run", "--labels", "30", "--acquisition", spelt[1]) == 0
    found = history.read_history(tmp_path / "run")
    assert len(found.cells) == 1 and log.stat().st_mtime_ns == before
    capsys.readouterr()
    assert command(tmp_path / "run", "--acquisition", *spelt) == 2
    assert "an acquisition function is given twice" in capsys.readouterr().err


def test_run_leaves_what_it_says(run, capsys):
    assert command(run, "--seeds", "2", "--labels", "50") == 0  # finished: nothing to do
    said = capsys.readouterr().out
    assert "digits" in said
    for name in ("history.json", "history.csv", "history.xlsx", "learning_curves.png"):
        assert f"{name}" in said
        assert (run / name).stat().st_size > 0
    assert "90" in said
    assert "95" in said
    history = load_history(run / "history.json")
    assert sorted(history.cells) == [("bald", 0), ("bald", 1), ("random", 0), ("random", 1)]
    for curve in history.cells.values():
        assert curve.labels.tolist() == [20, 30, 40, 50]
        found = labels_to_threshold(curve.labels, curve.test["accuracy"], 0.01)
        assert found == 20


def test_a_finished_run_is_not_written_again(run):
    log = run / "bald" / "0" / "log.jsonl"
    before = log.read_bytes()
    assert command(run, "--seeds", "2", "--labels", "50") == 0
    assert log.read_bytes() == before


def test_budget_seeds_and_functions_can_be_extended(run):
    assert (
        command(run, "--seeds", "1", "--labels", "60", "--acquisition", "bald", "max_entropy") == 0
    )
    last = read_events(run / "bald" / "0" / "log.jsonl")[-1]
    assert (last["event"], last["labels"]) == ("evaluated", 60)
    assert (run / "max_entropy" / "0" / "log.jsonl").exists()


WITHOUT_DATASET = [word for word in SMALL if word not in ("--dataset", "digits")]


@pytest.fixture
def asked(monkeypatch, no_data):
    """Names that were asked of `load_dataset`, which gives MNIST-like data for none."""
    names = []
    load = data_utils.load_dataset

    def spy(name=None, *args, **kwargs):
        names.append(name)
        found = load("digits")
        return found if name == "digits" else found._replace(name="mnist")

    monkeypatch.setattr(data_utils, "load_dataset", spy)
    return names


def test_the_data_set_is_recorded_and_does_not_flip(run, asked, capsys):
    command_line = [*WITHOUT_DATASET, "--output-dir", str(run), "--labels", "50"]
    assert mnist_bald.main(command_line) == 0
    assert asked == ["digits"]
    assert f"Going on with digits, as {run} began" in capsys.readouterr().out


def test_it_does_not_flip_in_the_default_directory(tmp_path, asked, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rest = ["--labels", "20", "--acquisition", "random"]
    assert mnist_bald.main([*SMALL, *rest]) == 0
    assert mnist_bald.main([*WITHOUT_DATASET, *rest]) == 0
    assert len(list(pathlib.Path("runs").iterdir())) == 1
    assert "Going on with digits" in capsys.readouterr().out
    # Other settings are another run, which may begin with whatever can be had.
    assert mnist_bald.main([*WITHOUT_DATASET, *rest, "--min-steps", "4"]) == 0
    # A folder that is named now says what is wanted now.
    assert mnist_bald.main([*WITHOUT_DATASET, *rest, "--data-dir", str(tmp_path)]) == 0
    assert asked == ["digits", "digits", None, None]


def test_a_damaged_run_among_others_stops_no_other(tmp_path, asked, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damaged = pathlib.Path("runs") / "other" / "config.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    rest = ["--labels", "20", "--acquisition", "random"]
    assert mnist_bald.main([*WITHOUT_DATASET, *rest]) == 0
    assert asked == [None]
    assert mnist_bald.main([*WITHOUT_DATASET, *rest, "--output-dir", str(damaged.parent)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_quiet_still_says_that_mnist_was_not_found(no_data, tmp_path, capsys):
    line = [*WITHOUT_DATASET, "--labels", "20", "--acquisition", "random", "--quiet"]
    assert mnist_bald.main([*line, "--output-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "MNIST" in said.err
    assert "digits" in said.err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_after_a_resume_counts_only_new_rounds():
    screen = Terminal()
    bar = mnist_bald._ProgressBar(False, file=screen)
    bar._bar.start_t -= 10  # ten seconds ago
    with bar as on_round:
        for done in (31, 32, 38):  # 30 were there; a later cell had 5 more
            on_round(experiment.Progress("bald", 0, done - 1, 10 * done, 400, 0.5, done, 40))
        assert "38/40 rounds" in screen.getvalue().rpartition("\r")[2]
        facts = bar._bar.format_dict
        assert facts["n"] - facts["initial"] == 3
        assert "bald, seed 0: 310 labels, test accuracy 50.0%" in screen.getvalue()


def test_no_bar_where_there_is_no_terminal():
    screen = io.StringIO()
    with mnist_bald._ProgressBar(False, file=screen) as on_round:
        on_round(experiment.Progress("bald", 0, 0, 20, 400, 0.5, 1, 40))
    assert screen.getvalue() == ""


def test_fresh_starts_anew(tmp_path):
    place = tmp_path / "run"
    assert command(place, "--labels", "30", "--acquisition", "random") == 0
    assert command(place, "--labels", "30", "--acquisition", "bald", "--fresh") == 0
    assert not (place / "random").exists()


def test_cells_side_by_side(tmp_path, capsys):
    rest = ("--labels", "30", "--acquisition", "random", "--seeds", "2")
    assert command(tmp_path, *rest, "--replicas", "2") == 0
    assert history.read_config(tmp_path)["environment"]["replicas"] == 2
    assert command(tmp_path, *rest) == 0  # as it began
    assert command(tmp_path, *rest, "--replicas", "1") == 2
    assert "replicas: 2 -> 1" in capsys.readouterr().err


def test_index_sets_are_written_and_used_again(tmp_path, capsys):
    path = tmp_path / "splits.json"
    rest = ("--labels", "30", "--acquisition", "random", "--index-sets", str(path))
    assert command(tmp_path / "a", *rest) == 0
    written = json.loads(path.read_text())
    assert command(tmp_path / "b", "--seeds", "7-7", *rest) == 0
    first = read_events(tmp_path / "b" / "random" / "7" / "log.jsonl")[0]
    assert first["rows"] == written["initial"]


def test_weight_decay_auto_reports_the_search(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    rest = ("--labels", "20", "--acquisition", "random", "--weight-decay", "auto")
    assert command(place, *rest) == 0
    said = capsys.readouterr().out
    assert "<- chosen" in said
    chosen = float(next(line for line in said.splitlines() if "chosen" in line).split()[0])
    config = json.loads((place / "config.json").read_text())
    assert config["identity"]["fit"]["weight_decay"] == chosen
    # Later seeds go on with what was found, and nothing is searched again.
    assert command(place, *rest, "--seeds", "2") == 0
    said = capsys.readouterr().out
    assert "Searching" not in said
    assert "<- chosen" in said
    (table,) = pathlib.Path("runs").glob("weight-decay-*.json")
    assert json.loads(table.read_text())["chosen"] == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--acquisition", "blad"], "unknown acquisition function 'blad'; known: bald"),
        (["--dataset", "mnits"], "unknown dataset 'mnits'; known: mnist"),
        (["--labels", "10"], "budget of 10 labels is smaller than the initial set of 20"),
        (["--labels", "0"], "labels must be positive, got 0"),
        (["--acquisition-size", "0"], "acquisition_size must be positive, got 0"),
        (["--num-samples", "-1"], "num_samples must be positive, got -1"),
        (["--pool-size", "-1"], "pool_size must not be negative, got -1"),
        (["--num-initial-per-class", "5000"], "cannot be balanced: class 0 has"),
        (["--num-validation", "5000"], "num_validation asks for 5000 rows"),
        (["--seeds", "0"], "at least one seed is needed"),
        (["--seeds", "1", "1"], "a seed is given twice: 1, 1"),
        (
            ["--model", "resnet"],
            "unknown model 'resnet'; known: batchbald_convnet, convnet, linear, mlp",
        ),
        (
            ["--precision", "half"],
            "unknown precision 'half'; known: float32, tensorfloat32, bfloat16",
        ),
        (["--monitor", "loss"], "unknown monitor 'loss'; known: none, nll, accuracy"),
        (["--weight-decay", "lots"], "expects a number or \"auto\", got 'lots'"),
        (
            ["--weight-decay", "auto", "--posterior", "laplace"],
            "--weight-decay auto judges networks by MC dropout; with --posterior laplace give a",
        ),
        (["--model", "linear"], "the model 'linear' has no dropout"),
        (["--acquisition", "epig", "--num-samples", "1"], "epig needs at least 2 posterior"),
        (["--weight-decay", "-1"], "weight_decay must not be negative"),
        (["--batch-size", "0"], "batch_size must be positive, got 0"),
        (["--learning-rate", "0"], "learning_rate must be positive, got 0"),
        (["--learning-rate", "inf"], "learning_rate must be finite, got inf"),
        (["--epochs", "nan"], "epochs must not be negative or infinite, got nan"),
        (["--epochs", "inf"], "epochs must not be negative or infinite, got inf"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, arguments, message):
    assert command(tmp_path / "run", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()  # refused before anything is written


def test_another_runs_directory_is_refused_with_the_difference(run, capsys):
    assert command(run, "--acquisition-size", "7") == 2
    errors = capsys.readouterr().err
    assert "acquisition_size" in errors
    assert "10" in errors
    assert "7" in errors


def test_mnist_that_cannot_be_had_names_the_ways(no_data, capsys):
    assert mnist_bald.main(["--dataset", "mnist"]) == 2
    errors = capsys.readouterr().err
    assert "--data-dir" in errors or "BAL_DATA_DIR" in errors


def test_diverging_training_says_where(tmp_path, capsys):
    assert command(tmp_path / "run", "--learning-rate", "1e30", "--labels", "40") == 1
    errors = capsys.readouterr().err
    assert "bald, seed 0, round 0" in errors
    assert "step" in errors
    events = read_events(tmp_path / "run" / "bald" / "0" / "log.jsonl")
    assert [event["event"] for event in events] == ["labels"]


def test_interruption_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayesian_active_learning.experiment.run", stop)
    assert command(tmp_path / "run") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert command(tmp_path / "run", "--fresh") == 130
    assert "the same command without --fresh goes on" in capsys.readouterr().err


def test_few_seeds_are_told_a_command_that_can_be_typed(run, capsys):
    assert command(run, "--labels", "50", "--seeds", "2") == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("To conclude something"))
    words = shlex.split(line.partition(": ")[2])[3:]
    typed = parser().parse_args(words)
    assert (typed.preset, typed.seeds, typed.acquisition) == ("paper", ["5"], ["bald", "random"])
    assert typed.dataset == "digits"


def test_batchbalds_protocol_runs_with_its_network(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(60) % 2)
    own = ["--num-validation", "6", "--min-steps", "4", "--check-every", "2", "--labels", "6"]
    own += ["--acquisition-size", "2", "--num-samples", "3", "--num-test-samples", "2"]
    own += ["--dataset", f"npz:{tmp_path / 'data.npz'}", "--seeds", "0-0"]
    directory = tmp_path / "run"
    assert mnist_bald.main(["--preset", "batchbald", "--output-dir", str(directory), *own]) == 0
    found = history.read_history(directory)
    assert {name for name, _ in found.cells} == {"batch_bald", "bald", "random"}
    assert all(curve.labels.tolist() == [4, 6] for curve in found.cells.values())
    facts = found.config["identity"]
    assert (facts["model"], facts["learning_rate"]) == ("batchbald_convnet", 1e-3)
    assert (facts["fit"]["batch_size"], facts["fit"]["monitor"]) == (64, "accuracy")
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("To conclude something"))
    assert "--preset batchbald --seeds 5 --labels 300" in line


def test_two_index_files_are_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a.json", "0-0"), ("b.json", "1-1")):
        rest = ["--labels", "20", "--acquisition", "random", "--seeds", seed]
        assert mnist_bald.main([*SMALL, *rest, "--index-sets", name]) == 0
    assert len(list(pathlib.Path("runs").iterdir())) == 2
