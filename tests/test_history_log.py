"""The event log and the lock: what a killed, cut off or damaged run leaves."""

import contextlib
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from small_runs import (
    REPOSITORY,
    cell_events,
    evaluated,
    write_log,
)

from bayesian_active_learning import history
from bayesian_active_learning.history import EventLog, HistoryError

# The log.


def test_log_lines_are_canonical_and_come_back(tmp_path: pathlib.Path):
    path = write_log(tmp_path / "bald" / "0" / "log.jsonl", cell_events())
    lines = path.read_text().splitlines()
    assert all(line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))
               for line in lines)  # fmt: skip
    assert list(history.read_events(path)) == cell_events()
    assert write_log(tmp_path / "again.jsonl", cell_events()).read_bytes() == path.read_bytes()


def test_a_log_at_once_is_the_log_line_by_line(tmp_path: pathlib.Path):
    expected = write_log(tmp_path / "lines.jsonl", cell_events()).read_bytes()
    path = tmp_path / "bald" / "0" / "log.jsonl"
    history.write_events(path, cell_events())
    assert path.read_bytes() == expected
    history.write_events(path, cell_events()[:1])
    assert history.read_events(path) == tuple(cell_events()[:1])
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match="file"):
        history.write_events(tmp_path / "file" / "log.jsonl", cell_events())


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
