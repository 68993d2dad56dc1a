"""`python -m experiments.report`: one page that needs nothing else, also in a real browser."""

import base64
import html.parser
import io
import json
import pathlib
import re
import subprocess
import sys

import pytest
from driver import CONFIG
from histories import rising
from PIL import Image

from bayesian_active_learning import data_utils, experiment, history
from experiments import report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """Balanced tags, and what the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.images: list[bytes] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                kind, _, data = value.partition(",")
                if kind == "data:image/png;base64":
                    self.images.append(base64.b64decode(data, validate=True))
                else:
                    self.references.append(value)
        assert tag != "img" or dict(attributes)["alt"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "title", "h1", "p", "pre"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("report") / "run"
    experiment.run(
        CONFIG, data_utils.load_digits(), ["bald", "random"], (0, 1, 2), labels=20, directory=place
    )
    return place


def test_page_holds_everything_itself(run: pathlib.Path, capsys):
    assert report.main([str(run)]) == 0
    path = run / "report.html"
    assert f"Written: {path}" in capsys.readouterr().out
    page = Page(path.read_text(encoding="utf-8"))
    assert page.references == [] and "<script" not in path.read_text(encoding="utf-8")
    assert len(page.images) >= 8 + 3 + 1 + 2  # metrics, comparisons, classes, images
    for image in page.images:
        assert Image.open(io.BytesIO(image)).width > 500
    text = "\n".join(page.cells)
    for expected in (
        "Active learning on digits (8x8), NOT MNIST: bald, random",
        "nothing here says anything about MNIST or the paper",
        "90 % for 3 rounds",
        "Pairwise penalties",
        "fit, a round",
        "acquisition_size",
        "fit.min_steps",
        "jax",
    ):
        assert expected in text, expected
    assert experiment.run(  # the page is a run's own file: --fresh takes it away
        CONFIG, data_utils.load_digits(), ["random"], labels=10, directory=run, fresh=True
    )
    assert not path.exists()


def test_names_are_text_not_markup(tmp_path: pathlib.Path):
    name = "mine<script>&"
    history.write_history(tmp_path / "h.json", rising((name, "random"), num_rounds=5))
    out = tmp_path / "page.html"
    assert report.main([str(tmp_path / "h.json"), "--output", str(out), "--data", "digits"]) == 2
    assert report.main([str(tmp_path / "h.json"), "--output", str(out)]) == 0
    assert any(name in cell for cell in Page(out.read_text(encoding="utf-8")).cells)


def test_one_function_has_nothing_to_compare_with(tmp_path: pathlib.Path):
    history.write_history(tmp_path / "h.json", rising(("bald",), num_rounds=5))
    assert report.main([str(tmp_path / "h.json")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Comparison</h2>" not in text and "<h2>Seconds</h2>" not in text


def test_clocks_that_a_kill_cut_off_still_count(tmp_path: pathlib.Path):
    place = history.cell_directory(tmp_path, "bald", 0)
    place.mkdir(parents=True)
    lap = json.dumps({"round": 0, "phase": "fit", "seconds": 2.5})
    (place / history.CLOCK).write_text(f'{lap}\n{lap}\n{{"round": 1, "pha')
    assert report.seconds([str(tmp_path)]) == {"bald": {"fit": [2.5, 2.5]}}
    assert report.seconds([str(tmp_path / "history.json")]) == {}


def test_refusals(tmp_path: pathlib.Path, capsys):
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    history.write_history(tmp_path / "h.json", rising(("bald", "random"), num_rounds=5))
    assert report.main([str(tmp_path / "h.json"), "--against", "bold"]) == 2
    assert "bold" in capsys.readouterr().err


BROWSER = """
import json, os, sys
os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_DISABLE_SANDBOX": "1"}
from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication
app = QApplication(sys.argv)
view = QWebEngineView()
view.resize(int(sys.argv[2]), 900)
ask = '''JSON.stringify({
  title: document.title,
  shown: Array.from(document.images).map(i => i.complete && i.naturalWidth > 0),
  page: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length
})'''
def loaded(ok):
    view.page().runJavaScript(ask, lambda found: (print("FOUND", found), app.quit()))
view.loadFinished.connect(loaded)
view.load(QUrl.fromLocalFile(sys.argv[1]))
view.show()
QTimer.singleShot(60000, app.quit)
app.exec()
"""


@pytest.mark.parametrize("width", [400, 1100])
def test_in_a_browser(width: int, tmp_path: pathlib.Path):
    """Chromium, without a network: every image is there, and nothing is wider than the page."""
    pytest.importorskip("PySide6.QtWebEngineWidgets", reason="needs a browser: make browser")
    history.write_history(tmp_path / "h.json", rising(num_rounds=9))
    assert report.main([str(tmp_path / "h.json")]) == 0
    command = [sys.executable, "-c", BROWSER, str(tmp_path / "report.html"), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    answer = re.search(r"FOUND (\{.*\})", done.stdout)
    assert answer, done.stderr
    found = json.loads(answer[1])
    assert found["title"].startswith("Active learning on MNIST")
    assert len(found["shown"]) >= 5 and all(found["shown"])
    assert found["page"] <= found["window"] and found["requests"] == 0
