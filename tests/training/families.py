"""One small model of every family with the package's weights, and a training batch that is as uneven as real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlbench.capability import Batch
from vlbench.plugins.table import table
from vlbench.task import Sample
from vlbench.tensors.locate import locate

FAMILIES = (
    "deit-mini",
    "segmenter-mini",
    "blip-vqa-mini",
    "blip-nlvr-mini",
    "blip-caption-mini",
    "blip-retrieval-mini",
    "clip-mini",
)
TEXTS = (
    "a red circle",
    "a small blue square left of a green circle",
    "two circles",
    "the square is above a large yellow triangle and a circle",
    "a circle",
    "a blue triangle",
)
OWNER = torch.tensor([[0, 3], [0, 1], [1, 2], [1, 3], [2, 0], [3, 1]])
SIZE = 64


def open_model(name: str) -> Any:
    """The model, every dropout of it at 0.2 where its library has one."""
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    set_dropout(model.net, 0.2)
    return model


def set_dropout(net: nn.Module, p: float) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = p


def capability(model: Any) -> str:
    return str(model.card.capabilities[0])


def batch_of(model: Any, seed: int = 0) -> Batch:
    """Six samples over four images. Their texts and answers differ in length and number; half of the pixels of the
    first two maps have no class, and all of the third's."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, SIZE, SIZE, generator=rng).to(model.dtype)
    targets: dict[str, list[Any]] = {
        "classify": [model.classes[i] for i in (0, 3, 1, 3, 2, 0)] if capability(model) == "classify" else [],
        "answer": [
            {"red": 1.0},
            {"yes": 0.6, "no": 0.3},
            {"2": 1.0},
            {"a red circle": 0.9},
            {"no": 1.0},
            {"blue": 1.0},
        ],
        "judge": [True, False, False, True, True, False],
    }
    wanted = targets.get(capability(model), list(TEXTS))
    samples = [Sample(str(i), (), TEXTS[i], wanted[i], texts=(TEXTS[i],)) for i in range(6)]
    maps: Tensor | None = None
    if capability(model) == "segment":
        maps = torch.randint(0, 8, (6, SIZE, SIZE), generator=rng)
        maps[:2, : SIZE // 2] = 255
        maps[2] = 255
    return Batch(samples, images, OWNER, maps=maps)


def loss(model: Any, batch: Batch) -> Tensor:
    found: Tensor = getattr(model, capability(model) + "_loss")(batch)
    return found


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Take the gradients off."""
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found
