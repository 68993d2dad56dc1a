"""What the documentation says, held against the code."""

import argparse
import importlib
import pathlib
import pkgutil
import re
import shlex
import tomllib
from unittest import mock

import jax
import numpy as np
import pytest
from driver import go

import bayesian_active_learning
import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import data_utils, experiment, models, training
from bayesian_active_learning import specs as specs_of
from bayesian_active_learning.types import Candidates
from experiments.options import parse_seeds

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "acquisition_functions.md").read_text(encoding="utf-8")
HERE, ELSEWHERE_NAMED = PAGE.split("## From other toolkits")
ROWS = [line for line in HERE.splitlines() if line.startswith("| `")]
NEEDS = {  # words of the page -> fields of Candidates
    "scores": {"scores"},
    "log-probs": {"log_probs"},
    "target log-probs": {"target_log_probs"},
    "features": {"features"},
    "predictions": {"predictions"},
    "labelled": {"labelled_mask"},
    "input gradients": {"input_gradients"},
    "committee": {"committee_log_probs"},
    "VAE": {"unlabelled_log_odds"},
    "latents": {"latents"},
    "nothing": set(),
}


def test_every_name_stands_in_the_table_once():
    named = [name for line in ROWS for name in re.findall("`([a-z_]+)`", line.split("|")[1])]
    assert sorted(named) == sorted(af.STRATEGIES)


@pytest.mark.parametrize("line", ROWS, ids=lambda line: line.split("`")[1])
def test_needs_are_as_stated(line: str):
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    stated = set().union(*(NEEDS[word.strip()] for word in cells[2].split(",")))
    for name in re.findall("`([a-z_]+)`", cells[0]):
        needs = af.make_strategy(name).needs
        implied = (
            {"labelled_mask"} if any(need.startswith("labelled_") for need in needs) else set()
        )
        shown = {need for need in needs if not need.startswith("labelled_")}
        assert stated == shown | implied, name
        assert cells[5] == af.STRATEGIES[name].paper
    assert len(cells) == 6 and all(cells)


def test_what_other_toolkits_have_is_named_as_it_is_here():
    """Each spec of the tables makes a strategy, and each option of ours that a row gives exists."""
    part = ELSEWHERE_NAMED.split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    names = [spec for row in rows for spec in re.findall("`([a-z_]+(?::[^`]*)?)`", row[1])]
    made = [spec for spec in names if spec.partition(":")[0] in af.STRATEGIES]
    assert len(made) > 25 and len(rows) > 35
    for spec in made:
        text = re.sub(r"=\.\.\.", "=?", spec)
        given = [item.split("=") for item in text.partition(":")[2].split(",") if item]
        known = specs_of.defaults(af.STRATEGIES[spec.partition(":")[0]].make)
        assert {key for key, _ in given} <= set(known), spec
        fixed = ",".join(f"{key}={value}" for key, value in given if value != "?")
        af.make_strategy(spec.partition(":")[0] + ":" * bool(fixed) + fixed)


def test_shares_of_softrank_are_those_of_the_margin_buckets():
    """As the page says of MarginSampler: 60, 30 and 10 % from the buckets of ranks."""
    chances = np.arange(1, 2001) ** -0.6 / np.sum(np.arange(1, 2001) ** -0.6)
    shares = [part.sum() for part in np.split(chances, [600, 1400])]
    np.testing.assert_allclose(shares, [0.60, 0.26, 0.14], atol=0.005)
    strategy = af.make_strategy("softrank:score=margin,beta=0.6")
    candidates = Candidates(
        np.arange(2000, dtype=np.int32),
        np.ones(2000, bool),
        scores=np.linspace(1, 0, 2000, dtype=np.float32),
    )
    keys = jax.random.split(jax.random.key(0), 300)
    select = jax.jit(
        jax.vmap(lambda key: strategy.select(key, candidates, batch_size=10).positions)
    )
    counts = np.histogram(select(keys), bins=[0, 600, 1400, 2000])[0]
    np.testing.assert_allclose(counts / 3000, shares, atol=0.04)  # 4 standard deviations


