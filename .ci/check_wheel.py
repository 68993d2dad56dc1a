"""Build the wheel and try it as a stranger would: an empty environment, another folder.

    python .ci/check_wheel.py requirements/py311.txt

The wheel is installed with its base dependencies only, at the versions of the given constraints.
Each README block of Python code that has the line ``<!-- wheel-test -->`` before its fence is
then run as a program of its own.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "bayesian_active_learning"
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MARKED_BLOCK = re.compile(r"^<!-- wheel-test -->\s*\n```python\n(.*?)^```", re.M | re.S)
MUST_BE_ABSENT = (
    "benchmarks",
    "experiments",
    "tests",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
)
ABSENT_CODE = """
import importlib.util, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
sys.exit(f"importable, and should not be: {found}" if found else 0)
"""


def run(*command: object, cwd: pathlib.Path) -> str:
    """Run a command in `cwd`, without the caller's Python settings; its output, or exit."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def copy_sources(target: pathlib.Path) -> None:
    """What git knows or would add: no leftover build folder can reach the wheel."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=REPOSITORY)
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def check_contents(wheel: pathlib.Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    strangers = [n for n in names if not re.match(rf"{PACKAGE}(-[^/]*\.dist-info)?/", n)]
    if strangers:
        sys.exit(f"{wheel.name} should hold {PACKAGE} only, and holds {strangers}")
    if f"{PACKAGE}/py.typed" not in names:
        sys.exit(f"{wheel.name} lacks {PACKAGE}/py.typed")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1000:.0f} kB")


def check_import(python: pathlib.Path, probe: pathlib.Path, elsewhere: pathlib.Path) -> None:
    report = json.loads(
        run(python, probe, PACKAGE, f"{PACKAGE}.acquisition_functions", cwd=elsewhere)
    )
    if report["devices_touched"] or report["heavy"]:
        sys.exit(f"importing the package should touch no device and nothing heavy: {report}")
    if not pathlib.Path(report["file"]).is_relative_to(python.parent.parent):
        sys.exit(f"the package was imported from {report['file']}, not from the wheel")
    print(f"imports in {report['processor_seconds']:.2f} s of the processor, no device touched")


def main(constraints: pathlib.Path) -> None:
    snippets = MARKED_BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    if not snippets:
        sys.exit("README.md has no ```python block after a line <!-- wheel-test -->")
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        top = pathlib.Path(folder).resolve()
        sources, dist, elsewhere = top / "sources", top / "dist", top / "elsewhere"
        sources.mkdir()
        elsewhere.mkdir()
        copy_sources(sources)
        pip = (sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check")
        run(*pip, "wheel", "--no-deps", "-w", dist, sources, cwd=top)
        (wheel,) = dist.glob("*.whl")
        check_contents(wheel)

        run(sys.executable, "-m", "venv", top / "venv", cwd=top)
        python = top / "venv" / "bin" / "python"
        pip = (python, "-m", "pip", "-qq", "--disable-pip-version-check")
        run(*pip, "install", "-c", constraints.resolve(), wheel, cwd=top)
        run(python, "-c", ABSENT_CODE, *MUST_BE_ABSENT, cwd=elsewhere)
        check_import(python, sources / "tests" / "import_probe.py", elsewhere)

        for number, snippet in enumerate(snippets, start=1):
            script = elsewhere / f"readme_{number}.py"
            script.write_text(snippet, encoding="utf-8")
            print(f"README snippet {number} of {len(snippets)}:")
            print(run(python, script, cwd=elsewhere), end="", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
