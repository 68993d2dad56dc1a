import contextlib
import csv
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bayesian_active_learning import history
from bayesian_active_learning.history import EventLog, HistoryError

IDENTITY = {"dataset": "digits", "model": {"dropout": (0.25, 0.5)}, "acquisition_size": 10}
ENVIRONMENT = {"jax": "0.10.2", "num_cpus": 2}
REPOSITORY = pathlib.Path(__file__).parent.parent


def evaluated(round: int, labels: int, accuracy: float) -> dict:
    metrics = {"accuracy": accuracy, "nll": 1 - accuracy}
    return {
        "event": "evaluated",
        "round": round,
        "labels": labels,
        "test": metrics,
        "validation": {"accuracy": accuracy / 2},
    }


def cell_events(accuracies: tuple = (0.5, 0.75, 0.875)) -> list[dict]:
    """Rounds of two labels; the last one ends after "evaluated"."""
    events = [{"event": "labels", "round": 0, "query": "initial", "rows": [4, 2], "labels": [0, 1]}]
    for number, accuracy in enumerate(accuracies):
        count, name, rows = 2 + 2 * number, f"r{number:04d}", [10 * number + 5, 10 * number + 3]
        events += [
            {"event": "fitted", "round": number, "labels": count, "steps": 400, "train_loss": 0.1},
            evaluated(number, count, accuracy),
        ]
        if number + 1 < len(accuracies):
            scores = {"scores": [0.25, 0.125], "filler": [False, True]}
            events += [
                {"event": "query", "round": number, "id": name, "rows": rows, **scores},
                {"event": "labels", "round": number, "query": name, "rows": rows, "labels": [1, 0]},
            ]
    return events


def write_log(path: pathlib.Path, events: list[dict]) -> pathlib.Path:
    with EventLog(path) as log:
        for event in events:
            log.record(event)
    return path


def small_run(path: pathlib.Path) -> pathlib.Path:
    history.open_run(path, IDENTITY, ENVIRONMENT)
    for function, seed, accuracies in (
        ("bald", 0, (0.5, 0.75, 0.875)),
        ("bald", 10, (0.5, 0.875)),
        ("bald", 2, (0.5,)),
        ("power:score=margin,beta=8", 0, (0.25, 0.5)),
    ):
        cell = history.cell_directory(path, function, seed)
        write_log(cell / history.LOG, cell_events(accuracies))
    return path


def tree(path: pathlib.Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# The log.


def test_log_lines_are_canonical_and_come_back(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "bald" / "0" / "log.jsonl", cell_events())
    lines = path.read_text().splitlines()
    assert all(line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))
               for line in lines)  # fmt: skip
    assert list(history.read_events(path)) == cell_events()
    assert write_log(tmp_path / "again.jsonl", cell_events()).read_bytes() == path.read_bytes()


def test_log_takes_arrays(tmp_path: pathlib.Path):
    with EventLog(tmp_path / "log.jsonl") as log:
        event = {"event": "query", "rows": np.int32([3]), "scores": (np.float32(0.1),), "n": {1: 2}}
        assert log.record(event)["scores"] == [float(np.float32(0.1))]
        with pytest.raises(ValueError, match="event 'fitted' of round 3 cannot be logged"):
            log.record({"event": "fitted", "round": 3, "train_loss": math.nan})
        with pytest.raises(ValueError, match="has the key 'event' and not 'crc'"):
            log.record({"round": 3})
    assert history.read_events(log.path) == log.events
    assert log.events[0]["n"] == {"1": 2}
    with pytest.raises(HistoryError, match="is closed"):
        log.append({"event": "x"})


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_torn_last_line_is_dropped_and_made_again(tmp_path: pathlib.Path, keep: int):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    torn = whole[: start + keep] if keep > 0 else whole[:keep]
    path.write_bytes(torn)
    assert list(history.read_events(path)) == cell_events()[:-1]
    assert path.read_bytes() == torn  # reading changes nothing
    with EventLog(path) as log:
        assert log.torn_bytes == len(torn) - start
        for event in cell_events():
            log.record(event)
    assert path.read_bytes() == whole


def test_zeros_after_a_power_cut_are_a_torn_line(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    with EventLog(path) as log:
        assert list(log.events) == cell_events()
    assert path.read_bytes() == whole


def flip(line: bytes) -> bytes:
    place = line.index(b"[5,3]") + 1 if b"[5,3]" in line else len(line) // 2
    return line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]


