"""K posterior samples of the paper's network over a pool, and BALD of them.

Against PyTorch's full passes (as in TorchAL), baal, batchbald_redux, and the fastest of several
PyTorch loops by a specialist: convolutions once, shared masks, large products. The limit: all
multiplications of convolutions and dense layers at the speed of this machine's fastest product,
held against a network of ours that computes all hidden units; what is saved by leaving out what
masks drop stands beside it: the limit with half the units, that with a quarter of their inputs
(the product of all of them once, and what each sample drops taken away), and what our own
convolutions take with the products of the latter at the speed of XLA's own.

    python -m benchmarks.mc_scoring --quick
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bayesian_active_learning import compilation, inference, models
from bayesian_active_learning.acquisition_functions import bald
from bayesian_active_learning.models import networks
from bayesian_active_learning.types import Model, Outputs
from benchmarks import data, measure, peers
from benchmarks.measure import OURS, Case

CONVOLUTIONS = data.FIRST_CONVOLUTION + data.SECOND_CONVOLUTION  # of one image
# On average, without the hidden units that a shared mask of rate 1/2 drops; and with only the
# inputs that one of rate 1/4 drops, for which the product of all is taken once, too.
DENSE_HALF, DENSE_EIGHTH = data.DENSE / 2, data.FIRST_DENSE / 8 + data.LAST_DENSE / 2
PRODUCT = 2_000, 3872, 640  # of the first dense layer, large: kept units of ten samples
ALL_UNITS = "ours, all units"
REDUCED = "specialist, without what is dropped"
OUR_CONVOLUTIONS = "part convolutions (ours)"


class Sizes(NamedTuple):
    num_images: tuple[int, ...]
    num_samples: int
    steps: int  # of training, before
    repeats: int
    patience: float  # seconds of turns of one case
    full_passes: int  # more images than this are not given to those who recompute all


SIZES = {
    "full": Sizes((2_000, 20_000), 100, 300, 5, 150.0, 2_000),
    "quick": Sizes((500,), 100, 100, 3, 20.0, 500),
    "smallest": Sizes((30,), 5, 5, 2, 1.0, 30),
}


def run(sizes: Sizes, found: peers.Peers) -> list[dict[str, Any]]:
    return [_compare(count, sizes, found) for count in sizes.num_images]


def _compare(count: int, sizes: Sizes, found: peers.Peers) -> dict[str, Any]:
    num_samples, torch = sizes.num_samples, found.torch
    dataset = data.dataset(max(count, 2_000), 100)
    rows = dataset.train_rows[:count]
    images = dataset.images[rows]
    posterior = inference.mc_dropout(data.model(), data.trained(sizes.steps))
    key = jax.random.key(1)

    def ours() -> np.ndarray:
        (scores,) = inference.score_pool(
            key, posterior, images, np.arange(count), [bald], num_samples=num_samples
        )
        return scores

    def all_units() -> np.ndarray:
        network = inference.mc_dropout(_plain_network(), posterior.shared)
        (scores,) = inference.score_pool(
            key, network, images, np.arange(count), [bald], num_samples=num_samples
        )
        return scores

    cases = {OURS: Case(ours), ALL_UNITS: Case(all_units)}
    chosen = {}
    if torch is not None:
        specialist = _specialist(posterior, images, key, num_samples)
        cases["specialist"], chosen["specialist"] = specialist["same work"]
        cases[REDUCED], chosen[REDUCED] = specialist["reduced"]
        if count <= sizes.full_passes:
            name = "full passes (PyTorch)"
            cases[name], chosen[name] = _full_passes(images, num_samples, sizes)
            for name, make in (("baal", _baal), ("batchbald_redux", _redux)):
                if name in found:
                    cases[name], chosen[name] = make(posterior, images, key, num_samples)
    cases |= _convolutions(posterior, images, torch)
    cases |= measure.matrix_products(*PRODUCT, torch)
    timings, results = measure.interleaved(cases, repeats=sizes.repeats, patience=sizes.patience)
    speeds = measure.product_speeds(timings)
    flops = count * (CONVOLUTIONS + num_samples * data.DENSE)
    half = count * (CONVOLUTIONS + num_samples * DENSE_HALF)
    own = measure.without_speeds(timings)
    products = count * (data.FIRST_DENSE + num_samples * DENSE_EIGHTH)
    least = count * CONVOLUTIONS + products
    by_xla = [
        convolutions + products / speed
        for convolutions, speed in zip(
            timings[OUR_CONVOLUTIONS].runs, measure.product_speeds(timings, "XLA"), strict=True
        )
    ]
    return measure.result(
        f"{count:,} images, K = {num_samples}, BALD",
        own,
        limits={
            "roofline, by ours with all units": [flops / speed for speed in speeds],
            "roofline, half the units": [half / speed for speed in speeds],
            "roofline, without what is dropped": [least / speed for speed in speeds],
            "our convolutions, then products by XLA, without what is dropped": by_xla,
        },
        limits_of={"roofline, by ours with all units": ALL_UNITS},
        agreement=_agreement({name: results[name] for name in own}),
        variants=chosen,
        data=dataset.name,
        seconds_of_parts={
            name.removeprefix("part "): measure.spread(timing.runs)
            for name, timing in timings.items()
            if name.startswith("part ")
        },
        gflops_of_products=measure.product_gflops(timings),
        gflops_product=measure.spread([speed / 1e9 for speed in speeds]),
        gflops_ours=measure.spread([flops / seconds / 1e9 for seconds in own[OURS].runs]),
    )


_our_convolutions = compilation.jit(networks._convolutions_in_batches)


def _convolutions(posterior: Any, images: np.ndarray, torch: Any) -> dict[str, Case]:
    """All before the first dropout, alone."""
    parameters = [
        posterior.shared.params[layer][name] for layer in ("conv_1", "conv_2") for name in "wb"
    ]

    def ours() -> None:
        for _, inputs in inference._inputs(images, np.arange(len(images)), PRODUCT[0]):
            jax.block_until_ready(_our_convolutions(inputs, *parameters))

    cases = {OUR_CONVOLUTIONS: Case(ours)}
    if torch is not None:
        from benchmarks import torch_network as net

        weights, tensor = net.weights_of(posterior.shared), net.images_of(images)

        @torch.inference_mode()
        def theirs() -> None:
            for part in tensor.split(PRODUCT[0]):
                net.convolutions_in_batches(weights, part)

        cases["part convolutions (PyTorch)"] = Case(theirs)
    return cases


@functools.cache
def _plain_network() -> Model:
    """The paper's network, without a thought for what masks drop. Same parameters, same
    masks."""

    def forward(images: jax.Array, mode: str) -> Outputs:
        convolutions = (
            models.ConvolutionParameters(32, 4, name=f"conv_{index + 1}")(channels)
            for index, channels in enumerate((images.shape[-1], 32))
        )
        parameters = [array for pair in convolutions for array in pair]
        hidden = networks._convolutions_in_batches(images, *parameters)
        dense = models.DropoutLinear(128, 0.25, name="dense_1")
        features = jax.nn.relu(dense(hidden, mode))
        head = models.DropoutLinear(data.NUM_CLASSES, 0.5, name="dense_2")
        return Outputs(head(features, mode), features)

    return models.from_haiku(forward)


def _agreement(scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Scores beside ours. The specialist and batchbald_redux have our masks, the others draw
    their own for each image: their scores only have to be alike."""
    ours = scores[OURS]
    found: dict[str, Any] = {}
    for name, theirs in scores.items():
        if name == OURS:
            continue
        difference = float(np.abs(theirs - ours).max())
        same = name.startswith("specialist") or name in ("batchbald_redux", ALL_UNITS)
        correlation = float(np.corrcoef(theirs, ours)[0, 1])
        found[name] = {"largest difference": difference, "correlation": correlation}
        if same and difference > 1e-4:
            raise AssertionError(f"{name} computes something else: scores differ by {difference}")
    return found


