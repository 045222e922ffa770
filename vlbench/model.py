"""The model contract: cards, how a model is built, opened and saved, and what it can do.

A family is one file in registry/: a subclass of Model (and of one or more capabilities below), decorated with its
cards. The engine knows capabilities, never families.

    @family(Card(name="deit-small", capabilities=("classify",), ...))
    class DeiT(Model, Classifier): ...

What the engine asks of a model, its capabilities say (capability.py).
"""

from __future__ import annotations

import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from .capability import Batch, Json, Stage, capability_of
from .errors import UserError
from .images.spec import ImageSpec
from .images.view import View
from .machine.device import computing_device
from .nn.stock import Stock
from .plugins.cards import joined, read_cards
from .structure import Structure


@dataclass(frozen=True)
class Card:
    """What a name stands for. Literal values only: `vlbench list` reads them without importing the file.

    checkpoint: a hub id, or "mini:NAME" for weights in the package. trained_on: task/split pairs the weights have
    seen; selected_on: those that this checkpoint was chosen by, among others of its training. published:
    "task/split/metric" -> number of the paper, what `vlbench check model=NAME` compares with; of tasks whose evaluators
    differ "task/split/metric?rule=official", with the evaluator's settings.
    default_for: tasks for which this is the suite's model when none is named. prunable: the prunable set in words.
    architecture: the configuration that `Model.build` takes, for families whose cards are data (see `family`).
    training: publication -> what it sets where it trains this model, for recipes that ask (`vlbench.method.Context`).
    """

    name: str
    title: str
    capabilities: tuple[str, ...]
    checkpoint: str
    image: ImageSpec
    revision: str = "main"
    suite: Literal["mini", "full"] = "full"
    default_for: tuple[str, ...] = ()
    licence: str = ""
    source: str = ""
    trained_on: tuple[str, ...] = ()
    selected_on: tuple[str, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    prunable: str = "every attention and feed-forward matrix of every tower"
    architecture: Mapping[str, Json] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def sized(self, shared: Mapping[str, Json]) -> dict[str, Json]:
        """What all sizes of a family share, and over it what this card says of its own, object by object."""
        return joined(shared, self.architecture)


class Model(ABC):
    """One model: a card, the original configuration, and the module.

    A model lives in a *folder* (config.json, model.safetensors, and what its tokenizer needs): a hub snapshot, the
    package's mini weights and a compressed model look alike.

    `open` reads a folder: it makes the object by `build` and fills its weights. The engine then calls `place` once,
    `structure` whenever it wants to know what can be cut, `encode` once for each distinct image of a batch, and the
    second stage of its capability (`classify`, `answer` ...) on what that gave. A cut model is built again by `build`,
    with the configuration of the whole one, and cut before its weights are read. `save_assets` writes what besides the
    weights and the configuration belongs into a folder; `stock` and `architecture` are asked without weights.
    """

    family: ClassVar[str] = ""
    # whether the Outputs of its training batches tell hidden states
    tells_hidden: ClassVar[bool] = False

    def __init__(self, card: Card, config: dict[str, Json], net: nn.Module) -> None:
        self.card, self.config, self.net = card, config, net

    @classmethod
    @abstractmethod
    def build(cls, card: Card, config: dict[str, Json], folder: Path) -> Model:
        """The architecture of `config` with random weights, attention adopted; tokenizer files are in `folder`."""

    @classmethod
    def blank(cls, card: Card, config: dict[str, Json], folder: Path) -> Model:
        """build() of a model all of whose weights will be read from `folder`. A family that can leave them undrawn
        does: drawn, they take the memory of the weights once more."""
        return cls.build(card, config, folder)

    @classmethod
    @abstractmethod
    def open(cls, card: Card, folder: Path) -> Model:
        """build() plus the weights in `folder`, or those of a single checkpoint file of the original project."""

    @abstractmethod
    def structure(self) -> Structure:
        """Where this model can be cut: a pure function of self.net as it is now."""

    @classmethod
    def architecture(cls, card: Card) -> dict[str, Json]:
        """The configuration of the card's own architecture, as `build` takes it, without any file: for counting what
        a model costs, and for checkpoints that are a single file. Raises UserError where only the folder tells it."""
        raise UserError(f"{card.name} is built from a folder with its config.json: give that as checkpoint=FOLDER.")

    def views(self, image: Tensor) -> View | None:
        """What the vision tower takes of one image (3, H, W) uint8, where the card's ImageSpec does not say it: tiles,
        a native grid. Runs in the decoding threads. None: the ImageSpec says it."""
        return None

    def most_images(self, capability: str) -> int | None:
        """How many images a sample may show to a capability; None: as many as there are. A cell whose samples show more
        is refused: the rest of the images would be left out in silence."""
        return None

    @abstractmethod
    def encode(self, images: Any) -> Any:
        """Stage one: normalised images (Batch.images) -> states, an index of which is one image."""

    def stages(self) -> tuple[Stage, ...]:
        """The parts of inference that other runtimes can hold, for `vlbench export --to` and `vlbench time --runtime`.
        Unless a family says more: `encode`, of images of one size to one tensor."""
        images = {"images": ("images", "", "", "")}
        return (Stage("encode", "encode", images, lambda model, *tensors: model.encode(*tensors)),)

    def image_tokens(self, batch: Batch) -> Tensor | None:
        """(batch, tokens), True = a token of an image, in the order in which `<capability>_loss` lays them out, where
        this model mixes images and text in one stream; None where each has its own tower."""
        return None

    def save_assets(self, folder: Path) -> None:  # noqa: B027 - most models have none
        """Write what besides config and weights is needed to open the model (tokenizer files)."""

    def stock(self) -> Stock | None:
        """How the library that this model is built on opens it, cut as it is now, without vlbench; for
        `vlbench export`. None: the family does not say."""
        return None

    def place(self, precision: str) -> None:
        """Bring the module to the device of this process (machine/device.py). Families of models that are larger than
        one GPU do more."""
        self.net.to(computing_device())

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


M = TypeVar("M", bound=type[Model])


def family(*cards: Card | str) -> Callable[[M], M]:
    """Register a Model subclass under the names of its cards. A card is written out, or is one of a JSON file beside
    the family's own, named here: a size more of a known family needs no Python."""

    def register(cls: M) -> M:
        folder = Path(inspect.getfile(cls)).parent
        declared = [c for card in cards for c in ([card] if isinstance(card, Card) else _cards_of(folder / card))]
        for card in declared:
            for capability in card.capabilities:
                if lacking := capability_of(capability).lacking(cls):
                    raise TypeError(f"{card.name}: {cls.__name__} has no {lacking[0]}()")
        cls.cards = tuple(declared)  # type: ignore[attr-defined]
        return cls

    return register


def _cards_of(file: Path) -> list[Card]:
    """The cards of a JSON file; lists are the card's tuples."""
    listed: list[Card] = []
    for row in read_cards(file):
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        image: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row["image"].items()}
        listed.append(Card(**{**facts, "image": ImageSpec(**image)}))
    return listed