@pytest.mark.parametrize(
    "damage, number",
    [
        (lambda lines: [*lines[:3], flip(lines[3]), *lines[4:]], 4),  # a digit of a row
        (lambda lines: [*lines[:3], lines[3][:20], *lines[4:]], 4),
        (lambda lines: [*lines[:3], *lines[4:]], 4),  # a line lost
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lambda lines: [*lines[:5], b"", *lines[5:]], 6),
        (lambda lines: [b"\xff\xfe", *lines[1:]], 1),
        (lambda lines: [*lines[:-1], flip(lines[-1])], 11),
        (lambda lines: [*lines, b"[1]"], 12),
        (lambda lines: [*lines, b'{"event":"fitted"}'], 12),
    ],
)
def test_damage_is_refused_naming_file_and_line(tmp_path: pathlib.Path, damage, number: int):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    lines = damage(path.read_bytes().splitlines())
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(content)
    message = rf"{re.escape(str(path))} line {number} is damaged: .*Restore the file"
    with pytest.raises(HistoryError, match=message):
        EventLog(path)
    with pytest.raises(HistoryError, match=message):
        history.read_events(path)
    assert path.read_bytes() == content


def test_every_flipped_bit_is_noticed(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "log.jsonl", cell_events()[:3])
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        for bit in (0, 3, 5):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with contextlib.suppress(HistoryError):
                # 1e-1 for 0.1: another spelling of the same value is no damage.
                assert list(history.read_events(path)) == cell_events()[:3]


