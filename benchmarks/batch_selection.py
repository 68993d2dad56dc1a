"""BatchBALD, k-center greedy, BADGE and EPIG on arrays, against the peers' own functions.

Predictions are those of the paper's network after a short training. The limit of k-center and
BADGE is to read all features once for each pick, at the speed measured in the same run. What is
picked is compared: by joint entropy (in float64, apart from all of them), by the radius reached,
by the distances of the picks.

    python -m benchmarks.batch_selection --quick
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayesian_active_learning.acquisition_functions as af
from bayesian_active_learning import inference
from bayesian_active_learning.types import Candidates, Strategy
from benchmarks import data, measure, peers
from benchmarks.measure import OURS, Case

CONFIGS = 10_000  # joint labels: all of them up to here, as many sampled beyond
WIDTH = 128  # of the features
SLOW = ("baal", "scikit-activeml")  # of BatchBALD


class Sizes(NamedTuple):
    batch_bald: tuple[tuple[int, int, int], ...]  # pool N, samples K, batch B
    k_center: tuple[tuple[int, int, int], ...]  # pool N, labelled L, batch B
    badge: tuple[tuple[int, int], ...]  # pool N, batch B
    epig: tuple[tuple[int, int, int], ...]  # pool N, samples K, targets M
    steps: int  # of training, before
    slow: float  # N K B of BatchBALD beyond which SLOW would take hours: left out, and named
    repeats: int
    patience: float


SIZES = {
    "full": Sizes(
        tuple((n, k, b) for n in (1_000, 10_000) for k in (20, 100) for b in (5, 10)),
        ((50_000, 100, 1_000),),
        ((10_000, 100), (50_000, 1_000)),
        ((2_000, 100, 100),),
        200,
        5e5,
        3,
        40.0,
    ),
    "quick": Sizes(
        ((1_000, 20, 5),),
        ((10_000, 100, 100),),
        ((2_000, 20),),
        ((500, 20, 50),),
        200,
        1e6,
        3,
        20.0,
    ),
    "smallest": Sizes(((40, 4, 3),), ((60, 5, 4),), ((50, 4),), ((30, 4, 5),), 5, 1e6, 2, 1.0),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    results = [_batch_bald(*each, sizes, found) for each in sizes.batch_bald]
    results += [_k_center(*each, sizes, found) for each in sizes.k_center]
    results += [_badge(*each, sizes, found) for each in sizes.badge]
    results += [_epig(*each, sizes, found) for each in sizes.epig]
    return results


def _picks(strategy: Strategy, batch_size: int, **fields: Any) -> Callable[[], np.ndarray]:
    """Our batch from all candidates; the arrays are there already, as the peers' are."""
    count = len(next(iter(fields.values())))
    fields = {name: jnp.asarray(values) for name, values in fields.items()}
    rows = jnp.arange(count, dtype=jnp.int32)
    candidates = Candidates(rows, jnp.ones(count, bool), **fields)
    key = jax.random.key(0)

    def run() -> np.ndarray:
        selection = af.select_batch(strategy, key, candidates, batch_size=batch_size)
        return np.asarray(selection.positions)

    return run


def _log_probs(count: int, num_samples: int, steps: int) -> np.ndarray:
    """`[N, K, C]` of the paper's network."""
    found = data.dataset(max(count, 2_000), 100)
    posterior = inference.mc_dropout(data.model(), data.trained(steps))
    return inference.log_probs(
        jax.random.key(2),
        posterior,
        found.images,
        found.train_rows[:count],
        num_samples=num_samples,
    )


# BatchBALD


def _batch_bald(
    count: int, num_samples: int, batch_size: int, sizes: Sizes, found: peers.Peers
) -> dict[str, Any]:
    log_probs = _log_probs(count, num_samples, sizes.steps)
    strategy = af.make_strategy(f"batch_bald:max_exact={CONFIGS},num_configs={CONFIGS}")
    cases = {OURS: Case(_picks(strategy, batch_size, log_probs=log_probs))}
    for name, make in (
        ("batchbald_redux", _redux_batch),
        ("baal", _baal_batch),
        ("scikit-activeml", _skactiveml_batch),
    ):
        if name in found and not (name in SLOW and count * num_samples * batch_size > sizes.slow):
            few = make(log_probs[: batch_size + 5], batch_size)
            cases[name] = Case(make(log_probs, batch_size), few)
    timings, picks = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    probs = np.exp(log_probs.astype(np.float64))
    agreement = {
        name: {
            "shared picks": len(set(picks[OURS].tolist()) & set(np.asarray(each).tolist())),
            **joint_information(probs[np.asarray(each)]),
        }
        for name, each in picks.items()
    }
    return measure.result(
        f"BatchBALD: pool {count:,}, K = {num_samples}, B = {batch_size}",
        timings,
        agreement=agreement,
        left_out=[name for name in SLOW if name in found and name not in cases],
    )


