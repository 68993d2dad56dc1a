"""`python -m experiments.report RUN...`: one page of HTML that needs nothing else.

Settings, curves, labels to thresholds, statistics, what was asked for, and timings of one or
several runs, with all figures inside the file. Heavy imports wait until the options are read.
"""

import argparse
import base64
import html
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import plot
from experiments.command import exit_status, read

if TYPE_CHECKING:
    from bayesian_active_learning.history import History

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd;
         vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .78rem; line-height: 1.35; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .85rem; }
.notice { border-left: 4px solid #d55e00; padding-left: .8rem; }
"""


def parser() -> argparse.ArgumentParser:
    """The options of `python -m experiments.report`."""
    root = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description="One self-contained HTML page on one or several runs, which are joined: "
        "settings, curves, labels to thresholds, statistics, what was asked for, timings.",
    )
    add = root.add_argument
    plot.add_options(root)
    add(
        "--against",
        metavar="NAME",
        help="the function to compare with (default: random, or the first there is)",
    )
    add("--output", metavar="FILE", help="the page (default: report.html in the first run)")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; returns the exit status."""
    options = parser().parse_args(arguments)
    return exit_status(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    from bayesian_active_learning import history
    from bayesian_active_learning.utils import atomic_write

    found, folder = read(options.runs, options.acquisition)
    path = pathlib.Path(options.output) if options.output else folder / "report.html"
    functions = {name for name, _ in found.cells}
    clock = {name: laps for name, laps in seconds(options.runs).items() if name in functions}
    text = page(options, found, clock)
    with history.writing(path), atomic_write(path) as file:
        file.write(text)
    print(f"Written: {path} ({len(text) / 1e6:.1f} MB)")
    return 0


def page(
    options: argparse.Namespace, found: "History", clock: Mapping[str, Mapping[str, list[float]]]
) -> str:
    """The whole page. clock: function -> phase -> seconds of each round, see `seconds`."""
    from bayesian_active_learning import history, statistics

    by_function = history.curves_by_function(found)
    title = f"Active learning on {history.dataset_label(found)}: {', '.join(by_function)}"
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(history.caption(found))}.</p>"]
    parts += [f'<p class="notice">{_text(line)}</p>' for line in history.notice(found).splitlines()]

    parts.append("<h2>Labels to an accuracy</h2>")
    rows = history.summary_rows(found, options.thresholds)
    parts.append(_table(rows[0], rows[1:]))
    parts.append(
        "<p>Labels count the initial ones; medians over seeds, quartiles in brackets from 3 seeds "
        "on; a seed that does not get there counts as infinite.</p>"
    )

    parts.append("<h2>Figures</h2>")
    dataset = plot.dataset_of(options, found)
    for name, draw in plot.figures(options, found, dataset).items():
        parts.append(_figure(name, draw, history.caption(found)))

    if len(by_function) > 1:
        against = options.against or (
            "random" if "random" in by_function else next(iter(by_function))
        )
        compared = statistics.compare(
            found, against=against, thresholds=options.thresholds, bootstrap_seed=0
        )
        parts.append("<h2>Comparison</h2>")
        parts.append(f"<pre>{_text(statistics.describe(compared))}</pre>")

    if clock:
        parts.append("<h2>Seconds</h2>")
        phases = list(dict.fromkeys(phase for each in clock.values() for phase in each))
        lines = [
            [name, *(_seconds(each.get(phase, [])) for phase in phases)]
            for name, each in clock.items()
        ]
        parts.append(_table(["function", *(f"{phase}, a round" for phase in phases)], lines))
        parts.append(
            "<p>Median over rounds and seeds, and the sum in brackets; on machines that did other "
            "work too, and interrupted rounds counted.</p>"
        )

    parts.append("<h2>Settings</h2>")
    parts.append(_table(["setting", "value"], _flat(found.config.get("identity", {}))))
    environment = found.config.get("environment")
    if environment:
        parts.append("<h2>Environment</h2>")
        parts.append(_table(["", ""], _flat(environment)))
        others = len(found.config.get("also_run_in", []))
        if others:
            parts.append(f"<p>Parts of it were run in {others} other environment(s).</p>")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"</body>\n</html>\n"
    )


def seconds(runs: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """function -> phase -> the seconds of its rounds, where run directories have clocks."""
    from bayesian_active_learning import history

    found: dict[str, dict[str, list[float]]] = {}
    for run in map(pathlib.Path, runs):
        if not run.is_dir():
            continue
        for (name, _), place in history.list_cells(run).items():
            clock = place / history.CLOCK
            for line in clock.read_text(encoding="utf-8").splitlines() if clock.exists() else ():
                try:
                    lap = json.loads(line)
                    phase, value = str(lap["phase"]), float(lap["seconds"])
                except (ValueError, KeyError, TypeError):
                    continue  # cut off by a kill: a time, no result
                found.setdefault(name, {}).setdefault(phase, []).append(value)
    return found


def _figure(name: str, draw: Any, description: str) -> str:
    from bayesian_active_learning import plotting

    words = name.replace("_", " ")
    content = plotting.png(draw, title=words, description=description)
    encoded = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{_text(words)}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{_text(words)}</figcaption></figure>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    lines = [
        "<tr>"
        + "".join(
            f'<th scope="row">{_text(cell)}</th>' if not place else f"<td>{_text(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested settings, one a row."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > 20:
            rows.append([prefix + key, f"{len(value):,} values"])
        else:
            rows.append([prefix + key, str(value)])
    return rows


def _seconds(laps: Sequence[float]) -> str:
    if not laps:
        return "-"
    middle = sorted(laps)[len(laps) // 2]
    return f"{middle:.2f} ({sum(laps):,.0f})"


def _text(value: str) -> str:
    return html.escape(value)


if __name__ == "__main__":
    sys.exit(main())
