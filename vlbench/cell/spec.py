"""What a cell is asked to be: its words, the links of its chain with their options, and how words are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..method import Method
from ..options import Calibration, MethodOptions, PruneOptions
from ..plugins.entry import Entry
from ..plugins.table import table
from ..task import Task, TaskOptions


class Words(BaseModel):
    """The keys that every cell has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(description="the benchmark")
    method: str = Field("dense", description="a method, or a chain like magnitude+finetune")
    model: str = Field("", description="a model; by default the suite's model for the task")
    suite: Literal["mini", "full"] = Field("mini", description="mini: everything ships in the package; full: your data")
    recipe: str = Field("", description="a named set of option values of the method")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of methods that draw random numbers")
    split: str = Field("", description="the split to evaluate; by default the task's report split")
    checkpoint: str = Field("", description="weights to use instead of the card's: a model folder or a file")
    train: str = Field(
        "",
        description="another task whose train split methods learn from; by default the task's own. Only train is "
        "replaced: what is chosen on, and what is reported, stay the task's",
    )
    label: str = Field("", description="a name for your own checkpoint in tables", pattern=r"^[\w.+-]*$")
    limit: int = Field(0, ge=0, description="evaluate only the first N samples; never enters a leaderboard")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of evaluation and training")
    preprocessing: Literal["folder", "card"] = Field(
        "folder",
        description="of images: as the checkpoint's folder says, else the card; card: the card's",
    )
    batch_size: int = Field(0, ge=0, description="samples a batch in evaluation; 0: chosen by the suite")


class LinkFacts(BaseModel):
    """What a cell's identity and its plan need of a link, in JSON: with these alone a cell is found again without
    importing its methods, most of which import torch (see index.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    number: str  # the version of a built-in with these options
    recorded: dict[str, Any]  # the options, as identities and records have them
    printed: dict[str, Any]  # all options
    uses_seed: bool
    reads_data: bool
    looks_at: Calibration | None
    chooses: bool  # on the select split
    checks_task: bool  # whether the options want to see the task: they are then loaded
    target: str | None  # of sparsity, as written (0.5, 2:4); None: it does not prune
    paths: dict[str, str]  # option -> the file or folder that it names
    steps: int  # of training; 0: there is no such option

    @classmethod
    def of(cls, method: type[Method], options: MethodOptions) -> LinkFacts:
        recorded = options.recorded()
        return cls(
            number=str(method.version_of(recorded)), recorded=recorded, printed=options.model_dump(mode="json"),
            uses_seed=method.uses_seed, reads_data=method.reads_data, looks_at=options.looks_at,
            chooses=options.chooses, checks_task=options.checks_task,
            target=_target(options), paths={k: str(v) for k, v in options if isinstance(v, Path)},
            steps=int(getattr(options, "steps", 0)),
        )  # fmt: skip


def _target(options: MethodOptions) -> str | None:
    if not isinstance(options, PruneOptions):
        return None
    return options.sparsity if isinstance(options.sparsity, str) else f"{options.sparsity:.6g}"


@dataclass(frozen=True)
class LinkSpec:
    """One link of the chain, with its options resolved. loaded: its class and options, for who applies it. version: the
    built-in's number, or the digest of a stranger's source, read now: the file may be edited while the cell runs."""

    entry: Entry
    facts: LinkFacts
    loaded: Callable[[], tuple[type[Method], MethodOptions]] = field(compare=False, repr=False)
    version: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", self.entry.digest() or self.facts.number)

    @classmethod
    def of(cls, entry: Entry, method: type[Method], options: MethodOptions) -> LinkSpec:
        return cls(entry, LinkFacts.of(method, options), lambda: (method, options))

    @property
    def method(self) -> type[Method]:
        return self.loaded()[0]

    @property
    def options(self) -> MethodOptions:
        return self.loaded()[1]

    @property
    def calibration(self) -> str:
        """The task or file that it is calibrated on in the place of the task's train split, or nothing."""
        return "" if self.facts.looks_at is None else self.facts.looks_at.source

    @property
    def learns(self) -> bool:
        """Whether it reads the train split, the task's own or that of train=."""
        return self.facts.uses_seed and self.facts.reads_data and not self.calibration


@dataclass(frozen=True)
class Spec:
    """A resolved cell, before any data was read. given: the words that it was resolved from, and resolves from again.
    of_data: those of them that say what is evaluated, by which the dense model is evaluated too."""

    words: Words
    task: Entry
    task_class: type[Task]
    task_options: TaskOptions
    model: Entry
    split: str
    links: tuple[LinkSpec, ...]
    recipe: str
    given: Mapping[str, str] = field(default_factory=dict, compare=False)
    of_data: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def method(self) -> str:
        """The chain as a table prints it: a named chain with all its links keeps its name."""
        names = [link.entry.name for link in self.links]
        for entry in table("methods").entries.values():
            if "links" in entry.facts and list(entry.facts["links"]) == names:
                return entry.name
        return "+".join(names)

    @property
    def uses_seed(self) -> bool:
        return any(link.facts.uses_seed for link in self.links)

    @property
    def learns(self) -> bool:
        """Whether a link reads the train split, or draws numbers of the seed for a task that has one: the identity of
        such a cell has the digest of the split either way."""
        draws = "train" in self.task_class.roles()
        return any(link.learns or (draws and link.facts.uses_seed and not link.calibration) for link in self.links)

    @property
    def target(self) -> str:
        """The sparsity target as written (0.5, 2:4), empty for a chain that does not prune."""
        return next((link.facts.target for link in self.links if link.facts.target is not None), "")