def joint_information(probs: np.ndarray, draws: int = 200_000) -> dict[str, float]:
    """H[y_1..y_B] and I[y_1..y_B; w] of `[B, K, C]` float64 probabilities, in nats.

    Over all configurations of labels where they are at most `draws`, else over so many drawn
    ones, the same random numbers for whoever is compared.
    """
    size, num_samples, num_classes = probs.shape
    if num_classes**size <= draws:
        weights = np.ones((1, num_samples)) / num_samples  # p(configuration, sample)
        for one in probs:
            weights = (weights[:, None, :] * one.T[None]).reshape(-1, num_samples)
        chances = weights.sum(axis=1)
        entropy = -np.sum(chances * np.log(np.where(chances > 0, chances, 1.0)))
        error = 0.0
    else:
        rng = np.random.default_rng(0)
        samples = np.arange(draws) % num_samples
        likelihoods = np.ones((draws, num_samples))
        for one in probs:
            cumulative = one.cumsum(axis=1)[samples]
            uniform = rng.random(draws)[:, None] * cumulative[:, -1:]
            labels = np.minimum((cumulative <= uniform).sum(axis=1), num_classes - 1)
            likelihoods *= one.T[labels]
        surprise = -np.log(likelihoods.mean(axis=1))
        entropy, error = surprise.mean(), surprise.std() / draws**0.5
    conditional = -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1)), 0)
    expected = conditional.sum(axis=(0, 2)).mean()
    return {
        "joint entropy": float(entropy),
        "information": float(entropy - expected),
        "error": float(error),
    }


def _redux_batch(log_probs: np.ndarray, batch_size: int) -> Callable[[], list[int]]:
    torch, module = peers.module("torch"), peers.module("batchbald_redux.batchbald")
    tensor = torch.from_numpy(log_probs)

    def run() -> list[int]:
        torch.manual_seed(0)
        return module.get_batchbald_batch(tensor, batch_size, CONFIGS, dtype=torch.float).indices

    return run


