import io
import pathlib
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from histories import curve, history, rising
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from bayesian_active_learning import plotting
from bayesian_active_learning.acquisition_functions import STRATEGIES
from bayesian_active_learning.history import History, HistoryError
from bayesian_active_learning.plotting import styles

FUNCTIONS = ("bald", "random")


def axes_of(what: History, draw=plotting.learning_curves, **options):
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    draw(axes, what, **options)
    figure.canvas.draw()
    return axes


def texts(figure: Figure) -> list[str]:
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text.get_text() for text in found if text.get_text()]


def legend_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def line_of(axes, name: str):
    style = plotting.function_styles([name])[name]
    filled = [
        line
        for line in axes.lines
        if line.get_marker() == style.marker and line.get_linestyle() != "None"
    ]
    (found,) = filled
    return found


# Styles.


KNOWN = [name for name in STRATEGIES if name in styles._STYLES]


def test_styles_differ_in_grey():
    names = [*KNOWN, "mine", "power:score=margin,beta=8", *(f"f{n}" for n in range(20))]
    found = plotting.function_styles(names)
    assert list(found) == names
    assert len({(str(style.dash), style.marker) for style in found.values()}) == len(names)


def test_known_functions_keep_their_styles():
    alone = {name: plotting.function_styles([name])[name] for name in KNOWN}
    assert set(styles.PAPER_LABELS) < set(alone)
    assert plotting.function_styles(["mine", *reversed(KNOWN)]).items() >= alone.items()
    papers = [alone[name] for name in styles.PAPER_LABELS]
    assert len({style.colour for style in papers}) == len(papers)
    assert len({style.dash for style in papers}) == len(papers)
    compared = [alone[name].colour for name in (*styles._HEADLINE, "bald", "random")]
    assert len(set(compared)) == len(compared)
    other = plotting.function_styles(["mine"])["mine"]
    assert plotting.function_styles(["mine", "bald"])["mine"] == other
    assert other.colour not in {style.colour for style in papers}


def test_options_change_no_style_where_a_function_is_there_once():
    own = plotting.function_styles(["epig"])["epig"]
    assert plotting.function_styles(["bald", "epig:targets=test"])["epig:targets=test"] == own
    both = plotting.function_styles(["epig:targets=test", "epig", "epig:num_targets=9"])
    assert both["epig"] == own and len(set(both.values())) == 3
    assert styles.function_label("epig:targets=test") == "EPIG (targets=test)"
    assert styles.function_label("power:score=margin") == "power:score=margin"


def test_too_many_functions_are_refused():
    with pytest.raises(ValueError, match="40 functions cannot be told apart in one figure"):
        plotting.function_styles(f"f{number}" for number in range(40))


# Learning curves.


def test_styles_of_ones_own_come_first():
    mine = plotting.Style("#123456", (0, (5, 1)), "X")
    names = [f"bald, {size} at a time" for size in range(40)]  # more than have a style
    many = rising(names, num_seeds=1, num_rounds=3)
    axes = axes_of(many, styles=dict.fromkeys(names[:-1], mine), thresholds=())
    colours = [line.get_color() for line in axes.lines if line.get_marker() != "None"]
    assert colours[:39] == [mine.colour] * 39 and colours[39] != mine.colour
    axes = axes_of(rising(FUNCTIONS, num_rounds=3), styles={"bald": mine})
    assert line_of(axes, "random").get_color() == "#000000"
    assert mine.colour in [line.get_color() for line in axes.lines]


def test_few_labels_are_counted_in_whole_numbers():
    few = rising(FUNCTIONS, num_rounds=3)
    for each in few.cells.values():
        each.labels[:] = [4, 5, 6]
    ticks = axes_of(few).get_xticks()
    assert len(ticks) and (ticks == ticks.round()).all()


def test_a_caption_and_a_size_of_ones_own():
    figure = plotting.learning_curves_figure(
        rising(num_rounds=3), words="Two protocols.", inches=(9.0, 4.0)
    )
    assert "Two protocols." in texts(figure)
    assert figure.get_size_inches().tolist() == [9, 4]


