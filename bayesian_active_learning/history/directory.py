"""A run's directory: whose it is, what lies in it, and when it may be continued."""

import contextlib
import fnmatch
import json
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bayesian_active_learning.history.errors import (
    HistoryError,
    differences,
    to_json,
    writing,
)
from bayesian_active_learning.history.lock import LOCK, cell_lock
from bayesian_active_learning.utils import atomic_write, canonical_json, short_hash

CONFIG = "config.json"
LOG = "log.jsonl"
CLOCK = "clock.jsonl"
HASH_LENGTH = 10

# What `fresh` may delete; anything else in a run directory is somebody's.
_TEMPORARY = ".*.tmp"  # left by a killed `atomic_write`
_RUN_FILES = (
    CONFIG,
    LOCK,
    _TEMPORARY,
    "history.json",
    "history.csv",
    "history.xlsx",
    "summary.*",
    "comparison.*",
    "report.html",
    "*.png",
    "*.pdf",
    "*.svg",
)
_CELL_FILES = (LOG, CLOCK, LOCK, _TEMPORARY, "splits.json", "splits.npz", "params*.npz")
# What runs had before it was recorded.
_BEFORE_RECORDED = {"replicas": 1, "bayesian_active_learning": "0.1.0"}
_LOCK_WAIT = 10.0  # seconds; the run's own lock is held for one write only


class Run(NamedTuple):
    """An opened run directory. config: identity, identity_hash, environment (and
    also_run_in, other environments that went on with it). removed: the files that
    `fresh` deleted, relative to `path`."""

    path: pathlib.Path
    config: dict[str, Any]
    resumed: bool
    removed: tuple[str, ...] = ()


def default_run_name(identity: Mapping[str, Any]) -> str:
    """ "<dataset>-<hash of the identity>", fit for a file name."""
    dataset = str(identity["dataset"])
    if ":" in dataset:  # npz:PATH
        kind, _, place = dataset.partition(":")
        dataset = f"{kind}-{pathlib.PurePath(place).stem}"
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", dataset).strip("-.") or "run"
    return f"{slug}-{short_hash(to_json(identity), HASH_LENGTH)}"


def cell_directory(run: str | os.PathLike, function: str, seed: int) -> pathlib.Path:
    """RUN/<function>/<seed>; what no file name can hold is percent-encoded."""
    if function in ("", ".", "..") or _matches(function, _RUN_FILES):
        raise ValueError(f"{function!r} cannot name a directory of a run")
    return pathlib.Path(run) / urllib.parse.quote(function, safe=":,=+") / str(int(seed))


def list_cells(run: str | os.PathLike) -> dict[tuple[str, int], pathlib.Path]:
    """(function, seed) -> directory of every cell in a run, in order."""
    with _reading(run):
        return {
            (urllib.parse.unquote(function.name), int(cell.name)): pathlib.Path(cell)
            for function in _sorted(run)
            if function.is_dir(follow_symlinks=False)
            for cell in sorted(_sorted(function), key=lambda entry: entry.name.zfill(20))
            if cell.is_dir(follow_symlinks=False) and _is_seed(cell.name)
        }


