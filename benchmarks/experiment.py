"""A whole run of BALD, 20 to 120 labels, ours and the same protocol in a specialist's PyTorch loop.

The first run of ours compiles; it stands apart. So do compilations, counted by round: after the
first round there should be none, and in a second run none at all.

    python -m benchmarks.experiment --quick
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesian_active_learning import experiment, training
from benchmarks import data, measure, peers
from benchmarks.measure import OURS, Case

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Sizes(NamedTuple):
    labels: int
    num_train: int
    num_test: int
    min_steps: int
    num_samples: int
    pool_size: int
    repeats: int
    patience: float


SIZES = {
    "full": Sizes(120, 60_000, 10_000, 400, 100, 2_000, 3, 900.0),
    "quick": Sizes(40, 5_000, 1_000, 100, 100, 1_000, 2, 120.0),
    "smallest": Sizes(40, 300, 50, 3, 4, 50, 1, 1.0),
}


class Counter:
    """How many programs XLA has compiled, and for how long; counts while `listening`.

    A program found in a compilation cache on disk counts, too: it was not there in memory.
    """

    def __init__(self) -> None:
        self.count, self.seconds, self._on = 0, 0.0, False
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if self._on and event == _COMPILED:
            self.count, self.seconds = self.count + 1, self.seconds + duration_secs

    @contextlib.contextmanager
    def listening(self) -> Iterator["Counter"]:
        self.count, self.seconds, self._on = 0, 0.0, True
        try:
            yield self
        finally:
            self._on = False


def _fit(min_steps: int) -> training.FitConfig:
    """The default settings from 400 steps on; fewer are so many steps in every round."""
    default = training.FitConfig()
    if min_steps >= default.min_steps:
        return default._replace(min_steps=min_steps)
    return default._replace(min_steps=min_steps, epochs=0)


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    dataset = data.dataset(sizes.num_train, sizes.num_test)
    config = experiment.Config(
        num_samples=sizes.num_samples,
        pool_size=sizes.pool_size,
        fit=_fit(sizes.min_steps),
    )
    counter = Counter()
    compilations: list[list[int]] = []

    def ours() -> list[float]:
        by_round: list[int] = []

        def on_round(progress: experiment.Progress) -> None:
            by_round.append(counter.count)

        with counter.listening():
            history = experiment.run(
                config, dataset, ["bald"], labels=sizes.labels, on_round=on_round
            )
        compilations.append(np.diff(by_round, prepend=0).tolist())
        return list(history.cells["bald", 0].test["accuracy"])

    cases, chosen = {OURS: Case(ours)}, {}
    if "torch" in found:
        for name, (case, ways) in _specialists(config, dataset, sizes).items():
            cases[name], chosen[name] = case, ways
    timings, curves = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    again = sum(map(sum, compilations[1:]))
    return [
        measure.result(
            f"20 to {sizes.labels} labels, BALD, K = {sizes.num_samples}, first run apart",
            timings,
            agreement={
                **{
                    f"test accuracy of {name}": f"{curve[0]:.3f} to {curve[-1]:.3f}"
                    for name, curve in curves.items()
                },
                "programs compiled up to the evaluation of each round": str(compilations[0]),
                "programs compiled in later runs": again,
            },
            compilations_by_round=compilations,
            seconds_for_compilation=timings[OURS].first - timings[OURS].median,
            curves={name: list(map(float, curve)) for name, curve in curves.items()},
            variants=chosen,
            data=dataset.name,
        )
    ]


def _specialists(config: Any, dataset: Any, sizes: Sizes) -> dict[str, tuple[Case, dict[str, str]]]:
    """With the fastest step, scores and evaluation, each found before: of those that do the same
    work, and of those that do less of it by what masks drop, as ours does."""
    from benchmarks import torch_loop, torch_training
    from benchmarks import torch_network as net

    torch = peers.module("torch")
    splits = experiment.seed_splits(config, dataset, 0)
    start = torch_training.initial_weights(torch.Generator().manual_seed(0))
    rows = splits.pool[: sizes.pool_size]
    images = net.images_of(dataset.images[rows])
    labels = torch.from_numpy(dataset.labels[rows].astype(np.int64))

    def steps(way: Any) -> Any:
        return lambda: torch_training.fit(
            start,
            images[:20],
            labels[:20],
            training.minibatches(jax.random.key(0), 20, config.fit.batch_size),
            steps=min(100, sizes.min_steps),
            weight_decay=config.fit.weight_decay,
            learning_rate=config.learning_rate,
            cosine=True,
            way=way,
        )[0]

    ways = torch_training.WAYS
    way = measure.fastest({name: steps(each) for name, each in ways.items()}, repeats=3)
    everything = torch_loop.tensors(dataset)

    def specialist(dense: dict[str, net.Dense]) -> tuple[Case, dict[str, str]]:
        def fastest(num_samples: int) -> tuple[str, net.Scoring]:
            masks = torch_loop.masks(num_samples, torch.Generator().manual_seed(0))
            return net.fastest_scoring(dense, start, images, masks)

        scores, evaluation = fastest(config.num_samples), fastest(config.num_test_samples)

        def whole(labels: int) -> Any:
            return lambda: torch_loop.run(
                config,
                *everything,
                splits,
                labels=labels,
                way=ways[way],
                scoring=scores[1],
                evaluation=evaluation[1],
            )

        # Nothing to compile: a run of one round warms up.
        chosen = {"step": way, "scores": scores[0], "evaluation": evaluation[0]}
        return Case(whole(sizes.labels), whole(20)), chosen

    return {
        "specialist": specialist(net.DENSE),
        "specialist, without what is dropped": specialist(net.REDUCED),
    }


main = measure.command("experiment", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
