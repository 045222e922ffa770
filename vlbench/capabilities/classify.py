"""Capability `classify`: the class of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlbench.capability import Batch, Capability, Classifier, Outputs, Prediction, Stated, capability
from vlbench.cost.sample import batch_of, pixels, samples_of, single
from vlbench.model import Model
from vlbench.task import Sample


def _sample(model: Model, count: int, train: bool) -> Batch:
    samples = samples_of(count, target=model.classes[0])  # type: ignore[attr-defined]
    return batch_of(model, samples, pixels(model, count), single(count))


@capability("classify", title="the class of an image", texts=False)
class Classify(Capability[Classifier]):
    """Images -> logits over the model's classes; the loss is cross entropy."""

    model = Classifier
    stated = Stated("one image", "one image", _sample)

    def predict(self, model: Classifier, states: Any, batch: Batch) -> Sequence[Prediction]:
        return model.classify(states, batch)

    def outputs(self, model: Classifier, batch: Batch) -> Outputs:
        return model.classify_outputs(batch)

    def check_samples(self, model: Classifier, samples: Sequence[Sample]) -> None:
        model.check_samples(samples)
