"""The one sample that costs are stated for, which a capability states, and the two ways to pass it through a model.

Counted MACs are of `train`: a training-style forward pass, every text given (teacher forcing), as papers count, so that
no number depends on what a model happens to say. Measured times are of `infer`: what evaluation does, encode and then
the capability's method, with lengths fixed for the same reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..capability import Batch, Stated, capability_of
from ..errors import UserError
from ..images.view import View
from ..model import Model
from ..task import Sample

WORD = "a"  # one token in every vocabulary
CAPTION = 14  # tokens of a caption, the special ones included


def stated(capability: str) -> Stated:
    """The sample of one capability. Raises UserError where it states none."""
    sample = capability_of(capability).stated
    if sample is None:
        raise UserError(f"the capability {capability} states no sample for costs: its class should have `stated`.")
    return sample


def train(model: Model, capability: str, batch: Batch) -> Any:
    """The training-style forward pass."""
    return capability_of(capability).counted(model, batch)


def infer(model: Model, capability: str, batch: Batch) -> Any:
    """What evaluation does with the batch."""
    return capability_of(capability).timed(model, batch)


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


def batch_of(model: Model, samples: list[Sample], images: Any, owner: Tensor, **more: Any) -> Batch:
    """A batch of files of the card's size."""
    size = (model.card.image.size,) * 2
    shown = (
        owner.tolist() if isinstance(images[0], View) else owner.to(model.device)
    )  # numbers: on the meta device, too
    return Batch(samples, images, shown, more.pop("options", {}), [size] * len(images), **more)


def single(count: int) -> Tensor:
    """Batch.owner of samples that show one image each."""
    return torch.arange(count)[:, None]


def samples_of(count: int, images: int = 1, **facts: Any) -> list[Sample]:
    """Samples that show `images` images each."""
    paths = [tuple(Path(f"{i}-{k}") for k in range(images)) for i in range(count)]
    return [Sample(str(i), paths[i], **facts) for i in range(count)]
