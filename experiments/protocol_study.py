"""`python -m experiments.protocol_study`: which details of the protocol matter.

The training part fits one network for every variant, number of labels and seed, on
random labelled sets that all variants share, and compares them on the validation and
test sets. The acquisition part runs the whole loop for variants of what surrounds the
training. Both compare in pairs with the protocol of `--preset paper`, go on where they
were stopped, and write a table.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesian_active_learning import data_utils, experiment, inference, metrics, training, tuning
from bayesian_active_learning.history import Curve, labels_to_threshold, mean_interval
from bayesian_active_learning.utils import atomic_write, short_hash
from experiments.command import exit_status
from experiments.options import parse_seeds

LABELS = (60, 250)  # sizes of the random labelled sets
RAW = "inputs in 0..1"

# name -> what differs from the protocol
TRAINING: dict[str, dict[str, Any]] = {
    "protocol": {},
    RAW: {},
    "200 steps": {"min_steps": 200, "epochs": 0},
    "800 steps": {"min_steps": 800},
    "constant learning rate": {"schedule": "constant"},
    "constant learning rate, 1,000 steps": {"schedule": "constant", "min_steps": 1000},
    "early stopping, at most 800 steps": {"min_steps": 800, "monitor": "nll", "patience": 3},
    "batches of 64, 200 steps": {"batch_size": 64, "min_steps": 200, "epochs": 0},
    "all weights decayed, c = 1": {"decay_coverage": "weights", "weight_decay": 1.0},
    "all weights decayed, c = 2.5": {"decay_coverage": "weights"},
    **{
        f"c = {strength:g}": {"weight_decay": strength}
        for strength in tuning.STRENGTHS
        if strength != training.FitConfig().weight_decay
    },
}
ACQUISITION: dict[str, tuple[str, dict[str, Any]]] = {
    "protocol": ("bald", {}),
    "random": ("random", {}),
    "K = 20": ("bald", {"num_samples": 20}),
    "K = 20, whole pool": ("bald", {"num_samples": 20, "pool_size": 0}),
    "variation ratios": ("variation_ratios", {}),
    "variation ratios, author's": ("variation_ratios_mode", {}),
    "warm start": ("bald", {"warm_start": True}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.protocol_study", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("part", choices=("training", "acquisition"))
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the original MNIST files")
    parser.add_argument("--seeds", nargs="+", default=["5"], metavar="N")
    parser.add_argument("--labels", type=int, default=200, help="budget of the acquisition part")
    parser.add_argument("--output-dir", default="runs/protocol-study", metavar="DIR")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _study(options))


def _study(options: argparse.Namespace) -> int:
    seeds = parse_seeds(options.seeds)
    raw = data_utils.load_dataset("mnist", options.data_dir)
    dataset = data_utils.standardise(raw, raw.train_rows)
    directory = pathlib.Path(options.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    if options.part == "training":
        table = training_table(_trials(directory / "training.jsonl", raw, dataset, seeds), seeds)
    else:
        table = _acquisition_table(directory, dataset, seeds, options.labels)
    (directory / f"{options.part}.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def _trials(
    path: pathlib.Path,
    raw: data_utils.Dataset,
    dataset: data_utils.Dataset,
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """All trials, those in `path` already and those that are still to be made.

    A trial in the file counts only for the settings it was made with; a line that a kill
    cut off is dropped.
    """
    known: dict[tuple[str, int, int], dict[str, Any]] = {}
    if path.exists():
        complete = path.read_bytes().rpartition(b"\n")[0]
        for trial in map(json.loads, complete.splitlines()):
            known[trial["settings"], trial["labels"], trial["seed"]] = trial
    trials = []
    for seed in seeds:
        for variant in TRAINING:
            for count in LABELS:
                data = raw if variant == RAW else dataset
                config = experiment.Config(fit=training.FitConfig()._replace(**TRAINING[variant]))
                made_with = short_hash(experiment.identity(config, data))
                if (made_with, count, seed) not in known:
                    trial = _trial(config, count, seed, data)
                    known[made_with, count, seed] = {"settings": made_with, **trial}
                    with atomic_write(path) as file:
                        file.writelines(json.dumps(each) + "\n" for each in known.values())
                trials.append({"variant": variant, **known[made_with, count, seed]})
    return trials


def _trial(
    config: experiment.Config, count: int, seed: int, dataset: data_utils.Dataset
) -> dict[str, Any]:
    model, optimizer = experiment.network(config, dataset)
    splits = experiment.seed_splits(config, dataset, seed)
    rows = experiment.random_labelled(splits, seed, count)
    labels = dataset.labels
    keys = experiment.round_keys(seed, 0)
    held_out = (dataset.images[splits.validation], labels[splits.validation])
    result = training.fit(
        keys.fit,
        model,
        optimizer,
        dataset.images,
        rows,
        labels[rows],
        config=config.fit,
        validation=held_out,
        capacity=256,
    )
    evaluated = np.concatenate([splits.test, splits.validation])
    posteriors = [
        inference.mc_dropout(model, result.variables),
        inference.deterministic(model, result.variables),
    ]
    predictions = inference.predict(
        keys.evaluate,
        posteriors,
        dataset.images,
        evaluated,
        num_samples=[config.num_test_samples, 1],
    )
    found: dict[str, Any] = {"labels": count, "seed": seed}
    end = len(splits.test)
    for suffix, log_probs in zip(("", "_mean"), predictions, strict=True):
        for name, part in (("test", slice(end)), ("validation", slice(end, None))):
            values = metrics.classification_metrics(log_probs[part], labels[evaluated[part]])
            found |= {
                f"{name}_{key}{suffix}": round(float(value), 6)
                for key, value in values._asdict().items()
            }
    return found | {"steps": result.steps}


def training_table(trials: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """Means over seeds, and the paired difference of test accuracy from the protocol."""
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; random labelled sets, the same for all variants. "
        "Differences from the protocol are paired, with Student's 95 % interval.",
        "",
        "| variant | labels | validation nll | test accuracy | dropout off | difference |",
        "|---|---|---|---|---|---|",
    ]
    by_cell = {(t["variant"], t["labels"], t["seed"]): t for t in trials}
    for count in LABELS:
        for variant in TRAINING:
            cells = [by_cell[variant, count, seed] for seed in seeds]
            against = [by_cell["protocol", count, seed]["test_accuracy"] for seed in seeds]
            accuracy = np.array([cell["test_accuracy"] for cell in cells])
            nll = np.mean([cell["validation_nll"] for cell in cells])
            off = np.mean([cell["test_accuracy_mean"] for cell in cells])
            difference = "" if variant == "protocol" else _difference(accuracy - against)
            lines.append(
                f"| {variant} | {count} | {nll:.3f} | {accuracy.mean():.2%} | {off:.2%} | "
                f"{difference} |"
            )
    return "\n".join(lines) + "\n"


def _acquisition_table(
    directory: pathlib.Path, dataset: data_utils.Dataset, seeds: Sequence[int], budget: int
) -> str:
    curves: dict[str, list[Curve]] = {}
    for variant, (acquisition, changes) in ACQUISITION.items():
        config = experiment.Config()._replace(**changes)
        place = directory / variant.replace(" ", "-").replace("'", "")
        run = experiment.run(config, dataset, [acquisition], seeds, labels=budget, directory=place)
        curves[variant] = [_until(run.cells[acquisition, seed], budget) for seed in seeds]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}; {budget} labels. Accuracy is the mean over the last "
        "10 rounds; differences from the protocol are paired, with Student's 95 % interval.",
        "",
        "| variant | labels to 90 %, by seed | test accuracy | difference |",
        "|---|---|---|---|",
    ]
    last = {
        name: np.array([np.mean(curve.test["accuracy"][-10:]) for curve in found])
        for name, found in curves.items()
    }
    for variant, found in curves.items():
        reached = [labels_to_threshold(c.labels, c.test["accuracy"], 0.9) or "-" for c in found]
        difference = last[variant] - last["protocol"]
        shown = "" if variant == "protocol" else _difference(difference)
        lines.append(
            f"| {variant} | {', '.join(map(str, reached))} | {last[variant].mean():.2%} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def _until(curve: Curve, budget: int) -> Curve:
    """A directory may hold a run that went on beyond the budget."""
    kept = curve.labels <= budget
    test = {name: values[kept] for name, values in curve.test.items()}
    return curve._replace(labels=curve.labels[kept], test=test)


def _difference(values: np.ndarray) -> str:
    """Mean and interval in percentage points."""
    mean = f"{100 * values.mean():+.2f}"
    if len(values) < 3:
        return mean
    low, high = mean_interval(values)
    return f"{mean} ({100 * low:+.2f} to {100 * high:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
