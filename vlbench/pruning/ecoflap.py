"""ECoFLaP's allocation (Sung et al. 2024, arXiv 2310.02998): a ratio for each block from a score of its weights.

Coarse: the score of a block is the sum over its matrices of |dL/dz| of a random direction z (zeroth order, two forward
passes) or of |gradient * weight| (first order). Fine: any pruner, with its block's ratio in every matrix.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.gradients import gradients
from ..errors import RunFailed, UserError
from ..machine.workers import ALONE, World
from ..structure import Structure

Loss = Callable[[], Tensor]
EPSILON = 1e-3  # the step along z
MARGIN = 0.1  # a block may be pruned so much harder than the target


def ecoflap(
    scores: Sequence[float], sizes: Sequence[int], keep: float, max_sparsity: float = 1.0, *, code: bool = False
) -> list[float]:
    """Sparsity of each block. keep: how many of all entries stay; max_sparsity: of any block.

    Every block first gets its floor; the rest is shared out in proportion to the scores, again and again, because a
    block cannot keep more than it has. code: the published rounding, in float32, which keeps up to 66 entries more
    than asked for (it adds where it should take away); else the count is met. Raises UserError where the floors
    alone keep more than asked for.
    """
    if keep > sum(sizes):
        raise UserError(f"an allocation cannot keep {keep:g} of {sum(sizes)} entries.")
    floors = [math.ceil(size * (1 - max_sparsity)) for size in sizes]
    if not code and sum(floors) > keep:
        raise UserError(f"blocks pruned to at most {max_sparsity:.0%} keep {sum(floors)} entries, more than {keep:g}.")
    kept = _published(scores, sizes, keep, max_sparsity) if code else _exact(scores, sizes, int(keep), floors)
    return [min(1.0, max(0.0, 1 - k / size)) for k, size in zip(kept, sizes, strict=True)]


def _exact(scores: Sequence[float], sizes: Sequence[int], keep: int, floors: Sequence[int]) -> list[float]:
    """Water filling: the rest in proportion to the scores among blocks that are not full; what rounding leaves goes to
    the largest remainders. Blocks share evenly where none of them has a score."""
    kept = [float(f) for f in floors]
    weight = [max(0.0, float(s)) for s in scores]
    room = [i for i, size in enumerate(sizes) if kept[i] < size]
    left = keep - sum(kept)
    while left > 1e-9 and room:
        total = sum(weight[i] for i in room)
        share = {i: left * (weight[i] / total if total > 0 else sizes[i] / sum(sizes[j] for j in room)) for i in room}
        full = [i for i in room if kept[i] + share[i] >= sizes[i]]
        for i in full or room:
            kept[i] = min(float(sizes[i]), kept[i] + share[i])
        room = [i for i in room if i not in full] if full else []
        left = keep - sum(kept)
    whole = [math.floor(k + 1e-6) for k in kept]
    order = sorted(range(len(kept)), key=lambda i: (whole[i] - kept[i], i))
    for i in order[: keep - sum(whole)]:
        whole[i] += 1
    return [float(w) for w in whole]


def _published(scores: Sequence[float], sizes: Sequence[int], keep: float, max_sparsity: float) -> list[float]:
    """LayerSparsity.compute_the_sparsity_per_group of the authors' code: single precision, ceilings, and `+=` where
    entries too many should be removed."""
    score = torch.tensor(list(scores), dtype=torch.float32)  # (blocks,)
    size = torch.tensor(list(sizes), dtype=torch.int64)  # (blocks,)
    kept: Tensor = torch.ceil(size * (1 - max_sparsity)).int().to(torch.int64)
    while kept.sum() < keep:
        rest = keep - kept.sum()
        added = torch.ceil(score / score.sum() * rest)
        kept = kept + added
        score[kept >= size] = 0
        kept = torch.clamp(kept, max=size)
        if added.sum() == 0 and kept.sum() < keep:
            kept = _filled(kept, score, size, keep)
        surplus = kept.sum() - keep
        while surplus > 0:
            for i in torch.argsort(kept, descending=True, stable=True).tolist():
                step = min(surplus, kept[i] - (size[i] * (1 - max_sparsity)).int())
                kept[i] += step
                surplus = surplus - step
                if surplus == 0:
                    break
    sparsity = torch.clamp(1 - kept / size, min=0, max=1).double()
    pruned: list[float] = ((1 - sparsity) * size).tolist()
    return pruned


def _filled(kept: Tensor, score: Tensor, size: Tensor, keep: float) -> Tensor:
    missing = keep - kept.sum()
    while missing > 0:
        before = missing
        for i in torch.where(score > 0)[0].tolist():
            step = min(missing, size[i] - kept[i])
            kept[i] += step
            missing = missing - step
            if missing == 0:
                break
        if missing == before:
            break
    return kept


def first_order(
    net: nn.Module, names: Sequence[str], batches: Sequence[tuple[Loss, int]], world: World = ALONE
) -> dict[str, float]:
    """Matrix -> sum of |W| times the batches' mean |gradient|. batches: (the loss of one, its samples)."""
    scores: dict[str, float] = {}
    for name, sums in gradients(net, names, batches, magnitudes=True, world=world).items():
        assert sums.gradient is not None
        scores[name] = float((net.get_parameter(name).detach().abs() * sums.gradient).sum())
    return scores


