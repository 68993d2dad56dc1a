"""All benchmarks one after another, each in a process of its own, then one table of them.

python -m benchmarks --quick       minutes
python -m benchmarks               about an hour; writes benchmarks/results/*.json
python -m benchmarks --table       the table alone, from the files that are there
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import summary

NAMES = ("startup", "mc_scoring", "training", "batch_selection", "experiment", "replicas", "scale")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--quick", action="store_true", help="small sizes: minutes")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args(arguments)
    size = "quick" if options.quick else "full"
    folder = summary.RESULTS if size == "full" else summary.RESULTS / size
    failed = []
    for name in [] if options.table else options.only:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--size", size]
        root = pathlib.Path(__file__).resolve().parent.parent
        if subprocess.run(command, cwd=root, check=False).returncode:
            failed.append(name)
    print("\n" + summary.markdown(summary.read(folder)))
    for name in failed:
        print(f"failed: benchmarks.{name}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
