"""Capability `judge`: is a sentence about two images true?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlbench.capability import Batch, Capability, Judge, Outputs, Prediction, Stated, capability
from vlbench.cost.sample import batch_of, pixels, samples_of, text_of
from vlbench.model import Model

SENTENCE = 37  # tokens of NLVR2's sentence, the special ones included: what UPop's count is of
SHOWN = f"two images, one sentence of {SENTENCE} tokens"


def _sample(model: Model, count: int, train: bool) -> Batch:
    samples = samples_of(count, images=2, text=text_of(model, SENTENCE), target=True)
    return batch_of(model, samples, pixels(model, 2 * count), torch.arange(2 * count).view(count, 2))


@capability("judge", title="is a sentence about two images true?")
class Decide(Capability[Judge]):
    """Two images and a sentence -> whether it is true of them."""

    model = Judge
    stated = Stated(SHOWN, SHOWN, _sample)

    def predict(self, model: Judge, states: Any, batch: Batch) -> Sequence[Prediction]:
        return model.judge(states, batch)

    def outputs(self, model: Judge, batch: Batch) -> Outputs:
        return model.judge_outputs(batch)