def test_record_compares_before_it_writes(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    whole = path.read_bytes()
    with EventLog(path) as log:
        log.skip(1)
        assert list(log.upcoming) == cell_events()[1:]
        log.record(cell_events()[1])
        other = evaluated(0, 2, 0.25)
        other["validation"] = {"accuracy": 0.25, "nll": 1}
        message = (
            r"log\.jsonl line 3: this run does not repeat the logged one \(logged -> now\): "
            r"test\.accuracy: 0\.5 -> 0\.25; test\.nll: 0\.5 -> 0\.75; "
            r"validation\.nll: absent -> 1\. The code"
        )
        with pytest.raises(HistoryError, match=message):
            log.record(other)
        log.record(evaluated(0, 2, 0.5))
        with pytest.raises(ValueError, match=r"cannot skip 9 events of .*: 8 are left"):
            log.skip(9)
        log.skip(8)
        assert log.upcoming == ()
        assert path.read_bytes() == whole
        log.record({"event": "query", "round": 2})
    assert path.read_bytes().startswith(whole)
    assert len(history.read_events(path)) == 12


def test_trusted_log_keeps_its_own_numbers(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    with EventLog(path, trust_log=True) as log:
        log.skip(2)
        assert log.record(evaluated(0, 2, 0.5000001)) == evaluated(0, 2, 0.5)
        with pytest.raises(HistoryError, match='event: "query" -> "evaluated"'):
            log.record(evaluated(0, 2, 0.5))


def test_append_needs_no_comparison(tmp_path: pathlib.Path):
    for seconds in (1.5, 2.5):  # two processes, one after the other
        with EventLog(tmp_path / history.CLOCK) as clock:
            clock.append({"event": "fitted", "seconds": seconds})
    events = history.read_events(tmp_path / history.CLOCK)
    assert [event["seconds"] for event in events] == [1.5, 2.5]


FULL_DISK = """
import resource, sys
from bayesian_active_learning.history import EventLog, HistoryError
path, limit = sys.argv[1], int(sys.argv[2])
with EventLog(path) as log:
    log.append({"event": "small"})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        log.append({"event": "large", "rows": list(range(1000))})
    except HistoryError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.append({"event": "afterwards"})
"""


def test_full_disk_loses_no_line(tmp_path: pathlib.Path):
    """The kernel itself writes a part of the line and then refuses, as a full disk does."""
    path = tmp_path / "log.jsonl"
    command = [sys.executable, "-c", FULL_DISK, str(path), "500"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True)
    message = rf"cannot write {re.escape(str(path))}: .*\. The 1 events before are safe; make room"
    assert re.match(message, done.stdout), done.stdout
    assert [event["event"] for event in history.read_events(path)] == ["small", "afterwards"]


def test_no_space_left_in_the_middle_of_a_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_log(tmp_path / "log.jsonl", cell_events())
    whole = path.read_bytes()
    real = os.write
    with EventLog(path) as log:
        with monkeypatch.context() as patched:

            def full(handle: int, data: bytes) -> int:
                if len(path.read_bytes()) == len(whole):
                    return real(handle, data[:7])
                raise OSError(28, "No space left on device")

            patched.setattr(os, "write", full)
            with pytest.raises(HistoryError, match=r"log\.jsonl: No space left on device\. The 11"):
                log.append({"event": "query", "round": 2})
            assert path.read_bytes() == whole

            def interrupted(handle: int) -> None:
                raise KeyboardInterrupt

            patched.setattr(os, "write", real)
            patched.setattr(os, "fsync", interrupted)
            with pytest.raises(KeyboardInterrupt):
                log.append({"event": "query", "round": 2})
            assert path.read_bytes() == whole
        log.append({"event": "query", "round": 2})
    assert list(history.read_events(path))[:-1] == cell_events()


KILLED = """
import sys
from bayesian_active_learning.history import EventLog, cell_lock
with cell_lock(sys.argv[1]), EventLog(sys.argv[1] + "/log.jsonl") as log:
    number = len(log.events)
    print("ready", flush=True)
    while True:
        log.append({"event": "query", "round": number, "rows": list(range(2000))})
        number += 1
"""


def test_killed_while_writing(tmp_path: pathlib.Path):
    seen = 0
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            while os.path.getsize(tmp_path / "log.jsonl") < 50_000 * (seen + 1):
                pass
            process.send_signal(signal.SIGKILL)
        events = history.read_events(tmp_path / "log.jsonl")
        assert [event["round"] for event in events] == list(range(len(events)))
        assert len(events) > seen
        seen += 1


@pytest.mark.parametrize("place", ["/proc/nowhere/log.jsonl", "FILE/log.jsonl", "DIRECTORY"])
def test_log_that_cannot_be_made(tmp_path: pathlib.Path, place: str):
    (tmp_path / "file").write_text("")
    name = place.replace("FILE", str(tmp_path / "file")).replace("DIRECTORY", str(tmp_path))
    with pytest.raises(HistoryError, match=f"cannot open the log {re.escape(name)}: "):
        EventLog(name)
    with pytest.raises(HistoryError, match=f"cannot read the log {re.escape(name)}: "):
        history.read_events(name)


def test_resume_point():
    events = cell_events()
    points = [history.resume_point(events[:count]) for count in range(len(events) + 1)]
    assert points == [(0, 0), *[(0, 1)] * 4, *[(1, 5)] * 4, *[(2, 9)] * 3]
    halves = [events[4] | {"rows": [3], "labels": [0]}, events[4] | {"rows": [5], "labels": [1]}]
    assert history.resume_point([*events[:4], halves[0]]) == (0, 1)
    assert history.resume_point([*events[:4], *halves]) == (1, 6)
    released = {"event": "released", "round": 0, "rows": [5]}
    assert history.resume_point([*events[:4], halves[0], released]) == (1, 6)
    given = {"event": "labels", "round": 0, "query": "given", "rows": [8], "labels": [0]}
    assert history.resume_point([*events[:5], given]) == (1, 6)


# The lock.


def test_lock_names_the_holder_and_goes_away(tmp_path: pathlib.Path):
    cell = tmp_path / "bald" / "0"
    with history.cell_lock(cell):
        with (
            pytest.raises(HistoryError, match=rf"0 is in use by process {os.getpid()}; wait"),
            history.cell_lock(cell, wait=0.1),
        ):
            pass
        assert (cell / ".lock").exists()
    assert list(cell.iterdir()) == []
    with history.cell_lock(cell):
        pass


def test_lock_of_a_killed_process_does_not_block(tmp_path: pathlib.Path):
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(HistoryError, match=f"in use by process {process.pid};"),
            history.cell_lock(tmp_path),
        ):
            pass
        process.kill()
    assert (tmp_path / ".lock").exists()
    with history.cell_lock(tmp_path):
        pass


def test_lock_that_cannot_be_made():
    with (
        pytest.raises(HistoryError, match=r"cannot write /proc/nowhere/\.lock: "),
        history.cell_lock("/proc/nowhere"),
    ):
        pass


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
    assert {"python", "jax", "jaxlib", "dm-haiku", "optax", "numpy"} <= set(found)
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