def _specialist(posterior: Any, images: np.ndarray, key: Any, num_samples: int) -> dict[str, Any]:
    from benchmarks import torch_network as net

    weights = net.weights_of(posterior.shared)
    tensor = net.images_of(images)
    masks = net.masks_of(key, num_samples, posterior)

    def fastest(ways: dict[str, Any]) -> tuple[Case, str]:
        name, scoring = net.fastest_scoring(ways, weights, tensor[:2_000], masks)
        return Case(lambda: net.score_pool(weights, tensor, masks, *scoring)), name

    return {"same work": fastest(net.DENSE), "reduced": fastest(net.REDUCED)}


def _full_passes(images: np.ndarray, num_samples: int, sizes: Sizes) -> tuple[Case, str]:
    from benchmarks import torch_network as net

    module = net.plain_module(data.trained(sizes.steps), net.AlwaysDropout)
    tensor = net.images_of(images)
    tried = {
        str(size): functools.partial(net.full_passes, module, tensor[:500], 4, size)
        for size in (net.SMALL, 500)
    }
    size = measure.fastest(tried, repeats=3)
    return (
        Case(
            lambda: net.full_passes(module, tensor, num_samples, int(size)),
            lambda: net.full_passes(module, tensor[:50], 2, 50),
        ),
        f"{size} images at a time",
    )


