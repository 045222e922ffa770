"""Capability `answer`: a short answer to a question about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlbench.capability import Answerer, Batch, Capability, Captioned, Outputs, Prediction, Stated, capability
from vlbench.cost.sample import batch_of, pixels, samples_of, single, text_of
from vlbench.model import Model
from vlbench.task import Sample

QUESTION = 10
ANSWER = 10
CANDIDATES = 3128  # answers that are ranked in the published VQAv2 evaluation,
RANKED = 128  # of which so many are scored in full
CANDIDATE = 4  # tokens of each


def _sample(model: Model, count: int, train: bool) -> Batch:
    if train:
        samples = samples_of(count, text=text_of(model, QUESTION), target={text_of(model, ANSWER): 1.0})
        return batch_of(model, samples, pixels(model, count), single(count))
    samples = samples_of(count, text=text_of(model, QUESTION))
    options = {"decoding": "rank", "k_test": RANKED, "candidates": [text_of(model, CANDIDATE)] * CANDIDATES}
    return batch_of(model, samples, pixels(model, count), single(count), options=options)


def _of_caption(sample: Sample, caption: str) -> Sample:
    """The first half of the caption's words stands for the question, the rest for the answer. So BLIP-2's published
    training (arXiv 2301.12597, prefix language modelling) and ECoFLaP's and RESSA's calibration of its T5 feed captions
    to an encoder and a decoder. A fixed question would show a question encoder one text 128 times."""
    words = caption.split()
    half = (len(words) + 1) // 2
    return replace(sample, text=" ".join(words[:half]), target={" ".join(words[half:]): 1.0}, texts=())


@capability("answer", title="a short answer to a question about an image")
class Answer(Capability[Answerer]):
    """A question about an image -> a short answer, written or chosen among candidates."""

    model = Answerer
    stated = Stated(
        f"one image, one question of {QUESTION} tokens, one answer of {ANSWER}, teacher-forced",
        f"one image, one question of {QUESTION} tokens, {RANKED} of {CANDIDATES:,} answers of {CANDIDATE} ranked",
        _sample,
    )

    captioned = Captioned(make=_of_caption)

    def predict(self, model: Answerer, states: Any, batch: Batch) -> Sequence[Prediction]:
        return model.answer(states, batch)

    def outputs(self, model: Answerer, batch: Batch) -> Outputs:
        return model.answer_outputs(batch)