def read_config(run: str | os.PathLike) -> dict[str, Any]:
    """RUN/config.json. Raises HistoryError where it is missing, damaged or edited."""
    path = pathlib.Path(run) / CONFIG
    advice = "restore it from a copy, or start anew (--fresh)"
    try:
        config = json.loads(path.read_bytes())
        identity, stated = config["identity"], config["identity_hash"]
        found = short_hash(identity, HASH_LENGTH)
        dict(config["environment"])
    except OSError as error:
        raise HistoryError(f"{run} is not a run: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryError(f"{path} is damaged ({error!r}); {advice}") from error
    if stated != found:
        raise HistoryError(f"{path} says hash {stated}, its identity has {found}; {advice}")
    return config


def open_run(
    directory: str | os.PathLike,
    identity: Mapping[str, Any],
    environment: Mapping[str, Any],
    *,
    fresh: bool = False,
    allow_other_environment: bool = False,
) -> Run:
    """Makes the run directory, or checks that this run may go on in it.

    identity: every setting that changes results and cannot be extended later.
    fresh: deletes an earlier run's files first; what they are stands in `removed`.
    Raises HistoryError, and changes nothing, when the directory holds another
    identity, was run in another environment (unless allowed; recorded then), is in
    use, holds files that are not a run's, or cannot be written.
    """
    path = pathlib.Path(directory)
    identity, environment = to_json(identity), to_json(environment)
    advice = "; choose another --output-dir"
    with writing(path, advice):
        path.mkdir(parents=True, exist_ok=True)
    with _reading(path):
        names = [entry.name for entry in _sorted(path)]
    known = any(name == CONFIG for name in names)
    strangers = [name for name in names if name != LOCK and not fnmatch.fnmatch(name, _TEMPORARY)]
    if not known and strangers:
        raise HistoryError(
            f"{path} is not empty and not a run (no {CONFIG}; it holds "
            f"{_listed(strangers)}){advice}"
        )
    with cell_lock(path, wait=_LOCK_WAIT), writing(path, advice):
        removed = _clear(path) if known and fresh else ()
        for name in names:
            if fnmatch.fnmatch(name, _TEMPORARY):
                (path / name).unlink(missing_ok=True)
        # Read again: another process may have been first.
        if (path / CONFIG).exists():
            return _continued(path, identity, environment, allow_other_environment)
        config = {
            "identity": identity,
            "identity_hash": short_hash(identity, HASH_LENGTH),
            "environment": environment,
        }
        _write_config(path, config)
        return Run(path, config, resumed=False, removed=removed)


def _continued(
    path: pathlib.Path, identity: Any, environment: Any, allow_other_environment: bool
) -> Run:
    config = read_config(path)
    lines = differences(config["identity"], identity)
    if lines:
        raise HistoryError(
            f"{path} holds another run (there -> now): {'; '.join(lines)}. Choose another "
            f"--output-dir, or delete that run with --fresh"
        )
    # What an older version did not record is no difference.
    began = {key: was for key, was in _BEFORE_RECORDED.items() if key in environment}
    began |= config["environment"]
    recorded = {key: environment[key] for key in environment if key in began}
    lines = differences(began, recorded)
    if lines and not allow_other_environment:
        raise HistoryError(
            f"{path} was run in another environment, so results may differ in their last bits "
            f"(there -> now): {'; '.join(lines)}. Go on in the first one, choose another "
            f"--output-dir, or accept it with --allow-other-environment"
        )
    if lines and environment not in config.get("also_run_in", []):
        config["also_run_in"] = [*config.get("also_run_in", []), environment]
        _write_config(path, config)
    return Run(path, config, resumed=True)


def _write_config(path: pathlib.Path, config: dict[str, Any]) -> None:
    with atomic_write(path / CONFIG) as file:
        file.write(json.dumps(json.loads(canonical_json(config)), indent=1) + "\n")


def _clear(path: pathlib.Path) -> tuple[str, ...]:
    """Deletes a run's files, all or none; CONFIG last, so that a kill leaves a run."""
    files: list[str] = []
    folders: list[pathlib.Path] = []
    unknown: list[str] = []
    for entry in _sorted(path):
        if entry.is_dir(follow_symlinks=False):
            folders.append(pathlib.Path(entry))
            for cell in _sorted(entry):
                if not (cell.is_dir(follow_symlinks=False) and _is_seed(cell.name)):
                    unknown.append(cell.path)
                    continue
                folders.append(pathlib.Path(cell))
                for inner in _sorted(cell):
                    (files if _is_file(inner, _CELL_FILES) else unknown).append(inner.path)
        else:
            (files if _is_file(entry, _RUN_FILES) else unknown).append(entry.path)
    names = [os.path.relpath(name, path) for name in unknown]
    if names:
        raise HistoryError(
            f"{path} holds files that no run makes ({_listed(names)}), so --fresh deletes "
            f"nothing; move them away or choose another --output-dir"
        )
    doomed = sorted(
        (name for name in files if os.path.basename(name) != LOCK),
        key=lambda name: (name == str(path / CONFIG), name),
    )
    with contextlib.ExitStack() as cells:
        for directory in list_cells(path).values():
            cells.enter_context(cell_lock(directory))
        for name in doomed:
            os.unlink(name)
    for folder in reversed(folders):
        folder.rmdir()
    return tuple(os.path.relpath(name, path) for name in doomed)


def _is_file(entry: "os.DirEntry[str]", patterns: tuple[str, ...]) -> bool:
    return entry.is_file(follow_symlinks=False) and _matches(entry.name, patterns)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_seed(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _sorted(path: Any) -> list["os.DirEntry[str]"]:
    with os.scandir(path) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@contextlib.contextmanager
def _reading(path: Any) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HistoryError(f"cannot read {path}: {error.strerror or error}") from error
