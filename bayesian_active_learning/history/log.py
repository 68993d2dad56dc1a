"""An append-only log of events, one JSON object a line, synced before it counts.

Each line carries the CRC-32 of itself chained to the line before ("crc"), so a
flipped bit, a lost line or two swapped ones are found, not resumed from. A last line
without its newline is what a killed process leaves: it never counted, and is dropped.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from bayesian_active_learning.history.errors import (
    HistoryError,
    differences,
    to_json,
    writing,
)
from bayesian_active_learning.utils import atomic_write, canonical_json

Event = dict[str, Any]
_MOST_DIFFERENCES = 5  # in one message


class EventLog:
    """The log of one cell, open for appending; one process at a time (`cell_lock`).

    A resumed run makes again the events of the round that was interrupted. `record`
    then does not write them twice but checks that they are the same.
    """

    def __init__(self, path: str | os.PathLike, *, trust_log: bool = False) -> None:
        """Opens or creates `path`, and cuts off a torn last line.

        trust_log: where a re-made event differs from the one in the log, keep the
        log's instead of raising (for runs continued in another environment).
        Raises HistoryError on a damaged line, naming file and line, and where the
        file cannot be made.
        """
        self.path = pathlib.Path(path)
        self._trust_log = trust_log
        self._handle = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            content = self.path.read_bytes()
            self._events, self._size, self._crc = _parse(self.path, content)
            self.torn_bytes = len(content) - self._size
            if self.torn_bytes:
                os.ftruncate(self._handle, self._size)
            os.fsync(self._handle)
            _sync_directory(self.path.parent)
        except OSError as error:
            self.close()
            reason = error.strerror or error
            raise HistoryError(f"cannot open the log {self.path}: {reason}") from error
        except BaseException:
            self.close()
            raise
        self._position = 0

    @property
    def events(self) -> tuple[Event, ...]:
        """All events in the log, without their checksums."""
        return tuple(self._events)

    @property
    def upcoming(self) -> tuple[Event, ...]:
        """The events in the log that `record` has not yet come past."""
        return tuple(self._events[self._position :])

    def skip(self, count: int) -> None:
        """Passes over the next `count` events: rounds that are not made again."""
        if not 0 <= count <= len(self._events) - self._position:
            left = len(self._events) - self._position
            raise ValueError(f"cannot skip {count} events of {self.path}: {left} are left")
        self._position += count

    def record(self, event: Mapping[str, Any]) -> Event:
        """Appends `event`, or, where the log already has one here, compares the two.

        Returns the event as it stands in the log. Raises HistoryError with the
        differences if they are not equal (with `trust_log`: only if they are not of
        one kind and round). The scores of a query may differ: their last digits can go by
        the size of a buffer, and with it by the label budget. What is logged stands.
        """
        if self._position == len(self._events):
            return self.append(event)
        made, logged = _checked(event), self._events[self._position]
        same_place = all(made.get(key) == logged.get(key) for key in ("event", "round"))
        lines: list[str] = []
        if not (self._trust_log and same_place):
            lines = differences(_repeatable(logged), _repeatable(made))
        if lines:
            shown = "; ".join(lines[:_MOST_DIFFERENCES])
            more = len(lines) - _MOST_DIFFERENCES
            raise HistoryError(
                f"{self.path} line {self._position + 1}: this run does not repeat the logged one "
                f"(logged -> now): {shown}{f'; and {more} more' if more > 0 else ''}. The code, "
                f"the data or the machine has changed since; nothing was written"
            )
        self._position += 1
        return logged

    def append(self, event: Mapping[str, Any]) -> Event:
        """Writes `event` after the last line and returns it once it is on the disk.

        On an error (disk full) the line is cut off again, all lines before it stay,
        and HistoryError names the file.
        """
        if self._handle < 0:
            raise HistoryError(f"the log {self.path} is closed")
        made = _checked(event)
        crc = _chained(made, self._crc)
        data = memoryview(f"{canonical_json(made | {'crc': f'{crc:08x}'})}\n".encode())
        try:
            written = 0
            while written < len(data):
                written += os.write(self._handle, data[written:])
            os.fsync(self._handle)
        except BaseException as error:
            self._cut_back()
            if not isinstance(error, OSError):
                raise
            raise HistoryError(
                f"cannot write {self.path}: {error.strerror or error}. The {len(self._events)} "
                f"events before are safe; make room and run the same command again"
            ) from error
        if self._position == len(self._events):
            self._position += 1
        self._events.append(made)
        self._size += len(data)
        self._crc = crc
        return made

    def close(self) -> None:
        """Closes the file; more than once is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._handle, self._size)
        except OSError:
            # Another line behind a torn one would make the log unreadable.
            self.close()


