"""Parameters and MACs of a model as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..data.images import ImageStore
from ..model import Batch, Matcher, Model
from ..record import Parameters
from ..task import Sample, Task
from ..training.batches import collate
from .stated import STATED, train


def count_parameters(model: Model, *, dense: int, prunable: int, towers: Mapping[str, int]) -> Parameters:
    """Counts after compression. dense, prunable, towers: sizes of the model before it."""
    structure = model.structure()
    left = {
        tower.name: sum(int(model.net.get_parameter(m).count_nonzero()) for m in _matrices(tower.sites))
        for tower in structure.towers
    }
    parameters = list(model.net.parameters())
    return Parameters(
        dense=dense,
        total=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.count_nonzero()) for p in parameters),
        prunable=prunable,
        removed=prunable - sum(left.values()),
        towers={name: round(1 - left[name] / size, 6) for name, size in towers.items()},
    )


def _matrices(sites: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(name for site in sites for name in site.matrices))


def count_macs(
    model: Model, task: Task, store: ImageStore, samples: Sequence[Sample], settings: Mapping[str, Any]
) -> int:
    """Multiply-accumulates of one inference: the split's first sample that decodes, both stages, with the task's
    settings (1 MAC = 2 FLOPs, torch's FlopCounterMode; zeros of a mask are not seen)."""
    for sample in samples[:100]:
        try:
            batch = collate([sample], store, model.device, settings)
        except OSError:
            continue
        model.net.eval()
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            for method, seen in _passes(model, task, batch):
                getattr(model, method)(model.encode(batch.images), seen)
        return int(counter.get_total_flops()) // 2
    return 0


def stated_macs(model: Model, capability: str) -> int:
    """Multiply-accumulates of the capability's stated sample: a training-style forward pass (see stated.py)."""
    model.net.eval()
    batch = STATED[capability].make(model, 1, True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        train(model, capability, batch)
    return int(counter.get_total_flops()) // 2


def _passes(model: Model, task: Task, batch: Batch) -> list[tuple[str, Batch]]:
    """The capability's methods with what each is given. Retrieval: embed, then re-rank the image's own texts."""
    if task.capability != "match":
        return [(task.capability, batch)]
    found = [("embed", batch)]
    if cast(Matcher, model).reranks and batch.options.get("k_test"):
        sample = batch.samples[0]
        pairs = {sample.id: np.arange(len(sample.texts))}
        found.append(("match", replace(batch, options={**batch.options, "gallery": sample.texts, "pairs": pairs})))
    return found
