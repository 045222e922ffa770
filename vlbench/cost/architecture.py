"""A card's architecture without its weights: for counting, not for running.

Nothing is downloaded: the configuration is the card's own, and a BERT vocabulary of placeholders stands in for the
tokenizer's files, since only the number of tokens counts. Nothing is multiplied either: BLIP takes a second.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from ..model import Card, Model
from ..plugins.entry import Entry
from .sample import WORD

BERT_WORDS = 30522  # of bert-base-uncased: whose last is followed by what a family adds
BERT_SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1037: WORD}

T = TypeVar("T")


def with_blank(entry: Entry, work: Callable[[Model], T]) -> T:
    """work(the model of a card with meaningless weights): on the meta device, which computes nothing, and where a
    family asks for values (the mask of a text) on the CPU. work must be repeatable. Raises UserError where the card
    does not tell its architecture."""
    family = entry.load()
    card: Card = next(c for c in family.cards if c.name == entry.name)
    config = family.architecture(card)
    with assets(card) as folder:
        try:
            with _PlainAttention():
                return work(_build(family, card, config, folder, "meta"))
        except (NotImplementedError, RuntimeError, TypeError, ValueError):
            with _NoProducts():  # type: ignore[no-untyped-call]
                return work(_build(family, card, config, folder, "cpu"))


def _build(family: Any, card: Card, config: dict[str, Any], folder: Path, device: str) -> Model:
    with torch.device(device), _NoRandom():  # type: ignore[no-untyped-call]
        model: Model = family.build(card, config, folder)
    model.net.eval()
    return model


class _NoRandom(TorchDispatchMode):
    """Zeros in place of random weights: drawing them takes most of the time of building a model."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_, torch.ops.aten.erfinv_):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


class _PlainAttention(TorchFunctionMode):
    """The two products of attention, which are all that is counted of it, in place of everything that torch does for it
    on the meta device: there that takes half of the time of counting a model of 60 blocks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(("query", "key", "value")))
        shared = q.shape[-3] // k.shape[-3] if kwargs.get("enable_gqa") else 1  # query heads that read the same keys
        k, v = (t.repeat_interleave(shared, -3) if shared > 1 else t for t in (k, v))
        return (q @ k.mT) @ v


class _NoProducts(TorchDispatchMode):
    """What a FlopCounterMode inside counts is not computed: the results are zeros of the right shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        shapes = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
        outputs = func(*shapes[0], **shapes[1])
        return tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), outputs)


@contextmanager
def assets(card: Card) -> Iterator[Path]:
    """A folder with what a tokenizer is read from: the package's own for a mini card, placeholders otherwise."""
    if card.checkpoint.startswith("mini:"):
        from ..tensors.locate import locate

        yield locate(card.checkpoint, card.revision, {})
        return
    with tempfile.TemporaryDirectory(prefix="vlbench-cost-") as name:
        words = [BERT_SPECIAL.get(i, f"[unused{i}]") for i in range(BERT_WORDS)]
        (Path(name) / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        yield Path(name)
