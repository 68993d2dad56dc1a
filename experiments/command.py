"""What the commands share: exit statuses, options about output, and reading runs."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesian_active_learning.history import History

INTERRUPTED = 130  # what shells report for Ctrl-C


def exit_status(work: Callable[[], int], *, when_stopped: str | None = None) -> int:
    """That of `work`, or 2 for what was asked for and 1 for what went wrong, said on stderr.

    when_stopped: what to say at Ctrl-C, which is not caught without it.
    """
    try:
        return work()
    except KeyboardInterrupt:
        if when_stopped is None:
            raise
        print(f"\n{when_stopped}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def print_table(table: Mapping[str, Any]) -> None:
    """Names with their summaries, papers, and options with defaults."""
    from bayesian_active_learning.specs import defaults

    width = max(map(len, table))
    for name, spec in table.items():
        paper = "" if spec.paper == "none" else f" ({spec.paper})"
        print(f"{name:{width}}  {spec.summary}{paper}")
        settings = ",".join(f"{key}={value}" for key, value in defaults(spec.make).items())
        if settings:
            print(f"{'':{width}}  {name}:{settings}")


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """Where a run is kept, and what becomes of the one that is there."""
    add = group.add_argument
    add("--output-dir", metavar="DIR", help="run directory (default: runs/<dataset>-<hash>)")
    add("--fresh", action="store_true", help="delete the run that is there and start anew")
    add(
        "--allow-other-environment",
        action="store_true",
        help="go on with a run that another machine or other package versions began",
    )
    add("--quiet", action="store_true", help="no progress bar, no table: only what went wrong")


def add_which(root: argparse.ArgumentParser) -> None:
    """What is read: runs, and functions of them."""
    add = root.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory, or a saved history.json")
    add(
        "--acquisition",
        nargs="+",
        metavar="NAME",
        help="these functions alone, as the runs name them (default: all)",
    )


def read(
    runs: Sequence[str], functions: Sequence[str] | None = None
) -> "tuple[History, pathlib.Path]":
    """Run directories or saved histories as one history, and the folder of the first.

    functions: those to keep, in any order; all when None. Raises ValueError for others.
    """
    from bayesian_active_learning import history
    from bayesian_active_learning.utils import check_one_of

    places = [pathlib.Path(run) for run in runs]
    histories = {
        str(place): history.load_history(place) if place.is_file() else history.read_history(place)
        for place in places
    }
    first = places[0].parent if places[0].is_file() else places[0]
    joined = history.join_histories(histories)
    if functions is None:
        return joined, first
    known = dict.fromkeys(name for name, _ in joined.cells)
    for name in functions:
        check_one_of("function of these runs:", name, known)
    kept = {place: curve for place, curve in joined.cells.items() if place[0] in functions}
    return joined._replace(cells=kept), first