def read_config(folder: Path) -> dict[str, Json]:
    """config.json of a model folder. Raises UserError where there is none, or no JSON object in it."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json: put that of the checkpoint there, beside its weights.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): put that of the checkpoint there.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no model's configuration: put that of the checkpoint there.")
    if config.get("quantization_config"):
        raise UserError(
            f"{file} says that the weights are quantised, which is not computed here: give those before it."
        )
    return _without_kernels(config, file)


def _without_kernels(config: dict[str, Json], file: Path) -> dict[str, Json]:
    """The configuration without what it says of how attention or experts are computed, parts of parts included. These
    names are of code: transformers fetches "owner/name" from the hub and runs it, and fetches a kernel of its own where
    flash attention is named and not installed. What is computed in plain PyTorch stays. Raises UserError for the
    name of a repository."""
    plain: dict[str, Json] = {}
    for key, value in config.items():
        if not re.fullmatch(r"_?\w+_implementation(_internal)?", key):
            plain[key] = _without_kernels(value, file) if isinstance(value, dict) else value
            continue
        for name in value.values() if isinstance(value, dict) else [value]:
            if isinstance(name, str) and re.search(r"[^\w]", name):
                raise UserError(
                    f"{file} names code to fetch and run ({key}: {name!r}), and no code of a checkpoint is run: take "
                    "that entry out."
                )
        if value in ("eager", "sdpa"):
            plain[key] = value
    return plain
