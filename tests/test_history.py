"""Run directories, histories read from them, tables, labels to an accuracy."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from small_runs import ENVIRONMENT, IDENTITY, REPOSITORY, cell_events, small_run, tree, write_log

from bayesian_active_learning import history
from bayesian_active_learning.history import HistoryError

# The run directory.


def test_open_run_writes_its_config_and_goes_on(tmp_path: pathlib.Path):
    run = history.open_run(tmp_path / "a" / "run", IDENTITY, ENVIRONMENT)
    assert not run.resumed and run.removed == ()
    assert sorted(tree(run.path)) == ["config.json"]
    config = json.loads((run.path / "config.json").read_text())
    assert config == run.config == history.read_config(run.path)
    assert config["identity"]["model"] == {"dropout": [0.25, 0.5]}
    assert config["environment"] == ENVIRONMENT
    before = tree(run.path)
    again = history.open_run(run.path, IDENTITY, ENVIRONMENT)
    assert again.resumed and again.config == config and tree(run.path) == before


def test_open_run_refuses_another_identity(tmp_path: pathlib.Path):
    small_run(tmp_path)
    before = tree(tmp_path)
    other = {"dataset": "mnist", "model": {"dropout": [0.25, 0.1]}, "seed": 3} | {
        "acquisition_size": 10
    }
    message = (
        r"holds another run \(there -> now\): dataset: \"digits\" -> \"mnist\"; "
        r"model\.dropout\[1\]: 0\.5 -> 0\.1; seed: absent -> 3\. "
        r"Choose another --output-dir, or delete that run with --fresh"
    )
    with pytest.raises(HistoryError, match=message):
        history.open_run(tmp_path, other, ENVIRONMENT)
    assert tree(tmp_path) == before


def test_open_run_refuses_another_environment_unless_allowed(tmp_path: pathlib.Path):
    first = history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    other = {"jax": "0.12.0", "num_cpus": 2}
    message = r'jax: "0\.10\.2" -> "0\.12\.0"\. Go on in the first one.*--allow-other-environment'
    with pytest.raises(HistoryError, match=message):
        history.open_run(tmp_path, IDENTITY, other)
    for _ in range(2):
        run = history.open_run(tmp_path, IDENTITY, other, allow_other_environment=True)
        assert run.config == first.config | {"also_run_in": [other]}
    with pytest.raises(HistoryError, match="another environment"):
        history.open_run(tmp_path, IDENTITY, other)


def test_what_an_older_version_did_not_record_is_no_difference(tmp_path: pathlib.Path):
    first = history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    newer = history.open_run(tmp_path, IDENTITY, ENVIRONMENT | {"scipy": "1.17.0"})
    assert newer.resumed and newer.config == first.config
    fewer = {key: value for key, value in ENVIRONMENT.items() if key != "jax"}
    with pytest.raises(HistoryError, match="another environment"):
        history.open_run(tmp_path, IDENTITY, fewer)


def test_fresh_deletes_a_run_and_says_what(tmp_path: pathlib.Path):
    small_run(tmp_path)
    (tmp_path / "curves.png").write_text("")
    (tmp_path / "bald" / "2" / ".log.jsonl.abc.tmp").write_text("")
    (tmp_path / "bald" / "2" / ".lock").write_text("1")
    run = history.open_run(tmp_path, {"dataset": "mnist"}, ENVIRONMENT, fresh=True)
    assert sorted(tree(tmp_path)) == ["config.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]
    assert not run.resumed and run.config["identity"] == {"dataset": "mnist"}
    assert set(run.removed) == {
        "bald/0/log.jsonl",
        "bald/10/log.jsonl",
        "bald/2/log.jsonl",
        "bald/2/.log.jsonl.abc.tmp",
        "power:score=margin,beta=8/0/log.jsonl",
        "config.json",
        "curves.png",
    }
    assert run.removed[-1] == "config.json"


@pytest.mark.parametrize(
    "stranger", ["thesis.tex", "bald/notes.txt", "bald/0/model.pt", "bald/zero/log.jsonl", "a/00/x"]
)
def test_fresh_deletes_nothing_beside_unknown_files(tmp_path: pathlib.Path, stranger: str):
    small_run(tmp_path)
    (tmp_path / stranger).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stranger).write_text("precious")
    before = tree(tmp_path)
    with pytest.raises(HistoryError, match=r"files that no run makes \(.*\), so --fresh deletes"):
        history.open_run(tmp_path, IDENTITY, ENVIRONMENT, fresh=True)
    assert tree(tmp_path) == before


def test_fresh_follows_no_links_and_waits_for_nobody(tmp_path: pathlib.Path):
    run = small_run(tmp_path / "run")
    with (
        history.cell_lock(run / "bald" / "10"),
        pytest.raises(HistoryError, match="10 is in use by process"),
    ):
        history.open_run(run, IDENTITY, ENVIRONMENT, fresh=True)
    assert len(tree(run)) == 5
    (tmp_path / "elsewhere" / "0").mkdir(parents=True)
    (tmp_path / "elsewhere" / "0" / "log.jsonl").write_text("")
    (run / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HistoryError, match=r"no run makes \(linked\)"):
        history.open_run(run, IDENTITY, ENVIRONMENT, fresh=True)


@pytest.mark.parametrize("fresh", [False, True])
def test_open_run_refuses_a_directory_that_is_no_run(tmp_path: pathlib.Path, fresh: bool):
    (tmp_path / "thesis.tex").write_text("precious")
    message = (
        r"is not empty and not a run \(no config\.json; it holds thesis\.tex\); choose another"
    )
    with pytest.raises(HistoryError, match=message):
        history.open_run(tmp_path, IDENTITY, ENVIRONMENT, fresh=fresh)
    assert sorted(tree(tmp_path)) == ["thesis.tex"]


def test_open_run_after_a_kill_before_the_config(tmp_path: pathlib.Path):
    (tmp_path / ".config.json.x1.tmp").write_text('{"iden')
    (tmp_path / ".lock").write_text("123")
    history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    assert sorted(tree(tmp_path)) == ["config.json"]


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "FILE", "FILE/run", "/sys/run"])
def test_directory_that_cannot_be_made(tmp_path: pathlib.Path, place: str):
    (tmp_path / "file").write_text("")
    name = place.replace("FILE", str(tmp_path / "file"))
    message = f"cannot write {re.escape(name)}: .*; choose another --output-dir"
    with pytest.raises(HistoryError, match=message):
        history.open_run(name, IDENTITY, ENVIRONMENT)


def test_config_that_was_damaged_or_edited(tmp_path: pathlib.Path):
    history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    path = tmp_path / "config.json"
    content = path.read_text()
    path.write_text(content.replace("digits", "mnist"))
    with pytest.raises(HistoryError, match=r"config\.json says hash \w{10}, its identity has"):
        history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    for damaged in (content[:30], "[]", "", '{"identity": {}}'):
        path.write_text(damaged)
        with pytest.raises(HistoryError, match=r"config\.json is damaged .*restore it from a copy"):
            history.open_run(tmp_path, IDENTITY, ENVIRONMENT)
    assert not history.open_run(tmp_path, IDENTITY, ENVIRONMENT, fresh=True).resumed
    with pytest.raises(HistoryError, match="is not a run: cannot read"):
        history.read_config(tmp_path / "nowhere")


def test_default_run_name():
    name = history.default_run_name(IDENTITY)
    assert re.fullmatch(r"digits-[0-9a-f]{10}", name)
    assert name == history.default_run_name(json.loads(json.dumps(IDENTITY)))
    assert name != history.default_run_name(IDENTITY | {"acquisition_size": 5})
    assert history.default_run_name({"dataset": "npz:/a b/my set.npz"}).startswith("npz-my-set-")


def test_cell_directory(tmp_path: pathlib.Path):
    assert history.cell_directory("run", "bald", 3) == pathlib.Path("run/bald/3")
    odd = "power:score=a/b,beta=8"
    directory = history.cell_directory(tmp_path, odd, 0)
    assert directory.parent.parent == tmp_path
    directory.mkdir(parents=True)
    assert history.list_cells(tmp_path) == {(odd, 0): directory}
    for function in ("", "..", "config.json"):
        with pytest.raises(ValueError, match="cannot name a directory of a run"):
            history.cell_directory("run", function, 0)


def test_environment_names_what_bytes_depend_on(monkeypatch: pytest.MonkeyPatch):
    history.environment()  # starts the backend, which reads the flags, once
    monkeypatch.setenv("XLA_FLAGS", "--other")
    found = history.environment()
    assert {"python", "jax", "jaxlib", "dm-haiku", "optax", "numpy", "scipy"} <= set(found)
    assert "scikit-learn" in found
    assert found["num_cpus"] == len(os.sched_getaffinity(0))
    assert found["xla_flags"] == "--other"
    assert found["platform"] and found["device_kind"] and found["cpu_model"]
    assert json.loads(json.dumps(found)) == found


# Histories.


def test_curve_from_events():
    curve = history.curve_from_events(cell_events())
    assert curve.labels.tolist() == [2, 4, 6]
    assert curve.test["accuracy"].tolist() == [0.5, 0.75, 0.875]
    assert curve.test["nll"].tolist() == [0.5, 0.25, 0.125]
    assert curve.validation["accuracy"].tolist() == [0.25, 0.375, 0.4375]
    assert curve.fitted["steps"].tolist() == [400, 400, 400]
    assert sorted(curve.fitted) == ["steps", "train_loss"]
    assert [rows.tolist() for rows in curve.rows] == [[5, 3], [15, 13], []]
    assert curve.scores[0].tolist() == [0.25, 0.125]
    assert curve.filler[0].tolist() == [False, True]
    assert curve.initial_rows.tolist() == [4, 2]
    record = history.round_records(cell_events())[1]
    assert (record.round, record.labels, record.test["accuracy"]) == (1, 4, 0.75)
    assert record.rows.tolist() == [15, 13] and record.fitted["train_loss"] == 0.1


def test_curve_without_validation_or_rounds():
    assert len(history.curve_from_events(cell_events()[:2]).labels) == 0
    events = [event | {"validation": None} for event in cell_events() if "test" in event]
    assert history.curve_from_events(events).validation == {}


def test_read_history_of_a_run_that_goes_on(tmp_path: pathlib.Path):
    small_run(tmp_path)
    write_log(history.cell_directory(tmp_path, "random", 0) / "log.jsonl", cell_events()[:2])
    history.cell_directory(tmp_path, "random", 1).mkdir()
    (tmp_path / "figures").mkdir()
    torn = tmp_path / "bald" / "0" / "log.jsonl"
    torn.write_bytes(torn.read_bytes()[:-5])
    before = tree(tmp_path)
    found = history.read_history(tmp_path)
    assert list(found.cells) == [
        ("bald", 0),
        ("bald", 2),
        ("bald", 10),
        ("power:score=margin,beta=8", 0),
    ]
    assert found.cells["bald", 0].labels.tolist() == [2, 4]
    assert found.config["identity"]["dataset"] == "digits"
    assert tree(tmp_path) == before


def assert_equal(first: history.History, second: history.History) -> None:
    assert first.config == second.config
    assert list(first.cells) == list(second.cells)
    for key, curve in first.cells.items():
        for name, value in curve._asdict().items():
            other = getattr(second.cells[key], name)
            np.testing.assert_equal(other, value)
            if isinstance(value, np.ndarray):
                assert other.dtype == value.dtype
            elif isinstance(value, tuple):
                assert [array.dtype for array in other] == [array.dtype for array in value]


def test_history_file_round_trip(tmp_path: pathlib.Path):
    found = history.read_history(small_run(tmp_path / "run"))
    cell = found.cells["bald", 0]
    cell.fitted["train_loss"][1] = np.nan  # a number that one round does not have
    cell.test["nll"][0] = 1 / 3
    history.write_history(tmp_path / "history.json", found)
    content = (tmp_path / "history.json").read_text()
    assert len(content.splitlines()) == 2 + len(found.cells)
    json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert_equal(found, history.load_history(tmp_path / "history.json"))
    history.write_history(tmp_path / "short.json", found, significant_digits=3)
    short = history.load_history(tmp_path / "short.json")
    assert short.cells["bald", 0].test["nll"][0] == 0.333


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "config": {}}'])
def test_load_history_refuses_other_files(tmp_path: pathlib.Path, content: str):
    path = tmp_path / "history.json"
    path.write_text(content)
    with pytest.raises(HistoryError, match=r"history\.json is not a history file: "):
        history.load_history(path)
    with pytest.raises(HistoryError, match=r"cannot read .*nowhere\.json: No such file"):
        history.load_history(tmp_path / "nowhere.json")


def test_tables(tmp_path: pathlib.Path):
    openpyxl = pytest.importorskip("openpyxl")
    found = history.read_history(small_run(tmp_path / "run"))
    found.cells["bald", 0].fitted["train_loss"][1] = np.nan
    history.export_csv(tmp_path / "history.csv", found)
    with open(tmp_path / "history.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 + 2 + 1 + 2
    assert list(table[0])[:5] == ["dataset", "function", "seed", "round", "labels"]
    second = table[1]
    assert (second["dataset"], second["function"], second["seed"]) == ("digits", "bald", "0")
    assert (second["round"], second["labels"], second["rows"]) == ("1", "4", "15 13")
    assert float(second["test_accuracy"]) == 0.75 and second["fitted_train_loss"] == ""
    history.export_xlsx(tmp_path / "history.xlsx", found)
    sheet = openpyxl.load_workbook(tmp_path / "history.xlsx").active
    rows = list(sheet.iter_rows(values_only=True))
    assert len(rows) == 9 and list(rows[0]) == list(table[0])
    assert rows[2][:5] == ("digits", "bald", 0, 1, 4)
    for export in (history.export_csv, history.export_xlsx, history.write_history):
        with pytest.raises(HistoryError, match="cannot write /proc/nowhere/table: "):
            export("/proc/nowhere/table", found)


def test_xlsx_without_openpyxl(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    message = r"XLSX needs openpyxl, which is not installed; install the 'experiments' extra"
    with pytest.raises(HistoryError, match=message):
        history.export_xlsx(tmp_path / "x.xlsx", history.History({}, {}))
    assert list(tmp_path.iterdir()) == []


# Labels to an accuracy.

LABELS = [20, 30, 40, 50, 60, 70]
ACCURACY = [0.5, 0.9, 0.8, 0.9, 0.95, 0.9]


@pytest.mark.parametrize(
    "threshold, sustained, expected",
    [(0.9, 1, 30), (0.9, 2, 50), (0.9, 3, 50), (0.9, 4, None), (0.95, 1, 60), (0.96, 1, None),
     (0.0, 6, 20), (0.9, 7, None)],
)  # fmt: skip
def test_labels_to_threshold(threshold: float, sustained: int, expected: int | None):
    for dtype in (np.float32, np.float64):  # float32(0.9) is below 0.9
        accuracy = np.array(ACCURACY, dtype)
        found = history.labels_to_threshold(LABELS, accuracy, threshold, sustained=sustained)
        assert found == expected


def test_labels_to_threshold_refuses():
    with pytest.raises(ValueError, match=r"got \(2,\) and \(1,\)"):
        history.labels_to_threshold([1, 2], [0.5], 0.9)
    with pytest.raises(ValueError, match="sustained must be at least 1, got 0"):
        history.labels_to_threshold([1], [0.5], 0.9, sustained=0)
    with pytest.raises(ValueError, match=r"threshold must be in 0\.\.1, got 90"):
        history.labels_to_threshold([1], [0.5], 90)
    with pytest.raises(ValueError, match="no curves"):
        history.median_labels_to_threshold([], 0.9)


def curves(counts: list[int | None]) -> list[history.Curve]:
    """One curve for each count, touching 0.9 there, or never."""
    made = []
    for count in counts:
        accuracies = [0.9 if label == count else 0.5 for label in range(2, 22, 2)]
        made.append(history.curve_from_events(cell_events(tuple(accuracies))))
    return made


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([6], (6, 6, 6)),
        ([4, 8, 10, 12, 20], (8, 10, 12)),
        ([20, 4, 12, 10], (8.5, 11, 14)),
        ([4, 8, 10, None, None], (8, 10, None)),
        ([4, 8, None, None], (7, None, None)),
        ([4, None, None, None, None], (None, None, None)),
        ([4, 6, 8, 10, None], (6, 8, 10)),
        ([None, None], (None, None, None)),
    ],
)
def test_quartiles_with_runs_that_never_get_there(counts: list, expected: tuple):
    made = curves(counts)
    assert history.quartiles_labels_to_threshold(made, 0.9) == expected
    assert history.median_labels_to_threshold(made, 0.9) == expected[1]
    if None not in counts:
        np.testing.assert_allclose(np.quantile(counts, (0.25, 0.5, 0.75)), expected)
    assert history.median_labels_to_threshold(made, 0.9, 2) is None
    assert history.median_labels_to_threshold(made, 0.2, metric="accuracy") == 2


def test_reading_needs_no_jax_device(tmp_path: pathlib.Path):
    small_run(tmp_path)
    code = """
        import sys
        from bayesian_active_learning import history
        history.read_history(sys.argv[1])
        from jax._src import xla_bridge
        assert not xla_bridge._backends
        assert not {"openpyxl", "matplotlib"} & set(sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
