"""Capability `caption`: a sentence that says what an image shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlbench.capability import Batch, Capability, Captioned, Captioner, Outputs, Prediction, Stated, capability
from vlbench.cost.sample import CAPTION, batch_of, pixels, samples_of, single, text_of
from vlbench.model import Model


def _sample(model: Model, count: int, train: bool) -> Batch:
    lengths = {"beams": 3, "min_length": CAPTION, "max_length": CAPTION}
    options = {"prompt": "", **({} if train else lengths)}
    samples = samples_of(count, target=text_of(model, CAPTION))
    return batch_of(model, samples, pixels(model, count), single(count), options=options)


@capability("caption", title="a sentence about an image")
class Caption(Capability[Captioner]):
    """Images -> sentences, by beam search; the loss is the mean over the caption's tokens."""

    model = Captioner
    stated = Stated(
        f"one image, one caption of {CAPTION} tokens, teacher-forced",
        f"one image, a caption of {CAPTION} tokens written with 3 beams",
        _sample,
    )

    captioned = Captioned(
        lambda sample: str(sample.target), lambda sample, text: replace(sample, target=text, texts=())
    )

    def predict(self, model: Captioner, states: Any, batch: Batch) -> Sequence[Prediction]:
        return model.caption(states, batch)

    def outputs(self, model: Captioner, batch: Batch) -> Outputs:
        return model.caption_outputs(batch)

    def terms(self, model: Captioner, batch: Batch) -> int:
        return model.caption_terms(batch)
