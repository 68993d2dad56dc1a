"""The command line of the experiments: options, presets, and what they mean."""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.command import add_run_options

SEEDS_HELP = "how many seeds (3 means 0 1 2), or a list of at least two, or ranges such as 5-9"


class Preset(NamedTuple):
    """Defaults of the options that differ between a first look and the paper."""

    summary: str
    acquisition: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: int
    settings: dict[str, Any]  # fields of experiment.Config
    fit: dict[str, Any]  # fields of training.FitConfig


PRESETS = {
    "quick": Preset(
        "BALD and random, one seed, 20 to 200 labels: a first look in minutes",
        ("bald", "random"),
        (0,),
        200,
        {"num_samples": 50, "num_test_samples": 10, "pool_size": 1000},
        {"min_steps": 200, "epochs": 0},
    ),
    "paper": Preset(
        "the paper's protocol: five functions, five seeds, 20 to 1,000 labels: hours on a CPU",
        ("bald", "variation_ratios", "max_entropy", "mean_std", "random"),
        (0, 1, 2, 3, 4),
        1000,
        {},
        {},
    ),
    # Kirsch, van Amersfoort & Gal (2019), section 4.1 and their code: an "epoch" is 5,056
    # examples, 79 steps. Theirs scores the whole pool: --pool-size 0.
    "batchbald": Preset(
        "the protocol and network of BatchBALD: BatchBALD, BALD and random, six seeds, 20 to "
        "300 labels: hours on a CPU",
        ("batch_bald", "bald", "random"),
        (0, 1, 2, 3, 4, 5),
        300,
        {"model": "batchbald_convnet", "num_validation": 1024, "learning_rate": 1e-3},
        {
            "batch_size": 64,
            "min_steps": 30 * 79,
            "epochs": 0,
            "schedule": "constant",
            "decay_coverage": "none",
            "monitor": "accuracy",
            "patience": 3,
            "check_every": 79,
        },
    ),
}

# option -> (default, help). The defaults stand here too, since `--help` imports nothing heavy;
# a test compares them with `experiment.Config` and `training.FitConfig`.
_SETTINGS: dict[str, tuple[Any, str]] = {
    "acquisition_size": (10, "labels asked for in each round"),
    "num_samples": (100, "posterior samples K when scoring the pool (the paper's T)"),
    "num_test_samples": (20, "posterior samples when evaluating"),
    "pool_size": (2000, "random subset of the pool scored each round; 0 = the whole pool"),
    "num_initial_per_class": (2, "size of the balanced initial set, per class"),
    "num_initial": (0, "rows of an initial set chosen without labels; 0 = as many as balanced"),
    "num_validation": (100, "validation rows, whose labels are not counted in the budget"),
    "model": (
        "convnet",
        "network: convnet (the paper's), batchbald_convnet (BatchBALD's), mlp or linear",
    ),
    "posterior": (
        "mc_dropout",
        "what gives K networks: mc_dropout, ensemble, laplace, swag or deterministic; with options "
        "as in ensemble:members=10 (see --list-posteriors)",
    ),
    "initial": (
        "balanced",
        "the initial set: balanced over classes, or as many rows chosen without labels by random, "
        "kmeans, typiclust, probcover, coreset or kmeans_pp",
    ),
    "learning_rate": (2e-3, "of Adam, at the first step"),
    "precision": (
        "float32",
        "of the network's matrix products: float32, tensorfloat32 or bfloat16; a CPU computes in "
        "float32 at each of them",
    ),
}
_FIT: dict[str, tuple[Any, str]] = {
    "batch_size": (32, "examples a step"),
    "min_steps": (400, "train for at least this many steps"),
    "epochs": (50.0, "and for at least this many passes over the labelled set"),
    "schedule": ("cosine", "of the learning rate: cosine (to 0 at the last step) or constant"),
    "decay_coverage": ("first_dense", "what decays: first_dense, weights, all or none"),
    "monitor": ("none", "early stopping on the validation set: none, nll or accuracy"),
    "patience": (5, "checks without a better value before stopping"),
    "check_every": (50, "steps between two checks"),
}