class MemoryLog:
    """`EventLog` without a file."""

    def __init__(self) -> None:
        self.events: tuple[Mapping[str, Any], ...] = ()
        self.upcoming: tuple[Mapping[str, Any], ...] = ()

    def record(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        self.events = (*self.events, event)
        return event


def read_events(path: str | os.PathLike) -> tuple[Event, ...]:
    """The events of a log, which is only read; a torn last line is left out.

    Raises HistoryError naming file and line on a damaged line.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise HistoryError(f"cannot read the log {path}: {error.strerror or error}") from error
    return tuple(_parse(pathlib.Path(path), content)[0])


def write_events(path: str | os.PathLike, events: Sequence[Mapping[str, Any]]) -> None:
    """A whole log at once, in the place of the one that may be there.

    For cells that are computed in one piece. Raises HistoryError where it cannot be written.
    """
    crc = 0
    lines = []
    for event in events:
        made = _checked(event)
        crc = _chained(made, crc)
        lines.append(canonical_json(made | {"crc": f"{crc:08x}"}))
    path = pathlib.Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write("".join(f"{line}\n" for line in lines))


def resume_point(events: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(round, count): the first round to make again, and how many events come before.

    A round is behind us when every row of its query has been answered. Replay
    `events[:count]`, `log.skip(count)`, and go on with `round`. (0, 0) when even the
    initial labels are not there.
    """
    point = (0, 0)
    current: int | None = None
    open_rows: set[int] = set()
    for count, event in enumerate(events, start=1):
        if event["event"] == "query":
            current = event["round"]
            open_rows |= set(event["rows"])
        elif event["event"] in ("labels", "released"):
            open_rows -= set(event["rows"])
            if current is not None and not open_rows:
                point = (current + 1, count)
            elif current is None and event.get("query") == "initial":
                point = (0, count)
    return point


def _parse(path: pathlib.Path, content: bytes) -> tuple[list[Event], int, int]:
    """Events, the bytes they take, and the last checksum."""
    events: list[Event] = []
    size = content.rfind(b"\n") + 1
    crc = 0
    for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
        try:
            event = json.loads(line)
            stated = event.pop("crc")
            crc = _chained(event, crc)
            if stated != f"{crc:08x}":
                raise ValueError("the checksum does not fit the line and those before it")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            reason = "no checksum" if isinstance(error, KeyError) else error
            raise HistoryError(
                f"{path} line {number} is damaged: {reason}. Restore the file from a copy, or "
                f"start this run anew (--fresh)"
            ) from error
        events.append(event)
    return events, size, crc


def _chained(event: Event, crc: int) -> int:
    return zlib.crc32(canonical_json(event).encode(), crc)


def _repeatable(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "scores"}


def _checked(event: Mapping[str, Any]) -> Event:
    if "event" not in event or "crc" in event:
        raise ValueError(f"an event has the key 'event' and not 'crc', got {sorted(event)}")
    try:
        return to_json(event)
    except (TypeError, ValueError) as error:
        kind, place = event["event"], event.get("round")
        raise ValueError(f"event {kind!r} of round {place} cannot be logged: {error}") from error


def _sync_directory(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