def test_median_and_quartiles():
    what = rising(FUNCTIONS, num_rounds=9)
    axes = axes_of(what)
    values = 100 * np.array([what.cells["bald", seed].test["accuracy"] for seed in range(5)])
    line = line_of(axes, "bald")
    np.testing.assert_allclose(line.get_xdata(), 20 + 10 * np.arange(9))
    np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(np.quantile(values, 0.25, axis=0).min())
    assert corners[:, 1].max() == pytest.approx(np.quantile(values, 0.75, axis=0).max())
    assert axes.get_legend().get_title().get_text() == "median and quartiles over seeds"
    assert legend_of(axes) == ["BALD, 5 seeds", "random, 5 seeds"]


def test_mean_and_interval():
    values = np.array([50, 53, 49, 55, 52])
    what = history({("bald", seed): [value / 100] for seed, value in enumerate(values)})
    axes = axes_of(what, band="ci")
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    expected = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    np.testing.assert_allclose(line_of(axes, "bald").get_ydata(), values.mean())
    np.testing.assert_allclose([edges.min(), edges.max()], expected, rtol=1e-4)


def test_bands_stay_within_the_possible():
    what = history({("bald", 0): [0.99], ("bald", 1): [0.9], ("bald", 2): [0.01]})
    edges = axes_of(what, band="ci").collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0, 100)


def test_axes_name_data_units_and_validation_labels():
    axes = axes_of(rising(FUNCTIONS, num_rounds=3))
    assert axes.get_title() == "MNIST"
    assert axes.get_xlabel() == "labels (initial ones included; 100 validation labels not counted)"
    assert axes.get_ylabel() == "test accuracy (%)"
    assert {"90 %", "95 %"} <= set(texts(axes.figure))


@pytest.mark.parametrize(
    "metric, words", [("nll", "test NLL (nats)"), ("nll_mean", "test NLL (nats), dropout off")]
)
def test_other_metrics_have_other_units_and_no_thresholds(metric: str, words: str):
    what = rising(FUNCTIONS, num_rounds=3)
    for found in what.cells.values():
        found.test["nll_mean"] = found.test["nll"] / 2
    axes = axes_of(what, metric=metric)
    assert axes.get_ylabel() == words
    assert not {"90 %", "95 %"} & set(texts(axes.figure))
    assert line_of(axes, "bald").get_ydata().max() < 1


def test_digits_cannot_be_taken_for_mnist():
    what = rising(FUNCTIONS, num_rounds=3, dataset="digits")
    found = texts(plotting.learning_curves_figure(what))
    assert "digits (8x8), NOT MNIST" in found
    assert any(text.startswith("digits (8x8), NOT MNIST, seeds 0-4") for text in found)
    assert all("NOT MNIST" in text for text in found if "MNIST" in text)


def test_one_seed_is_a_plain_line_and_says_so():
    axes = axes_of(rising(FUNCTIONS, num_seeds=1, num_rounds=4))
    assert not axes.collections
    assert legend_of(axes) == ["BALD, 1 seed", "random, 1 seed"]
    assert axes.get_legend().get_title().get_text() == "one seed: no band"
    assert len(axes.lines) == 4  # two functions, two thresholds


@pytest.mark.parametrize(
    "num_seeds, band, title",
    [
        (2, "quartiles", "median over seeds"),
        (2, "ci", "mean over seeds"),
        (2, "range", "median, lowest and highest seed"),
        (3, "quartiles", "median and quartiles over seeds"),
        (5, "none", "median over seeds"),
    ],
)
def test_bands_need_seeds(num_seeds: int, band: str, title: str):
    axes = axes_of(rising(["bald"], num_seeds, 4), band=band, thresholds=())
    assert axes.get_legend().get_title().get_text() == title
    assert len(axes.collections) == (title == plotting.BANDS[band] and band != "none")
    assert len(axes.lines) == 1 + (num_seeds if num_seeds <= 3 else 0)  # faint single seeds


def test_unequal_seeds_are_drawn_where_all_have_a_value():
    what = rising(FUNCTIONS, num_rounds=10)
    what.cells["bald", 3] = curve([0.5, 0.6, 0.7])
    axes = axes_of(what, thresholds=())
    assert line_of(axes, "bald").get_xdata().tolist() == [20, 30, 40]
    assert legend_of(axes)[0] == "BALD, 5 seeds,\nall of them to 40 labels"
    assert sum(len(line.get_xdata()) == 10 for line in axes.lines) == 4 + 1


