"""Batch rules as a specialist would write them in PyTorch, on the arrays that ours take.

Import only where torch is there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 2_000  # labelled points compared at once
TINY = 1e-37  # 0 log 0 = 0


def by_rows(points: Tensor) -> Tensor:
    return points


def by_columns(points: Tensor) -> Tensor:
    """The same points, a feature of all of them in one piece: on an AMD EPYC torch's products of a
    matrix and a vector then take a third of the time."""
    return points.t().contiguous().t()


LAYOUTS = {"rows": by_rows, "columns": by_columns}


def _squared_to_one(points: Tensor, norms: Tensor, position: int) -> Tensor:
    """By one matrix-vector product, which reads the points once."""
    found = torch.addmv(norms, points, points[position], alpha=-2.0)
    return found.add_(norms[position]).clamp_(min=0)


@torch.inference_mode()
def k_center(
    points: Tensor,
    labelled: Tensor,
    batch_size: int,
    layout: Callable[[Tensor], Tensor] = by_rows,
) -> list[int]:
    """Farthest first, labelled points as centres."""
    points = layout(points)
    norms = points.square().sum(dim=1)
    nearest = torch.full((len(points),), torch.inf)
    for part in labelled.split(CHUNK):
        products = points @ part.T
        squared = products.mul_(-2).add_(part.square().sum(dim=1)).amin(dim=1).add_(norms)
        nearest = torch.minimum(nearest, squared)
    picks: list[int] = []
    for _ in range(batch_size):
        picks.append(int(nearest.argmax()))
        torch.minimum(nearest, _squared_to_one(points, norms, picks[-1]), out=nearest)
        nearest[picks[-1]] = -torch.inf
    return picks


@torch.inference_mode()
def badge(
    probs: Tensor,
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    layout: Callable[[Tensor], Tensor] = by_rows,
) -> list[int]:
    """k-means++ of hallucinated gradients, never made: |a x z - b x w|^2 from products of both."""
    errors = probs.clone()
    errors[torch.arange(len(probs)), probs.argmax(dim=1)] -= 1
    errors, features = layout(errors), layout(features)
    norms = errors.square().sum(dim=1) * features.square().sum(dim=1)
    picks = [int(norms.argmax())]
    mass = torch.full_like(norms, torch.inf)
    while len(picks) < batch_size:
        last = picks[-1]
        products = (errors @ errors[last]).mul_(features @ features[last])
        torch.minimum(mass, (norms + norms[last] - 2 * products).clamp_(min=0), out=mass)
        mass[last] = 0
        chances = mass.cumsum(dim=0, dtype=torch.float64)
        drawn = torch.rand((), generator=generator, dtype=torch.float64) * chances[-1]
        picks.append(int(torch.searchsorted(chances, drawn, right=True).clamp_(max=len(mass) - 1)))
    return picks


@torch.inference_mode()
def epig(probs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """E I[y; y*] = H[y] + E H[y*] - E H[y, y*] of `[N, K, C]` and `[M, K, C]`, with joints from
    one product a chunk and one logarithm each."""
    num_targets, num_samples, _ = targets.shape
    of_targets = _entropy(targets.mean(dim=1)).mean()
    columns = targets.permute(1, 0, 2).reshape(num_samples, -1) / num_samples
    found = []
    for part in probs.split(chunk):
        rows = part.permute(0, 2, 1).reshape(-1, num_samples)
        joint = rows @ columns  # [n C, M C]
        negative = joint.clamp_min(TINY).log_().mul_(joint).reshape(len(part), -1).sum(dim=1)
        found.append(_entropy(part.mean(dim=1)) + of_targets + negative / num_targets)
    return torch.cat(found)


def _entropy(probs: Tensor) -> Tensor:
    return -(probs * probs.clamp_min(TINY).log()).sum(dim=-1)
