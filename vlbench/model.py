"""The model contract: cards, how a model is built, opened and saved, and what it can do.

A family is one file in registry/: a subclass of Model (and of one or more capabilities below), decorated with its
cards. The engine knows capabilities, never families.

    @family(Card(name="deit-small", capabilities=("classify",), ...))
    class DeiT(Model, Classifier): ...

Every capability has two stages, so that shared work is done once: `encode` runs once per distinct image, and the
second stage (named after the capability) gets the states with the `owner` of each sample.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .structure import Structure
from .task import Sample

Json = Any
Prediction = dict[str, Json]


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing of a checkpoint. resize: "squash" to size x size, or "crop": shorter side to size / crop_pct,
    then the centre. mean and std are of values in [0, 1]."""

    size: int
    resize: Literal["squash", "crop"] = "squash"
    crop_pct: float = 1.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Card:
    """What a name stands for. Literal values only: `vlbench list` reads them without importing the file.

    checkpoint: a hub id, or "mini:NAME" for weights in the package. trained_on: task/split pairs the weights have
    seen. published: "task/split/metric" -> number of the paper, what `vlbench check model=NAME` compares with.
    default_for: tasks for which this is the suite's model when none is named. prunable: the prunable set in words.
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
    published: Mapping[str, float] = field(default_factory=dict)
    prunable: str = "every attention and feed-forward matrix of every tower"


@dataclass
class Batch:
    """What the second stage gets.

    samples: n of them. images: (I, 3, H, W), normalised, the distinct images of the samples. owner: int64 (n, m), the
    rows of `images` that each sample shows, m images a sample, non-decreasing in its first column. options: the
    task's evaluation settings for this capability (answer candidates, beams ...).
    """

    samples: Sequence[Sample]
    images: Tensor
    owner: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)


class Model(ABC):
    """One model: a card, the original configuration, and the module.

    A model lives in a *folder* (config.json, model.safetensors, and what its tokenizer needs): a hub snapshot, the
    package's mini weights and a compressed model look alike.
    """

    family: ClassVar[str] = ""

    def __init__(self, card: Card, config: dict[str, Json], net: nn.Module) -> None:
        self.card, self.config, self.net = card, config, net

    @classmethod
    @abstractmethod
    def build(cls, card: Card, config: dict[str, Json], folder: Path) -> Model:
        """The architecture of `config` with random weights, attention adopted; tokenizer files are in `folder`."""

    @classmethod
    @abstractmethod
    def open(cls, card: Card, folder: Path) -> Model:
        """build() plus the weights in `folder`, or those of a single checkpoint file of the original project."""

    @abstractmethod
    def structure(self) -> Structure:
        """Where this model can be cut: a pure function of self.net as it is now."""

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Stage one: (I, 3, H, W) normalised images -> states, an index of which is one image."""

    def save_assets(self, folder: Path) -> None:  # noqa: B027 - most models have none
        """Write what besides config and weights is needed to open the model (tokenizer files)."""

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


class Classifier(ABC):
    """Capability `classify`: images -> logits over `classes`."""

    classes: Sequence[str]

    @abstractmethod
    def logits(self, states: Any) -> Tensor:
        """(I, classes)."""

    def classify(self, states: Any, batch: Batch) -> list[Prediction]:
        """The five best class names of each sample, best first; ties go to the lower class index."""
        logits = self.logits(states).float()
        best = logits.sort(dim=1, descending=True, stable=True).indices[:, :5].tolist()
        rows = batch.owner[:, 0].tolist()
        return [{"top5": [self.classes[i] for i in best[row]]} for row in rows]

    def classify_loss(self, batch: Batch) -> Tensor:
        """Cross entropy; sample.target is the class name."""
        index = {name: i for i, name in enumerate(self.classes)}
        logits = self.logits(self.encode(batch.images))[batch.owner[:, 0]]  # type: ignore[attr-defined]
        target = torch.tensor([index[s.target] for s in batch.samples], device=logits.device)
        return F.cross_entropy(logits.float(), target)


class Answerer(ABC):
    """Capability `answer`: a question about an image -> a short answer.

    options: `decoding` "rank" (over `candidates`, the `k_test` best by their first token) or "generate".
    """

    @abstractmethod
    def answer(self, states: Any, batch: Batch) -> list[Prediction]:
        """[{"answer": text}] for each sample; sample.text is the question."""

    @abstractmethod
    def answer_loss(self, batch: Batch) -> Tensor:
        """Mean over samples of the weighted negative log likelihood; sample.target is {answer: weight}."""


CAPABILITIES: dict[str, type] = {"classify": Classifier, "answer": Answerer}

M = TypeVar("M", bound=type[Model])


def family(*cards: Card) -> Callable[[M], M]:
    """Register a Model subclass under the names of its cards."""

    def register(cls: M) -> M:
        for card in cards:
            for capability in card.capabilities:
                if not hasattr(cls, capability):
                    raise TypeError(f"{card.name}: {cls.__name__} has no {capability}()")
        cls.cards = cards  # type: ignore[attr-defined]
        return cls

    return register


def read_config(folder: Path) -> dict[str, Json]:
    """config.json of a model folder."""
    config: dict[str, Json] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config