def parse_seeds(tokens: Sequence[str]) -> tuple[int, ...]:
    """`["3"]` -> (0, 1, 2); `["1", "4"]` -> (1, 4); `["5-7"]` -> (5, 6, 7).

    Raises ValueError on anything else.
    """
    if len(tokens) == 1 and tokens[0].isdecimal():
        count = int(tokens[0])
        if not count:
            raise ValueError("at least one seed is needed, got --seeds 0")
        return tuple(range(count))
    seeds: list[int] = []
    for token in tokens:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", token)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise ValueError(f"cannot read --seeds {' '.join(tokens)}: expected {SEEDS_HELP}")
        seeds.extend(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(seeds)


def parser() -> argparse.ArgumentParser:
    """The options of `python -m experiments.mnist_bald`."""
    root = argparse.ArgumentParser(
        prog="python -m experiments.mnist_bald",
        description="Deep Bayesian active learning on MNIST (Gal, Islam & Ghahramani 2017): start "
        "from a few labels, let each acquisition function choose the next ones, and draw its "
        "learning curve. The same command goes on where it was stopped.",
        epilog="presets: "
        + "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items())
        + ". An option given beside a preset wins.",
    )
    add = root.add_argument_group("what to compare").add_argument
    add("--preset", choices=PRESETS, default="quick", help="defaults for all else (default: quick)")
    add(
        "--acquisition",
        nargs="+",
        metavar="NAME",
        help="acquisition functions, name or name:key=value (see --list-acquisitions)",
    )
    add("--seeds", nargs="+", metavar="N", help=SEEDS_HELP)
    add(
        "--labels",
        type=int,
        metavar="N",
        help="label budget, initial set included; raise it later to go on",
    )
    add("--list-acquisitions", action="store_true", help="list the acquisition functions and exit")
    add("--list-posteriors", action="store_true", help="list the posteriors and exit")

    add = root.add_argument_group("protocol").add_argument
    for name, (default, text) in _SETTINGS.items():
        add(_flag(name), type=type(default), metavar="X", help=_help(name, default, text))
    add(
        "--warm-start",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="go on from the last round's parameters (the paper starts fresh)",
    )

    add = root.add_argument_group("training").add_argument
    for name, (default, text) in _FIT.items():
        add(_flag(name), type=type(default), metavar="X", help=_help(name, default, text))
    add(
        "--weight-decay",
        metavar="C",
        help='strength c of the penalty c/N |w|^2, or "auto": search it on the validation set '
        "(default: 2.5)",
    )

    add = root.add_argument_group("data").add_argument
    add(
        "--dataset",
        metavar="NAME",
        help="mnist, fashion_mnist, digits or npz:PATH; repeated_, curated_, unbalanced_ or "
        "redundant_ before one of the first three changes the pool, with options as in "
        "repeated_mnist:copies=4 (default: mnist if it can be had at once, else digits)",
    )
    add(
        "--data-dir",
        metavar="DIR",
        help="folder of the original .gz files or of tensorflow-datasets (default: BAL_DATA_DIR)",
    )
    add(
        "--index-sets",
        metavar="FILE",
        help="splits for all seeds from this .json or .npz; written there if it does not exist",
    )

    output = root.add_argument_group("output")
    add_run_options(output)
    add = output.add_argument
    add(
        "--save-parameters",
        action="store_true",
        help="keep each cell's last parameters as params.npz",
    )
    add(
        "--replicas",
        type=int,
        metavar="R",
        help="train and score R cells (a function with a seed) side by side in one program; 1 = "
        "one after another (default: as the run began; 1 on a CPU, all of them on accelerators)",
    )
    return root


def changes(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `Config` and of `FitConfig` that the preset and the options set."""
    preset = PRESETS[arguments.preset]

    def given(names: Sequence[str]) -> dict[str, Any]:
        values = {name: getattr(arguments, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    return preset.settings | given([*_SETTINGS, "warm_start"]), preset.fit | given([*_FIT])


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for beyond functions, seeds, labels and places of output."""
    names = ["dataset", "data_dir", "index_sets", *_SETTINGS, "warm_start", *_FIT, "weight_decay"]
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _help(name: str, default: Any, text: str) -> str:
    """The text with the default, and the presets' where they differ."""
    values = {key: (preset.settings | preset.fit).get(name) for key, preset in PRESETS.items()}
    other = "".join(f", {key}: {_shown(x)}" for key, x in values.items() if x is not None)
    return f"{text} (default: {_shown(default)}{other})"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
