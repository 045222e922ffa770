"""Capability `segment`: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlbench.capability import Batch, Capability, Outputs, Prediction, Segmenter, Stated, capability
from vlbench.cost.sample import batch_of, pixels, samples_of, single
from vlbench.images.maps import unpack_map
from vlbench.model import Model


def _sample(model: Model, count: int, train: bool) -> Batch:
    """Images are exactly one window: what a model does with more is the same, several times."""
    windows = pixels(model, count)
    if train:
        maps = torch.zeros((count, *windows.shape[2:]), dtype=torch.long, device=model.device)
        return batch_of(model, samples_of(count), windows, single(count), maps=maps)
    size = model.card.image.size
    options = {"window": size, "stride": size, "scales": [1.0], "flip": False}
    return batch_of(model, samples_of(count), list(windows), single(count), options=options)


@capability("segment", title="a class for every pixel", texts=False)
class Segment(Capability[Segmenter]):
    """Images that keep their aspect ratio -> maps of classes; the loss is the mean over the pixels that have one."""

    model = Segmenter
    stated = Stated("one window", "an image of one window, one scale, not flipped", _sample)

    def predict(self, model: Segmenter, states: Any, batch: Batch) -> Sequence[Prediction]:
        return model.segment(states, batch)

    def outputs(self, model: Segmenter, batch: Batch) -> Outputs:
        return model.segment_outputs(batch)

    def class_map(self, prediction: Any) -> Any:
        if isinstance(prediction, Mapping) and "map" in prediction:
            return unpack_map(prediction["map"])
        return None

    def terms(self, model: Segmenter, batch: Batch) -> int:
        return model.segment_terms(batch)