def _baal(posterior: Any, images: np.ndarray, key: Any, num_samples: int) -> tuple[Case, str]:
    """Its wrapper with its dropout, then its score."""
    torch = peers.module("torch")
    wrapper, heuristics = (
        peers.module("baal.modelwrapper"),
        peers.module("baal.active.heuristics"),
    )
    from benchmarks import torch_network as net

    peers.quiet_baal()
    patched = peers.module("baal.bayesian.dropout").patch_module(
        net.plain_module(posterior.shared, torch.nn.Dropout)
    )
    tensor = net.images_of(images).contiguous()

    def scorer(inputs: Any, size: int, replicate: bool) -> Callable[[], np.ndarray]:
        arguments = wrapper.TrainingArgs(
            batch_size=size, workers=0, use_cuda=False, replicate_in_memory=replicate
        )
        model = wrapper.ModelWrapper(patched, arguments)
        labelled = torch.utils.data.TensorDataset(inputs, torch.zeros(len(inputs)))

        def run() -> np.ndarray:
            predictions = model.predict_on_dataset(labelled, num_samples, verbose=False)
            return heuristics.BALD().get_uncertainties(predictions)

        return run

    ways = {
        "replicated, 8": (8, True),
        "one by one, 32": (32, False),
        "one by one, 250": (250, False),
    }
    few = tensor[: max(20, min(100, len(tensor) // 10))]
    best = measure.fastest({name: scorer(few, *way) for name, way in ways.items()}, repeats=1)
    return Case(scorer(tensor, *ways[best]), scorer(few, *ways[best])), best


def _redux(posterior: Any, images: np.ndarray, key: Any, num_samples: int) -> tuple[Case, str]:
    """Its module with its consistent dropout and our masks, then its score."""
    torch, dropout = peers.module("torch"), peers.module("batchbald_redux.consistent_mc_dropout")
    batchbald = peers.module("batchbald_redux.batchbald")
    from benchmarks import torch_network as net

    layers = net.plain_module(posterior.shared, dropout.ConsistentMCDropout)
    first, second = (mask == 0 for mask in net.masks_of(key, num_samples, posterior))
    height, width, channels = net.HIDDEN
    first = first.reshape(1, num_samples, height, width, channels).permute(0, 1, 4, 2, 3)
    layers[5].mask, layers[9].mask = first, second[None]

    base: Any = dropout.BayesianModule

    class Network(base):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def mc_forward_impl(self, inputs: Any) -> Any:
            return torch.log_softmax(self.layers(inputs), dim=1)

    network, tensor = Network(), net.images_of(images).contiguous()

    def scorer(inputs: Any, size: int) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.inference_mode():
                found = torch.cat([network(part, num_samples) for part in inputs.split(size)])
                batch = batchbald.get_bald_batch(found, len(found))
            return np.asarray(batch.scores)[np.argsort(batch.indices)]

        return run

    few = tensor[: max(20, min(100, len(tensor) // 10))]
    best = measure.fastest({str(n): scorer(few, n) for n in (2, 8, 32)}, repeats=1)
    return Case(scorer(tensor, int(best)), scorer(few, int(best))), f"{best} images at a time"


main = measure.command("mc_scoring", run, SIZES)

if __name__ == "__main__":
    raise SystemExit(main())