def test_the_example_of_ones_own_runs():
    (code,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    place: dict = {}
    exec(code, place)  # the page's own words
    found = go("second_moment", "bald", labels=15, strategies=place["strategies"])
    assert set(found.cells) == {("second_moment", 0), ("bald", 0)}
    log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 3, 5)))
    expected = np.exp(log_probs).var(axis=1).sum(axis=-1)
    np.testing.assert_allclose(place["second_moment"](log_probs), expected, rtol=1e-5)


TEXTS = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in (REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in path.parts
}
ELSEWHERE = {"README.md", "docs/other_frameworks.md"}  # run below, and in test_other_frameworks.py
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = {
    name: [body for language, body in FENCE.findall(text) if language == "python"]
    for name, text in TEXTS.items()
    if name not in ELSEWHERE
}
COMMANDS = [
    (name, line.strip())
    for name, text in TEXTS.items()
    for language, body in FENCE.findall(text)
    if language in ("", "console", "sh", "bash")
    for line in body.replace("\\\n", " ").splitlines()
    if re.search(r"-m experiments\.", line)
]


@pytest.mark.parametrize("name", [name for name, blocks in CODE.items() if blocks])
def test_the_code_of_a_page_runs(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """The blocks of a page in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    place = {"__name__": "documentation"}
    with mock.patch.dict(models.MODELS):  # a page adds one
        for block in CODE[name]:
            exec(compile(block, name, "exec"), place)


def test_the_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch):
    """What `.ci/check_wheel.py` does not run: with small data in the place of MNIST."""
    blocks = re.findall(
        r"^(<!-- wheel-test -->\s*)?```python\n(.*?)^```", TEXTS["README.md"], re.M | re.S
    )
    left = [block for marked, block in blocks if not marked]
    small = experiment.Config(
        model="mlp",
        num_validation=0,
        num_samples=20,
        pool_size=200,
        fit=training.FitConfig(epochs=0, min_steps=50),
    )  # as on the pages: compiled already
    monkeypatch.setattr(data_utils, "load_dataset", lambda *_: data_utils.load_digits())
    monkeypatch.setattr(experiment, "Config", lambda: small)
    assert left
    for block in left:
        exec(compile(block, "README.md", "exec"), {"__name__": "documentation"})


def options_of(module: str, words: list[str], patch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the module's own parser makes of the words; it exits on those it does not know."""
    script = importlib.import_module(module)
    if hasattr(script, "parser"):
        return script.parser().parse_args(words)
    found: list[argparse.Namespace] = []
    patch.setattr(script, "_study", lambda options: found.append(options) or 0)
    script.main(words)
    return found[0]


@pytest.mark.parametrize("name, line", COMMANDS, ids=[line for _, line in COMMANDS])
def test_a_command_is_one(name: str, line: str, monkeypatch: pytest.MonkeyPatch):
    words = shlex.split(line)
    start = words.index("-m") + 1
    options = vars(options_of(words[start], words[start + 1 :], monkeypatch))
    if options.get("seeds"):
        parse_seeds(options["seeds"])
    for each in options.get("acquisition") or ():
        af.make_strategy(each, {**af.STRATEGIES, **af.UPPER_BOUNDS})


def test_every_module_has_its_place_in_the_reference():
    text = "".join(text for name, text in TEXTS.items() if name.startswith("docs/api/"))
    modules = {module.name for module in pkgutil.iter_modules(bayesian_active_learning.__path__)}
    named = set(re.findall(rf"{bayesian_active_learning.__name__}\.(\w+)", text))
    assert named == modules


@pytest.mark.parametrize(
    "pins", sorted((REPOSITORY / "requirements").glob("py*.txt")), ids=lambda path: path.stem
)
def test_what_builds_the_site_and_runs_the_notebooks_is_pinned(pins: pathlib.Path):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [
        line for extra in ("docs", "notebooks") for line in project["optional-dependencies"][extra]
    ]
    asked = {re.match(r"[\w-]+", line)[0] for line in lines} - {project["name"]}
    pinned = {line.split("==")[0].lower() for line in pins.read_text().splitlines()}
    assert asked <= pinned