def zeroth_order(
    net: nn.Module,
    names: Sequence[str],
    losses: Sequence[Loss],
    seeds: Callable[[], int],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    world: World = ALONE,
) -> dict[str, float]:
    """Matrix -> sum over the batches of |L(W + eps z) - L(W - eps z)| / (2 eps), z normal from a seed a batch.

    The weights are put back from a copy: adding and taking away eps z leaves another matrix in half precision. A loss
    that draws random numbers (the negatives of a matching loss) draws the same ones on both sides: the difference of
    other draws would be a thousand times that of the weights. Raises RunFailed where a loss is not finite.
    world: the workers share the batches, and add up what all found in the order of one process.
    """
    differences: dict[str, list[float]] = {}
    drawn = range(len(losses))
    with torch.no_grad():
        for name in names:
            weight = net.get_parameter(name)
            original = weight.detach().clone()
            differences[name] = []
            try:
                for loss, seed in list(zip(losses, [seeds() for _ in drawn], strict=True))[world.rank :: world.size]:
                    z = _direction(original, seed)  # (out, in)
                    weight.copy_(original + EPSILON * z)
                    above = _drawn(loss, seed, weight.device)
                    weight.copy_(original - EPSILON * z)
                    slope = abs(((above - _drawn(loss, seed, weight.device)) / (2 * EPSILON)).item())
                    if not math.isfinite(slope):
                        raise RunFailed(f"the loss around {name} is not finite: weights or data are damaged.")
                    differences[name].append(slope)
            finally:
                weight.copy_(original)
            progress(len(differences), len(names))
    parts = [json.loads(text) for text in world.gather("losses of ECoFLaP", json.dumps(differences))]
    return {name: _added([parts[i % world.size][name][i // world.size] for i in drawn]) for name in names}


def _drawn(loss: Loss, seed: int, device: torch.device) -> Tensor:
    """The loss with random numbers of this seed."""
    with numbers_apart(device):
        torch.manual_seed(seed)
        return loss()


@contextmanager
def numbers_apart(device: torch.device) -> Iterator[None]:
    """What is drawn inside the with-statement leaves the global random numbers as they were."""
    kind = "cuda" if device.type == "cpu" else device.type  # fork_rng keeps the host's numbers of any kind
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=kind):
        yield


def _added(values: Sequence[float]) -> float:
    """In single precision and in order, as the authors' code adds."""
    total = torch.zeros(1)
    for value in values:
        total += value
    return float(total)


def _direction(like: Tensor, seed: int) -> Tensor:
    """Drawn on the host, so that every device sees the same."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=rng, dtype=like.dtype).to(like.device)


def seeds_from(seed: int) -> Callable[[], int]:
    """The authors' stream of seeds: np.random.randint(10^9), one a batch and matrix."""
    rng = np.random.RandomState(seed)
    return lambda: int(rng.randint(1_000_000_000))


def block_ratios(
    structure: Structure, scores: Mapping[str, float], fraction: float, *, code: bool = False
) -> dict[str, float]:
    """Matrix -> its block's ratio."""
    blocks = [
        {n: torch.Size(s).numel() for site in b.sites for n, s in site.matrices.items()}
        for t in structure.towers
        for b in t.blocks
    ]
    sizes = [sum(block.values()) for block in blocks]
    total = sum(sizes)
    keep = total * (1 - fraction) if code else total - int(total * fraction)
    highest = min(1.0, fraction + MARGIN)
    ratios = ecoflap([sum(scores[n] for n in block) for block in blocks], sizes, keep, highest, code=code)
    return {name: ratio for block, ratio in zip(blocks, ratios, strict=True) for name in block}
