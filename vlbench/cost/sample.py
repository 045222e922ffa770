"""The one sample that costs are stated for, of each capability, and the two ways to pass it through a model.

Counted MACs are of `train`: a training-style forward pass, every text given (teacher forcing), as papers count, so that
no number depends on what a model happens to say. Measured times are of `infer`: what evaluation does, encode and then
the capability's method, with lengths fixed for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..capability import Batch
from ..errors import UserError
from ..images.view import View
from ..model import Model
from ..task import Sample

WORD = "a"  # one token in every vocabulary
SENTENCE = 37  # tokens of NLVR2's sentence, the special ones included: what UPop's count is of
CAPTION = 14  # of a caption, the same way
QUESTION = 10
ANSWER = 10
CANDIDATES = 3128  # answers that are ranked in the published VQAv2 evaluation,
RANKED = 128  # of which so many are scored in full
CANDIDATE = 4  # tokens of each


@dataclass(frozen=True)
class Stated:
    """The sample of one capability. trained, inferred: what passes through the model, in words."""

    trained: str
    inferred: str
    make: Callable[[Model, int, bool], Batch]  # (model, samples, train) -> batch


def train(model: Model, capability: str, batch: Batch) -> Any:
    """The training-style forward pass."""
    if capability == "match":  # its loss over one pair would have no negatives, and so no pair to match
        return infer(model, capability, batch)
    return getattr(model, f"{capability}_loss")(batch)


def infer(model: Model, capability: str, batch: Batch) -> Any:
    """What evaluation does with the batch."""
    states = model.encode(batch.images)
    if capability != "match":
        return getattr(model, capability)(states, batch)
    found = [model.embed(states, batch)]  # type: ignore[attr-defined]
    if model.reranks:  # type: ignore[attr-defined]
        found.append(model.match(states, batch))  # type: ignore[attr-defined]
    return found


def text_of(model: Model, tokens: int) -> str:
    """A text that the model's tokenizer makes `tokens` tokens of, the special ones included."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise UserError(f"{model.card.name} has no tokenizer, so that no text of {tokens} tokens can be made.")
    text = " ".join([WORD] * (tokens - _length(tokenizer, WORD) + 1))
    if _length(tokenizer, text) != tokens:
        raise UserError(f"the tokenizer of {model.card.name} makes no text of {tokens} tokens of {WORD!r}.")
    return text


def _length(tokenizer: Any, text: str) -> int:
    encoded = tokenizer([text])
    return len(getattr(encoded, "input_ids", encoded)[0])


def pixels(model: Model, images: int) -> Any:
    """Noise: hardware is faster on zeros. On the meta device, nothing. A square of the card's size; where the model has
    its own preprocessing, what that makes of it."""
    size = model.card.image.size
    random = torch.Generator().manual_seed(0)
    view = model.views(torch.randint(0, 256, (3, size, size), generator=random).to(torch.uint8))
    if view is not None:
        return [view.on(model.device, model.dtype)] * images
    shape = (images, 3, size, size)
    if model.device.type == "meta":
        return torch.empty(shape, device="meta", dtype=model.dtype)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(model.device, model.dtype)


def _batch(model: Model, samples: list[Sample], images: Any, owner: Tensor, **more: Any) -> Batch:
    size = (model.card.image.size,) * 2
    shown = (
        owner.tolist() if isinstance(images[0], View) else owner.to(model.device)
    )  # numbers: on the meta device, too
    return Batch(samples, images, shown, more.pop("options", {}), [size] * len(images), **more)


def _one_image_each(count: int) -> Tensor:
    return torch.arange(count)[:, None]


def _samples(count: int, images: int = 1, **facts: Any) -> list[Sample]:
    paths = [tuple(Path(f"{i}-{k}") for k in range(images)) for i in range(count)]
    return [Sample(str(i), paths[i], **facts) for i in range(count)]


def _classify(model: Model, count: int, train: bool) -> Batch:
    samples = _samples(count, target=model.classes[0])  # type: ignore[attr-defined]
    return _batch(model, samples, pixels(model, count), _one_image_each(count))


def _answer(model: Model, count: int, train: bool) -> Batch:
    if train:
        samples = _samples(count, text=text_of(model, QUESTION), target={text_of(model, ANSWER): 1.0})
        return _batch(model, samples, pixels(model, count), _one_image_each(count))
    samples = _samples(count, text=text_of(model, QUESTION))
    options = {"decoding": "rank", "k_test": RANKED, "candidates": [text_of(model, CANDIDATE)] * CANDIDATES}
    return _batch(model, samples, pixels(model, count), _one_image_each(count), options=options)


def _judge(model: Model, count: int, train: bool) -> Batch:
    samples = _samples(count, images=2, text=text_of(model, SENTENCE), target=True)
    return _batch(model, samples, pixels(model, 2 * count), torch.arange(2 * count).view(count, 2))


def _caption(model: Model, count: int, train: bool) -> Batch:
    lengths = {"beams": 3, "min_length": CAPTION, "max_length": CAPTION}
    options = {"prompt": "", **({} if train else lengths)}
    samples = _samples(count, target=text_of(model, CAPTION))
    return _batch(model, samples, pixels(model, count), _one_image_each(count), options=options)


def _match(model: Model, count: int, train: bool) -> Batch:
    text = text_of(model, CAPTION)
    pairs = {str(i): torch.tensor([i]) for i in range(count)}
    options = {"gallery": [text] * count, "pairs": pairs}
    return _batch(model, _samples(count, texts=(text,)), pixels(model, count), _one_image_each(count), options=options)


def _segment(model: Model, count: int, train: bool) -> Batch:
    """Images are exactly one window: what a model does with more is the same, several times."""
    windows = pixels(model, count)
    if train:
        maps = torch.zeros((count, *windows.shape[2:]), dtype=torch.long, device=model.device)
        return _batch(model, _samples(count), windows, _one_image_each(count), maps=maps)
    size = model.card.image.size
    options = {"window": size, "stride": size, "scales": [1.0], "flip": False}
    return _batch(model, _samples(count), list(windows), _one_image_each(count), options=options)


_PAIR = f"two images, one sentence of {SENTENCE} tokens"
_MATCHED = f"one image, one text of {CAPTION} tokens: both embedded, and the pair matched where the model does that"
STATED: dict[str, Stated] = {
    "classify": Stated("one image", "one image", _classify),
    "segment": Stated("one window", "an image of one window, one scale, not flipped", _segment),
    "caption": Stated(
        f"one image, one caption of {CAPTION} tokens, teacher-forced",
        f"one image, a caption of {CAPTION} tokens written with 3 beams",
        _caption,
    ),
    "judge": Stated(_PAIR, _PAIR, _judge),
    "answer": Stated(
        f"one image, one question of {QUESTION} tokens, one answer of {ANSWER}, teacher-forced",
        f"one image, one question of {QUESTION} tokens, {RANKED} of {CANDIDATES:,} answers of {CANDIDATE} ranked",
        _answer,
    ),
    "match": Stated(_MATCHED, _MATCHED, _match),
}
