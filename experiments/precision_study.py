"""`python -m experiments.precision_study`: what fewer bits in matrix products change in the picks.

Networks are trained in float32 on random labelled sets. Their posterior samples of one pool
are then computed again with the operands of every product and convolution rounded, as an
accelerator rounds them, and the same functions choose again. Two yardsticks stand beside:
float32 in chunks of another size, which differs in last bits only, and float32 with other
dropout masks, which is the noise of Monte Carlo.

On a CPU, which has no such products, operands are rounded by `lax.reduce_precision`; with
`--native` the device's own precisions are asked for (`models.with_precision`).
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import lax
from jax.extend import core

from bayesian_active_learning import acquisition_functions as af
from bayesian_active_learning import data_utils, experiment, history, inference, models, training
from bayesian_active_learning.types import Candidates, Key, Model
from bayesian_active_learning.utils import atomic_write
from experiments.command import exit_status
from experiments.options import parse_seeds

FUNCTIONS = ("bald", "max_entropy", "batch_bald")
MANTISSA = {"tensorfloat32": 10, "bfloat16": 7}  # bits behind the point; exponents have 8
OTHER_CHUNKS, OTHER_MASKS = "float32, other chunks", "float32, other masks"
VARIANTS = (OTHER_CHUNKS, *MANTISSA, OTHER_MASKS)
CHUNK, OTHER_CHUNK = 500, 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.precision_study", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the original MNIST files")
    parser.add_argument("--seeds", nargs="+", default=["4"], metavar="N")
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 100, 300], metavar="N")
    parser.add_argument("--native", action="store_true", help="the device's own precisions")
    parser.add_argument("--output", default="runs/precision.json", metavar="FILE")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _study(options))


def _study(options: argparse.Namespace) -> int:
    raw = data_utils.load_dataset("mnist", options.data_dir)
    dataset = data_utils.standardise(raw, raw.train_rows)
    found: list[dict[str, Any]] = []
    for seed in parse_seeds(options.seeds):
        for count in options.labels:
            found += trials(experiment.Config(), dataset, seed, count, native=options.native)
            result = {
                "native": options.native,
                "environment": history.environment(),
                "trials": found,
            }
            with atomic_write(pathlib.Path(options.output)) as file:
                json.dump(result, file, indent=1)
                file.write("\n")
    print(table(found))
    return 0


class _Choice(NamedTuple):
    picks: np.ndarray  # [B] positions in the pool
    scores: np.ndarray | None  # [N], where each candidate has one of its own


def trials(
    config: experiment.Config,
    dataset: data_utils.Dataset,
    seed: int,
    num_labels: int,
    *,
    native: bool,
) -> list[dict[str, Any]]:
    """One network, its pool scored in each way: a line for each variant and function.

    overlap: share of the picks that float32 picks too. kept: what the picks are worth in
    float32 (their mean score, or what their labels tell together), over float32's own.
    correlation: Spearman's, of all scores. difference: the largest one, in nats.
    """
    model, optimizer = experiment.network(config, dataset)
    splits = experiment.seed_splits(config, dataset, seed)
    rows = experiment.random_labelled(splits, seed, num_labels)
    keys = experiment.round_keys(seed, 0)
    fitted = training.fit(
        keys.fit,
        model,
        optimizer,
        dataset.images,
        rows,
        np.asarray(dataset.labels)[rows],
        config=config.fit,
        capacity=384,
    )
    pool = data_utils.pool_subset(seed, 1, np.setdiff1d(splits.pool, rows), config.pool_size)

    def log_probs(network: Model, key: Key = keys.score, chunk_size: int = CHUNK) -> np.ndarray:
        return inference.log_probs(
            key,
            inference.mc_dropout(network, fitted.variables),
            dataset.images,
            pool,
            num_samples=config.num_samples,
            chunk_size=chunk_size,
        )

    reduced = models.with_precision if native else emulated
    ways: dict[str, Callable[[], np.ndarray]] = {
        OTHER_CHUNKS: functools.partial(log_probs, model, chunk_size=OTHER_CHUNK),
        OTHER_MASKS: functools.partial(log_probs, model, keys.provide),
        **{name: functools.partial(log_probs, reduced(model, name)) for name in MANTISSA},
    }
    size = config.acquisition_size
    exact = log_probs(model)
    expected = {name: _choose(name, keys.select, exact, size) for name in FUNCTIONS}
    found = []
    for variant in VARIANTS:
        values = ways[variant]()
        for name in FUNCTIONS:
            choice = _choose(name, keys.select, values, size)
            found.append(
                {"seed": seed, "labels": num_labels, "variant": variant, "function": name}
                | _compared(name, keys.select, exact, expected[name], choice)
            )
    return found


def _choose(name: str, key: Key, log_probs: np.ndarray, size: int) -> _Choice:
    strategy = af.make_strategy(name)
    mask, scores = np.ones(len(log_probs), bool), None
    if strategy.score is not None:
        scores = np.asarray(jax.jit(strategy.score)(log_probs))
    candidates = Candidates(np.arange(len(mask)), mask, scores=scores, log_probs=log_probs)
    picks = af.select_batch(strategy, key, candidates, batch_size=size).positions
    return _Choice(np.asarray(picks), scores)


def _compared(
    name: str, key: Key, log_probs: np.ndarray, expected: _Choice, choice: _Choice
) -> dict[str, float | None]:
    def worth(picks: np.ndarray) -> float:
        if expected.scores is None:
            return float(af.joint_information(key, log_probs[picks]).sum())
        return float(expected.scores[picks].mean())

    correlation = difference = None
    if expected.scores is not None and choice.scores is not None:
        correlation = float(scipy.stats.spearmanr(expected.scores, choice.scores).statistic)
        difference = float(np.abs(expected.scores - choice.scores).max())
    return {
        "overlap": len(np.intersect1d(expected.picks, choice.picks)) / len(expected.picks),
        "kept": worth(choice.picks) / worth(expected.picks),
        "correlation": correlation,
        "difference": difference,
    }


@functools.cache
def emulated(model: Model, precision: str) -> Model:
    """The model with the operands of its products rounded to nearest, sums in float32.

    As TensorFloat-32 on a GPU, and as one pass in bfloat16 on a TPU. ("tensorfloat32" on a
    TPU, three passes in bfloat16, is closer to float32 than this.)
    """

    def apply(variables: Any, key: Any, inputs: Any, *, mode: str) -> Any:
        function = functools.partial(model.apply, mode=mode)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, key, inputs)
        outputs = _run(closed, MANTISSA[precision], *jax.tree.leaves((variables, key, inputs)))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return Model(model.init, apply)


_PRODUCTS = ("dot_general", "conv_general_dilated")
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
_CALLS |= {"custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "call_jaxpr"}


def _run(closed: Any, mantissa: int, *arguments: Any) -> list[Any]:
    """The program run forward, operands of products rounded, in whatever it is nested."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def rounded(inner: Any) -> Any:
        return jax.make_jaxpr(lambda *inputs: _run(inner, mantissa, *inputs))(*inner.in_avals)

    def read(variables: Iterable[Any]) -> list[Any]:
        return [v.val if isinstance(v, core.Literal) else values[v] for v in variables]

    for equation in jaxpr.eqns:
        inputs, name = read(equation.invars), equation.primitive.name
        params = dict(equation.params)
        if name in _CALLS:
            outputs = _run(params[_CALLS[name]], mantissa, *inputs)
        else:
            if name in _PRODUCTS:
                inputs = [lax.reduce_precision(jnp.asarray(x), 8, mantissa) for x in inputs]
            for key, value in params.items():
                if isinstance(value, core.ClosedJaxpr):  # of a loop
                    params[key] = rounded(value)
                elif isinstance(value, tuple) and value and isinstance(value[0], core.ClosedJaxpr):
                    params[key] = tuple(map(rounded, value))  # branches
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return read(jaxpr.outvars)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Means over seeds by function, variant and number of labels; of the correlations the
    lowest, of the differences the largest."""
    counts = sorted({trial["labels"] for trial in found})
    at = ", ".join(map(str, counts))
    seeds = len({trial["seed"] for trial in found})
    lines = [
        f"Seeds: {seeds}. Shared picks, and what the picks are worth in float32, at {at} labels.",
        "",
        "| function | pool scored in | shared picks | worth kept | rank correlation, lowest | "
        "score difference, largest (nats) |",
        "|---|---|---|---|---|---|",
    ]
    for name in FUNCTIONS:
        for variant in VARIANTS:
            cells = [t for t in found if (t["function"], t["variant"]) == (name, variant)]
            at_counts = [[t for t in cells if t["labels"] == count] for count in counts]
            overlap, kept = (
                ", ".join(f"{np.mean([t[what] for t in part]):.1%}" for part in at_counts)
                for what in ("overlap", "kept")
            )
            correlation = difference = ""
            if cells[0]["correlation"] is not None:
                correlation = f"{min(t['correlation'] for t in cells):.6f}"
                difference = f"{max(t['difference'] for t in cells):.1e}"
            lines.append(
                f"| {name} | {variant} | {overlap} | {kept} | {correlation} | {difference} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
