"""`python -m experiments.plot`, on runs made here."""

import pathlib

import pytest
from driver import CONFIG, digits, go
from PIL import Image

from bayesian_active_learning import data_utils, history, plotting
from experiments import compare, plot, refitted


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    from bayesian_active_learning import experiment

    place = tmp_path_factory.mktemp("plot") / "run"
    dataset = data_utils.load_digits()
    experiment.run(CONFIG, dataset, ["bald", "power:beta=2,score=bald", "random"], (0, 1, 2),
                   labels=20, directory=place)  # fmt: skip
    return place


def test_makes_every_figure(run: pathlib.Path, capsys):
    assert plot.main([str(run), "--band", "range"]) == 0
    printed = capsys.readouterr()
    made = {path.name for path in run.glob("*.png")}
    assert made >= {
        "learning_curves.png",
        "learning_curves_nll.png",
        "learning_curves_accuracy_mean.png",
        "labels_to_threshold.png",
        "penalty_matrix.png",
        "normalised_errors.png",
        "class_histogram.png",
        "acquired_bald.png",
        "acquired_random.png",
    }
    assert len([name for name in made if name.startswith("acquired_power")]) == 1
    for path in run.glob("*.png"):
        assert f"Written: {path}" in printed.out
        image = Image.open(path)
        assert "digits (8x8), NOT MNIST" in image.info["Description"]
        assert len(image.convert("L").getcolors()) > 10  # something is drawn
    assert printed.err == ""


def test_some_functions_alone(run: pathlib.Path, tmp_path, capsys):
    rest = ["--acquisition", "random", "--output", str(tmp_path)]
    assert plot.main([str(run), *rest]) == 0
    assert {path.name for path in tmp_path.glob("acquired_*.png")} == {"acquired_random.png"}
    assert compare.main([str(run), *rest]) == 0
    said = capsys.readouterr().out
    assert "random" in said and "bald" not in said


def test_figures_of_networks_are_of_those_of_that_round(
    run: pathlib.Path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(refitted, "NUM_UNLABELLED", 60)  # t-SNE takes its time
    assert plot.main([str(run), "--networks", "15", "--output", str(tmp_path)]) == 0
    made = sorted(path.name for path in tmp_path.glob("features_*.png"))
    assert len(made) == 3 and made[0] == "features_bald.png"
    assert len(Image.open(tmp_path / made[0]).convert("L").getcolors()) > 10
    for kind in ("reliability", "confusion"):
        assert len(list(tmp_path.glob(f"{kind}_*.png"))) == 3
    capsys.readouterr()
    assert plot.main([str(run), "--networks", "16", "--output", str(tmp_path)]) == 2
    assert "no round at 16 labels; there is 10, 15, 20" in capsys.readouterr().err


def test_predictions_are_those_that_the_run_evaluated(run: pathlib.Path, monkeypatch):
    monkeypatch.setattr(refitted, "NUM_UNLABELLED", 60)
    found = history.read_history(run)
    drawn = refitted.figures(found, data_utils.load_digits(), 20)
    _, axes = plotting.new_figure()
    drawn["confusion_random"](axes)
    words, title = axes.get_title().splitlines()
    accuracy = found.cells["random", 0].test["accuracy"][-1]
    assert words == "random, seed 0, 20 labels"
    assert title == f"accuracy {accuracy:.1%}, 539 rows"


def test_figures_of_networks_need_a_network_and_the_data(run: pathlib.Path, tmp_path, capsys):
    found = history.read_history(run)

    def refused(changes: dict) -> str:
        identity = {**found.config["identity"], **changes}
        changed = found._replace(config=found.config | {"identity": identity})
        history.write_history(tmp_path / "history.json", changed)
        assert plot.main([str(tmp_path / "history.json"), "--networks", "15"]) == 2
        return capsys.readouterr().err

    assert "its settings do not say fit" in refused({"fit": {}})
    assert "the runs scaled their data as 'otherwise', not as" in refused({"scaling": "otherwise"})
    assert "--networks needs the data of the runs" in refused({"dataset": "npz:mine.npz"})


def test_without_the_data_the_curves_are_drawn(tmp_path: pathlib.Path, capsys):
    found = go("random", labels=15)
    config = found.config | {"identity": found.config["identity"] | {"dataset": "npz:mine.npz"}}
    history.write_history(tmp_path / "history.json", found._replace(config=config))
    assert plot.main([str(tmp_path / "history.json"), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "No pictures of what was asked for: the runs are about npz:mine.npz" in printed.err
    assert (tmp_path / "out" / "learning_curves.png").exists()
    assert not (tmp_path / "out" / "class_histogram.png").exists()


def test_other_data_is_refused(tmp_path: pathlib.Path, capsys):
    found = go("random", labels=15)  # on a part of the digits
    assert digits().content_hash
    history.write_history(tmp_path / "history.json", found)
    config = found.config["identity"] | {"content_hash": "0" * 64}
    history.write_history(
        tmp_path / "history.json", found._replace(config=found.config | {"identity": config})
    )
    assert plot.main([str(tmp_path / "history.json"), "--data", "digits"]) == 2
    assert "rows would mean other examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (
            ["RUN", "--acquisition", "bald", "badge"],
            "unknown function of these runs: 'badge'; known: bald, power:beta=2,score=bald, random",
        ),
        (["RUN", "--band", "sd"], "unknown band 'sd'"),
        (["RUN", "--with-paper"], "the numbers of Gal et al. 2017 are about mnist"),
        (["RUN", "--thresholds", "90"], "thresholds are fractions such as 0.9"),
    ],
)
def test_refusals(run: pathlib.Path, arguments: list[str], message: str, tmp_path, capsys):
    command = [str(run) if each == "RUN" else each for each in arguments]
    assert plot.main([*command, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
