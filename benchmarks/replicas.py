"""Seeds side by side in one program against one after another, on the platform at hand.

What `experiment.run` does by itself there is "ours": on a CPU one after another, on an
accelerator replicas. The other way shows whether that is right. Rounds are as many as a budget of
two acquisitions has; the first run of each compiles and stands apart.

    python -m benchmarks.replicas --quick
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from bayesian_active_learning import experiment, training
from benchmarks import data, measure, peers
from benchmarks.measure import OURS, Case


class Sizes(NamedTuple):
    model: str
    num_seeds: tuple[int, ...]
    steps: int
    num_samples: int
    pool_size: int
    num_test: int
    repeats: int
    patience: float


SIZES = {
    "full": Sizes("convnet", (4, 15), 400, 100, 2_000, 10_000, 3, 900.0),
    "quick": Sizes("convnet", (3,), 20, 20, 500, 500, 2, 60.0),
    "smallest": Sizes("mlp", (2,), 2, 2, 20, 30, 1, 1.0),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    dataset = data.dataset(60_000 if sizes.num_test > 1_000 else 2_000, sizes.num_test)
    config = experiment.Config(
        model=sizes.model,
        num_samples=sizes.num_samples,
        pool_size=sizes.pool_size,
        fit=training.FitConfig(epochs=0, min_steps=sizes.steps),
    )
    return [_compare(count, config, dataset, sizes) for count in sizes.num_seeds]


def _compare(count: int, config: Any, dataset: Any, sizes: Sizes) -> dict[str, Any]:
    platform = jax.devices()[0].platform

    def case(replicas: int) -> Case:
        return Case(
            lambda: list(
                experiment.run(
                    config, dataset, ["bald"], range(count), labels=40, replicas=replicas
                ).cells.values()
            )
        )

    ways = {"one after another": case(1), "side by side": case(count)}
    chosen = "one after another" if platform == "cpu" else "side by side"
    cases = {OURS: ways.pop(chosen), **ways}
    timings, curves = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    first, second = curves.values()
    pairs = list(zip(first, second, strict=True))
    return measure.result(
        f"{count} seeds of BALD, 3 rounds of {config.fit.min_steps} steps, {sizes.model}, "
        f"on {platform}: {chosen} against the other way",
        timings,
        agreement={
            "largest difference of test nll after the first fit": max(
                float(abs(a.test["nll"][0] - b.test["nll"][0])) for a, b in pairs
            ),
            "seeds that asked for the same rows throughout": sum(
                all(map(np.array_equal, a.rows, b.rows)) for a, b in pairs
            ),
        },
        platform=platform,
        data=dataset.name,
    )


main = measure.command("replicas", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
