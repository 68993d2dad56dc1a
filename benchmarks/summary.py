"""What the JSON files say, as one Markdown table. Needs neither jax nor a peer."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a folder, by name of the benchmark."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """One row for each case and whom it is compared with; then machine and what is missing."""
    lines = ["| work | ours | beside | times ours: median (min to max) |", "|---|---|---|---|"]
    for record in records:
        for result in record["results"]:
            ours = f"{result['seconds']['ours']['median']:.3g} s"
            for beside, text in _rows(result):
                lines.append(f"| {result['case']} | {ours} | {beside} | {text} |")
    for record in records:
        machine = record["machine"]
        missing = ", ".join(record["missing"]) or "none"
        lines.append(
            f"\n{record['benchmark']} ({record['size']}): {machine['cpu_model']}, "
            f"{machine['num_cpus']} CPUs, Python {machine['python']}, jax {machine['jax']}, load "
            f"{machine['load_average'][0]} before; missing: {missing}."
        )
    return "\n".join(lines)


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, times in result["times_ours"].items():
        yield name, _words(times)
    for name, limit in result["limits"].items():
        share = {key: 100 * value for key, value in limit["share_reached"].items()}
        yield name, f"{_words(share)} % of it"
    for key, words in (
        ("microseconds_each", "microseconds each"),
        ("megabytes", "MB over baseline"),
        ("over_warm", "seconds over the same round warm"),
        ("milliseconds_a_step", "ms a step"),
    ):
        if key in result:
            yield words, _words(result[key])
    if not (result["times_ours"] or result["limits"] or "microseconds_each" in result):
        yield "", ""


def _words(values: Mapping[str, float]) -> str:
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"