def test_seeds_without_a_common_label_count():
    what = history({("bald", 0): [0.5]})
    what.cells["bald", 1] = curve([0.6], first=7)
    assert legend_of(axes_of(what)) == ["BALD, 2 seeds,\nno label count in common"]


def test_missing_values_leave_gaps_not_errors():
    what = history({("bald", 0): [0.5, np.nan, 0.7]})
    assert line_of(axes_of(what), "bald").get_xdata().tolist() == [20, 40]
    assert axes_of(history({("bald", 0): [np.nan]}), thresholds=()).get_ylim() == (0, 101)


def test_a_cell_without_rounds_is_left_out():
    assert legend_of(axes_of(history({("bald", 0): [0.5], ("random", 0): []}))) == ["BALD, 1 seed"]


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "power:score=margin,beta=8"])
def test_any_name_is_shown_as_it_is(name: str):
    axes = axes_of(history({(name, 0): [0.5, 0.6]}, dataset=f"npz:{name}.npz"))
    assert legend_of(axes)[0].replace("\\", "").strip() == f"{name}, 1 seed"
    assert axes.get_title().replace("\\", "") == f"npz:{name}.npz"
    if "$" in name:
        assert not axes.get_legend().get_texts()[0]._preprocess_math(legend_of(axes)[0])[1]


# References.


def test_references_are_hollow_markers_with_the_papers_name():
    axes = axes_of(rising(), references=plotting.PAPER_LABELS)
    style = plotting.function_styles(["bald"])["bald"]
    points = [
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_linestyle() == "None" and line.get_markeredgecolor() == style.colour
    ]
    assert points == [(145, 90), (335, 95)]
    assert legend_of(axes)[-1] == "hollow: Gal et al. 2017"


def test_references_beyond_the_budget_are_counted_not_drawn():
    axes = axes_of(rising(FUNCTIONS, num_rounds=20), references=plotting.PAPER_LABELS)
    assert legend_of(axes)[-1] == "hollow: Gal et al. 2017,\n3 of 4 beyond 210 labels"
    assert axes.get_xlim()[1] < 250


def test_references_to_functions_that_are_not_drawn():
    axes = axes_of(rising(["mine"], num_rounds=3), references=plotting.PAPER_LABELS)
    assert legend_of(axes) == ["mine, 5 seeds"]


@pytest.mark.parametrize("draw", [plotting.learning_curves, plotting.labels_to_threshold_plot])
@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist", ""])
def test_the_papers_numbers_stand_beside_mnist_only(draw, dataset: str):
    what = rising(FUNCTIONS, num_rounds=3, dataset=dataset)
    with pytest.raises(ValueError, match="Gal et al. 2017 are about mnist, this history is about"):
        axes_of(what, draw, references=plotting.PAPER_LABELS)


def test_references_to_other_data():
    axes = axes_of(
        rising(["mine"], num_rounds=9, dataset="digits"),
        references={"mine": {0.9: 40}},
        references_name="ours, 2020",
        references_dataset="digits",
    )
    assert legend_of(axes)[-1] == "hollow: ours, 2020"


# Refusals.


