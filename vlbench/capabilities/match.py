"""Capability `match`: which text belongs to which image (retrieval), in two passes over the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vlbench.capability import (
    Batch,
    Capability,
    Captioned,
    Evaluation,
    Matcher,
    Outputs,
    Prediction,
    Stated,
    Views,
    capability,
)
from vlbench.cost.sample import CAPTION, batch_of, pixels, samples_of, single, text_of
from vlbench.evaluation.matching import matched
from vlbench.evaluation.predictions import Line, Predictions
from vlbench.model import Model
from vlbench.task import Sample

SHOWN = f"one image, one text of {CAPTION} tokens: both embedded, and the pair matched where the model does that"


def _sample(model: Model, count: int, train: bool) -> Batch:
    text = text_of(model, CAPTION)
    pairs = {str(i): torch.tensor([i]) for i in range(count)}
    options = {"gallery": [text] * count, "pairs": pairs}
    return batch_of(model, samples_of(count, texts=(text,)), pixels(model, count), single(count), options=options)


@capability("match", title="which text belongs to which image")
class Match(Capability[Matcher]):
    """Images and texts -> vectors whose dot products rank them; models that re-rank add logits of the best pairs."""

    model = Matcher
    stated = Stated(SHOWN, SHOWN, _sample)
    loss_over_batch = True
    momentum = True
    captioned = Captioned(
        lambda sample: sample.texts[0], lambda sample, text: replace(sample, target=sample.cluster, texts=(text,))
    )

    def predict(self, model: Matcher, states: Any, batch: Batch) -> Sequence[Prediction]:
        """The first pass."""
        return model.embed(states, batch)

    def outputs(self, model: Matcher, batch: Batch) -> Outputs:
        return model.match_outputs(batch)

    def views(self, model: Matcher, batch: Batch, twin: Matcher) -> Views:
        return model.match_momentum(batch, twin)

    def evaluate(self, run: Evaluation, samples: Sequence[Sample], lines: Predictions) -> list[Line]:
        return matched(run, samples, lines)

    def counted(self, model: Matcher, batch: Batch) -> Any:
        """Both passes: the loss over one pair would have no negatives, and so no pair to match."""
        return self.timed(model, batch)

    def timed(self, model: Matcher, batch: Batch) -> Any:
        states = model.encode(batch.images)  # type: ignore[attr-defined]
        embedded: list[Any] = [model.embed(states, batch)]
        return [*embedded, model.match(states, batch)] if model.reranks else embedded
