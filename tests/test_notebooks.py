"""The notebooks as they are committed: pairs that agree, with the outputs of a real run."""

import base64
import pathlib
import re

import jupytext
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
PLACES = re.compile(
    r"/(?:home|root|Users|mnt|work|tmp|opt|usr)/[\w.]|site-packages|\.venv| at 0x[0-9a-f]+"
)
MAX_BYTES = 1_500_000

pytestmark = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells_of(path: pathlib.Path) -> list:
    return jupytext.read(path).cells


def outputs_of(source: pathlib.Path) -> list:
    return [
        output
        for cell in cells_of(source.with_suffix(".ipynb"))
        for output in cell.get("outputs", ())
    ]


def texts_of(source: pathlib.Path) -> list[str]:
    """All that a run has written, pictures left out."""
    found = []
    for output in outputs_of(source):
        found += [output.get("text", "")]
        found += [str(data) for kind, data in output.get("data", {}).items() if kind != "image/png"]
    return found


def test_source_and_notebook_agree(source: pathlib.Path):
    pair = [
        [(cell.cell_type, cell.source) for cell in cells_of(path)]
        for path in (source, source.with_suffix(".ipynb"))
    ]
    assert pair[0] == pair[1], f"{source.name} has changed: make notebooks"


def test_all_of_it_ran_in_order(source: pathlib.Path):
    cells = cells_of(source.with_suffix(".ipynb"))
    counts = [cell.execution_count for cell in cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert all("execution" not in cell.metadata for cell in cells)  # times, which never repeat


def test_outputs_hold_pictures_and_no_error(source: pathlib.Path):
    outputs = outputs_of(source)
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    pictures = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert pictures
    for picture in pictures:
        assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_outputs_name_no_machine(source: pathlib.Path):
    assert [text for text in texts_of(source) if PLACES.search(text)] == []


def test_the_run_was_on_mnist(source: pathlib.Path):
    """Digits stand in where MNIST is not to be had; nothing of them is committed."""
    assert "data: mnist" in "".join(texts_of(source))


def test_size_is_modest(source: pathlib.Path):
    assert source.with_suffix(".ipynb").stat().st_size < MAX_BYTES


def test_scale_is_set_by_the_second_cell(source: pathlib.Path):
    _, second, *_ = cells_of(source)
    assert 'SCALE = os.environ.get("BAL_NOTEBOOK_SCALE", "default")' in second.source


def test_the_site_lists_it(source: pathlib.Path):
    page = (REPOSITORY / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert f"(../notebooks/{source.stem}.ipynb)" in page