@pytest.mark.parametrize(
    "options, message",
    [
        ({"band": "sd"}, "unknown band 'sd'; known: quartiles, ci, range, none"),
        ({"metric": "f1"}, "has no test metric 'f1'; it has accuracy, nll"),
        ({"thresholds": (90,)}, r"thresholds are fractions such as 0.9, got \[90\]"),
        ({"metric": "nll", "references": {}}, "labels to an accuracy, the metric is 'nll'"),
    ],
)
def test_refusals(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        axes_of(rising(FUNCTIONS, num_rounds=2), **options)


@pytest.mark.parametrize("draw", [plotting.learning_curves, plotting.labels_to_threshold_plot])
def test_an_empty_history_is_refused(draw):
    with pytest.raises(ValueError, match="no round has been evaluated yet"):
        axes_of(History({}, {}), draw)


def test_no_thresholds_are_refused():
    with pytest.raises(ValueError, match="no thresholds to draw labels to"):
        axes_of(rising(num_rounds=2), plotting.labels_to_threshold_plot, thresholds=())


# Labels to thresholds.


def test_labels_to_thresholds_beside_the_papers():
    axes = axes_of(
        rising(), plotting.labels_to_threshold_plot, references=plotting.PAPER_LABELS, sustained=3
    )
    found = texts(axes.figure)
    assert axes.get_title() == "MNIST: labels to a test accuracy, kept for 3 rounds"
    assert {"BALD, 90 %", "random, 95 %", "145", "835", "Gal et al. 2017"} <= set(found)
    assert "median and quartiles of 5 seeds" in found
    assert axes.get_xlim()[1] > 1000


def test_labels_to_thresholds_that_some_do_not_reach():
    what = history(
        {
            **{
                ("bald", seed): values for seed, values in enumerate([[0.9], [0.1, 0.9], [0.1] * 3])
            },
            **{("random", seed): values for seed, values in enumerate([[0.9], [0.1], [0.1]])},
            **{("mine", seed): [0.1] for seed in range(3)},
        }
    )
    found = texts(axes_of(what, plotting.labels_to_threshold_plot, thresholds=[0.9]).figure)
    words = {"30 (2 of 3 seeds)", "only 1 of 3 seeds by 20 labels", "not reached by 20 labels"}
    assert words <= set(found)


def test_labels_to_thresholds_of_one_seed():
    what = history({("bald", 0): [0.5, 0.96]})
    found = texts(axes_of(what, plotting.labels_to_threshold_plot).figure)
    assert "1 seed" in found and found.count("30") >= 2


# Whole figures and files.


CASES = {
    "five": lambda: rising(),
    "first look": lambda: rising(FUNCTIONS, num_seeds=1, num_rounds=11),
    "digits": lambda: rising(num_seeds=3, num_rounds=28, dataset="digits"),
    "unlike": lambda: history(
        {
            **{("bald", seed): np.linspace(0.05, 0.97, 29) for seed in range(7)},
            **{("random", seed): np.linspace(0.97, 0.05, 29) for seed in range(5)},
        }
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_off_and_the_legend_covers_no_curve(case: str):
    what = CASES[case]()
    paper = None if case == "digits" else plotting.PAPER_LABELS
    figure = plotting.learning_curves_figure(what, references=paper)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    assert (width, height) == (975, 630)
    used = figure.get_tightbbox()  # inches
    assert used.x0 >= 0 and used.y0 >= 0
    assert used.x1 <= figure.get_figwidth() and used.y1 <= figure.get_figheight()
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent()
    for name in {function for function, _ in what.cells}:
        line = line_of(axes, name)
        path = line.get_transform().transform_path(line.get_path())
        assert not path.intersects_bbox(legend, filled=False)


def test_saved_png(tmp_path: pathlib.Path):
    path = tmp_path / "new" / "learning_curves.png"
    plotting.save_learning_curves(path, rising(), references=plotting.PAPER_LABELS)
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert image.size == (975, 630)
    assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert image.info["Description"] == plotting.caption(rising())
    assert "Software" not in image.info
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_equal_histories_give_equal_bytes(tmp_path: pathlib.Path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    plotting.save_learning_curves(paths[0], rising(FUNCTIONS, num_rounds=9))
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        plotting.save_learning_curves(paths[1], rising(FUNCTIONS, num_rounds=9))
        assert dict(matplotlib.rcParams) == before
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_pyplot_is_left_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    plotting.save_learning_curves(tmp_path / "a.png", rising(FUNCTIONS, num_rounds=3))


def test_save_refusals(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    what = rising(FUNCTIONS, num_rounds=3)
    with pytest.raises(ValueError, match=r"expected a path that ends in \.png, got .*a\.pdf"):
        plotting.save_learning_curves(tmp_path / "a.pdf", what)
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match=r"cannot write .*a\.png"):
        plotting.save_learning_curves(tmp_path / "file" / "a.png", what)
    with pytest.raises(ValueError, match="unknown band"):
        plotting.save_learning_curves(tmp_path / "a.png", what, band="sd")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HistoryError, match="figures need matplotlib, which is not installed"):
        plotting.save_learning_curves(tmp_path / "a.png", what)
    assert not (tmp_path / "a.png").exists()


def test_matplotlib_is_not_imported_with_the_module():
    code = "import sys; from bayesian_active_learning import plotting; plotting.caption; "
    code += "sys.exit('matplotlib' in sys.modules)"
    root = pathlib.Path(plotting.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