def _baal_batch(log_probs: np.ndarray, batch_size: int) -> Callable[[], np.ndarray]:
    """It picks one more than it is told."""
    heuristics = peers.module("baal.active.heuristics")
    probs = np.ascontiguousarray(np.exp(log_probs).swapaxes(1, 2))
    each = max(1, CONFIGS // log_probs.shape[1])

    def run() -> np.ndarray:
        rule = heuristics.BatchBALD(num_samples=batch_size - 1, num_draw=each)
        return np.flatnonzero(rule.get_uncertainties(probs))

    return run


def _skactiveml_batch(log_probs: np.ndarray, batch_size: int) -> Callable[[], np.ndarray]:
    pool = peers.module("skactiveml.pool")
    probs = np.exp(log_probs).swapaxes(0, 1)

    def run() -> np.ndarray:
        # A copy: it writes into its input.
        utilities = pool.batch_bald(probs.copy(), batch_size, CONFIGS, random_state=0)
        return np.nanargmax(utilities, axis=1)

    return run


# k-center greedy


def _points(count: int) -> np.ndarray:
    """Clusters of features, as a network's last layer has them."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(data.NUM_CLASSES, WIDTH))
    points = centres[rng.integers(0, len(centres), count)] + rng.normal(size=(count, WIDTH))
    return np.maximum(points, 0).astype(np.float32)


def _in_the_faster_layout(loop: Callable[..., list[int]]) -> tuple[Case, str]:
    """A loop of `torch_selection`, and the name of the layout that it takes."""
    from benchmarks import torch_selection

    layouts = torch_selection.LAYOUTS
    ways = {name: functools.partial(loop, layout=layout) for name, layout in layouts.items()}
    name = measure.fastest(ways)
    return Case(ways[name]), name


def _k_center(
    count: int, num_labelled: int, batch_size: int, sizes: Sizes, found: peers.Peers
) -> dict[str, Any]:
    everything = _points(count + num_labelled)
    labelled, points = everything[:num_labelled], everything[num_labelled:]
    ours = _picks(
        af.make_strategy("coreset"),
        batch_size,
        features=points,
        labelled_features=labelled,
        labelled_mask=np.ones(num_labelled, bool),
    )
    cases = {OURS: Case(ours)}
    chosen: dict[str, str] = {}
    if "torch" in found:
        from benchmarks import torch_selection

        torch = found.torch
        tensors = torch.from_numpy(points), torch.from_numpy(labelled)
        loop = functools.partial(torch_selection.k_center, *tensors, batch_size)
        cases["specialist"], chosen["specialist"] = _in_the_faster_layout(loop)
    if "scikit-activeml" in found:
        cases["scikit-activeml"] = Case(
            _skactiveml_coreset(everything, num_labelled, batch_size),
            _skactiveml_coreset(everything[: num_labelled + 10], num_labelled, 2),
        )
    cases |= measure.memory_reads((points.nbytes / 2**20, 256), found.torch)
    timings, picks = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    own = measure.without_speeds(timings)
    reads = [points.nbytes * batch_size / speed for speed in measure.read_speeds(timings)]
    agreement = {
        name: {
            "radius": radius(points, labelled, np.asarray(picks[name])),
            "shared picks": len(set(np.asarray(picks[name]).tolist()) & set(picks[OURS].tolist())),
        }
        for name in own
    }
    return measure.result(
        f"k-center: pool {count:,}, D = {WIDTH}, {num_labelled} labelled, B = {batch_size:,}",
        own,
        limits={"one read a pick": reads},
        agreement=agreement,
        gigabytes_a_second=measure.spread([v / 1e9 for v in measure.read_speeds(timings)]),
        variants=chosen,
    )


def radius(points: np.ndarray, labelled: np.ndarray, picks: np.ndarray) -> float:
    """Distance of the point farthest from its nearest centre: what k-center makes small."""
    nearest = np.full(len(points), np.inf)
    points = points.astype(np.float64)
    centres = np.concatenate([labelled, points[picks]]).astype(np.float64)
    norms = np.square(points).sum(axis=1)
    for start in range(0, len(centres), 200):
        part = centres[start : start + 200]
        squared = norms[:, None] - 2 * points @ part.T + np.square(part).sum(axis=1)
        nearest = np.minimum(nearest, squared.min(axis=1))
    return float(np.sqrt(max(nearest.max(), 0.0)))


def _skactiveml_coreset(
    features: np.ndarray, num_labelled: int, batch_size: int
) -> Callable[[], np.ndarray]:
    pool = peers.module("skactiveml.pool")
    labels = np.where(np.arange(len(features)) < num_labelled, 0.0, np.nan)

    def run() -> np.ndarray:
        picks = pool.CoreSet(random_state=0).query(features, labels, batch_size=batch_size)
        return np.asarray(picks) - num_labelled

    return run


# BADGE


def _badge(count: int, batch_size: int, sizes: Sizes, found: peers.Peers) -> dict[str, Any]:
    points = _points(count)
    logits = points @ np.random.default_rng(4).normal(size=(WIDTH, data.NUM_CLASSES)) / 4
    log_probs = np.asarray(jax.nn.log_softmax(logits.astype(np.float32)))
    ours = _picks(af.make_strategy("badge"), batch_size, predictions=log_probs, features=points)
    cases = {OURS: Case(ours)}
    chosen: dict[str, str] = {}
    if "torch" in found:
        from benchmarks import torch_selection

        torch = found.torch
        tensors = torch.from_numpy(np.exp(log_probs)), torch.from_numpy(points)

        def theirs(*, layout: Any) -> list[int]:
            generator = torch.Generator().manual_seed(0)
            return torch_selection.badge(*tensors, batch_size, generator, layout)

        cases["specialist"], chosen["specialist"] = _in_the_faster_layout(theirs)
    if "scikit-activeml" in found:
        cases["scikit-activeml"] = Case(
            _skactiveml_badge(np.exp(log_probs), points, batch_size),
            _skactiveml_badge(np.exp(log_probs[:20]), points[:20], 2),
        )
    both = points.nbytes + log_probs.nbytes
    cases |= measure.memory_reads((both / 2**20, 256), found.torch)
    timings, picks = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    own = measure.without_speeds(timings)
    errors = np.exp(log_probs)
    errors[np.arange(count), errors.argmax(axis=1)] -= 1
    return measure.result(
        f"BADGE: pool {count:,}, D = {WIDTH}, C = {data.NUM_CLASSES}, B = {batch_size:,}",
        own,
        limits={
            "one read a pick": [both * batch_size / v for v in measure.read_speeds(timings)],
        },
        agreement={
            name: {"mean distance to a pick": potential(errors, points, np.asarray(picks[name]))}
            for name in own
        },
        variants=chosen,
    )


def potential(errors: np.ndarray, points: np.ndarray, picks: np.ndarray) -> float:
    """Root mean squared distance of embeddings to the nearest pick: what k-means++ makes small.

    Draws differ, this hardly does.
    """
    errors, points = errors.astype(np.float64), points.astype(np.float64)
    norms = np.square(errors).sum(axis=1) * np.square(points).sum(axis=1)
    nearest = np.full(len(points), np.inf)
    for start in range(0, len(picks), 100):
        part = picks[start : start + 100]
        products = (errors @ errors[part].T) * (points @ points[part].T)
        nearest = np.minimum(nearest, (norms[:, None] + norms[part] - 2 * products).min(axis=1))
    return float(np.sqrt(np.maximum(nearest, 0).mean()))


def _skactiveml_badge(
    probs: np.ndarray, features: np.ndarray, batch_size: int
) -> Callable[[], np.ndarray]:
    pool = peers.module("skactiveml.pool")
    base: Any = peers.module("skactiveml.base").SkactivemlClassifier

    class Network(base):
        """Predicts what it is told, with embeddings."""

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            return self

        def predict_proba(self, X: Any) -> Any:
            return probs, features

    network = Network(classes=range(probs.shape[1]))
    network.classes_ = np.arange(probs.shape[1])  # counts as fitted
    labels = np.full(len(features), np.nan)

    def run() -> np.ndarray:
        rule = pool.Badge(random_state=0)
        picks = rule.query(features, labels, clf=network, fit_clf=False, batch_size=batch_size)
        return np.asarray(picks)

    return run


# EPIG


def _epig(
    count: int, num_samples: int, num_targets: int, sizes: Sizes, found: peers.Peers
) -> dict[str, Any]:
    log_probs = _log_probs(count + num_targets, num_samples, sizes.steps)
    log_probs, targets = log_probs[:count], log_probs[count:]
    arrays = jnp.asarray(log_probs), jnp.asarray(targets)
    cases = {OURS: Case(lambda: np.asarray(af.epig(*arrays)))}
    if "torch" in found:
        from benchmarks import torch_selection

        torch = found.torch
        tensors = torch.from_numpy(np.exp(log_probs)), torch.from_numpy(np.exp(targets))
        ways = {
            str(chunk): (lambda chunk=chunk: torch_selection.epig(*tensors, chunk).numpy())
            for chunk in (8, 32, 128)
        }
        cases["specialist"] = Case(ways[measure.fastest(ways)])
    if "baal" in found:
        heuristics = peers.module("baal.active.heuristics")
        swapped = [np.exp(each).swapaxes(1, 2).copy() for each in (log_probs, targets)]
        cases["baal"] = Case(lambda: heuristics.EPIG().get_uncertainties(*swapped))
    timings, scores = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    agreement = {
        name: {"largest difference": float(np.abs(scores[name] - scores[OURS]).max())}
        for name in cases
        if name != OURS
    }
    for name, values in agreement.items():
        if not values["largest difference"] < 1e-4:
            raise AssertionError(f"EPIG: scores of {name} differ by {values}")
    return measure.result(
        f"EPIG: pool {count:,}, K = {num_samples}, {num_targets} targets",
        timings,
        agreement=agreement,
    )


main = measure.command("batch_selection", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
