"""The task contract: which samples, which capability answers them, and how an answer is scored.

A task is one file in tasks/:

    @task("vqav2", title="VQAv2", capability="answer", metric="accuracy", version=1)
    class VQAv2(Task): ...

Metadata only: a task never decodes an image and never sees a model.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from .errors import UserError
from .options import later, recorded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .mini.world import World

Score = float | list[float]
Role = Literal["train", "select", "report"]


@dataclass(frozen=True)
class Sample:
    """One sample. images: the files it shows, in the order the task means them. text: question, sentence or caption.

    target: what the training loss wants (capability specific), None where the split has no labels. cluster: samples
    of one cluster are not independent (VQAv2: the image), so that intervals are computed over clusters. texts: what the
    image is to be matched with (retrieval): all its captions where it is evaluated, one in training. candidates: the
    answers among which it is decided, where they are its own (the letters of a choice) and not the task's.
    """

    id: str
    images: tuple[Path, ...]
    text: str = ""
    target: Any = None
    cluster: str = ""
    texts: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()


class TaskOptions(BaseModel):
    """Options every task has; a task adds its own by subclassing (they enter the cell's identity)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blind: bool = later(
        False,
        description="evaluate on images of one colour, the mean of the model's preprocessing: what the texts alone are "
        "worth. Methods see the images",
    )
    perturb: str = later(
        "",
        pattern=r"^$|:",
        description="evaluate on other texts (mask, drop, typos: a rate of the words, like typos:0.1) or other images "
        "(gaussian_noise, gaussian_blur, jpeg ...: a severity, like jpeg:3), or both, joined by a +. Methods see the "
        "data as they are",
    )
    perturb_seed: int = later(0, ge=0, description="of the random numbers of perturb=")

    def recorded(self) -> dict[str, Any]:
        """Option -> value in JSON, as identities and records have them (see `vlbench.options.later`)."""
        return recorded(self)


class Task(ABC):
    """A benchmark. `root` is its data folder; `options` its resolved options.

    split names are the data set's own. `roles` says which of them is train, select (what a method may tune on) and
    report; where the data set has no select split it is cut from train by `held_out`.

    A cell makes one object. It asks `missing` and `remarks` of the splits that it reads, then `samples` once a split,
    whose digest enters the identity, and `settings`, which go to the model with every batch. When all predictions are
    there it calls `scores`, `aggregate` and `groups`, or `write_upload` where the split is not `labelled`. An object
    may keep what it has read; nothing of it travels to another process.
    """

    Options: ClassVar[type[TaskOptions]] = TaskOptions
    name: ClassVar[str]
    version: ClassVar[int]
    capability: ClassVar[str]
    data: ClassVar[str]
    metric: ClassVar[str]
    # metric -> "higher" or "lower" is better; the primary one is `metric`
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]]
    # metric -> how headings write it, where that is not its key: {"miou": "mIoU"}
    titles: ClassVar[Mapping[str, str]] = {}
    # the least and the largest value of the primary metric, a literal: no interval goes beyond them
    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)
    # False: the primary metric is 100 x the mean of a score's first number. True: it is corpus_metric() of the scores'
    # sum over the split (mIoU), and its interval comes from the bootstrap.
    corpus: ClassVar[bool] = False
    # what a user can say where samples show more images than a model reads at once, for the sentence that refuses it
    fewer_images: ClassVar[str] = ""
    # option -> value that takes the default's place in suite=mini, whose data sets are smaller than the real ones
    mini: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, root: Path, options: TaskOptions) -> None:
        self.root, self.options = root, options

    @classmethod
    @abstractmethod
    def roles(cls) -> dict[Role, str]:
        """Role -> split name. A benchmark without data to learn from has neither train nor select."""

    @classmethod
    def split_for(cls, role: Role) -> str:
        """The split of a role. Raises UserError, which says what to do, where the task has none."""
        roles = cls.roles()
        if role in roles:
            return roles[role]
        if role == "select":
            raise UserError(f"task={cls.name} has no split to choose settings on: give the settings themselves.")
        raise UserError(
            f"task={cls.name} has no training data: learn from another task's with train=TASK, let a pruner look at "
            "other data with calibration=TASK or calibration=FILE (of captions), or take a method that learns from "
            "nothing."
        )

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        """Splits `split=` accepts for evaluation; the first is the default."""
        return (cls.roles()["report"],)

    @classmethod
    def mini_world(cls) -> World | None:
        """What suite=mini reads: a small world in this task's own layout, with the digest that it must have. None: the
        task has no such world. Import its generator in here: nobody else needs it."""
        return None

    @abstractmethod
    def missing(self, split: str) -> list[str]:
        """One sentence for each file or folder that the split needs and `root` lacks: what goes where."""

    @abstractmethod
    def samples(self, split: str) -> list[Sample]:
        """The samples of a split, in the file's order, without decoding images."""

    def prepare(self, split: str, say: Callable[[str], None]) -> None:  # noqa: B027 - most tasks have nothing packed
        """Unpack once what lies packed in `root` (images inside a table), for `vlbench data prepare`. say: takes a
        line of progress. Raises UserError where `root` cannot be written, or what is packed is damaged."""

    def remarks(self, split: str) -> list[str]:
        """What a user should know of a split that is there: files that are not read, names that look wrong. Told before
        it is evaluated, and by `vlbench data verify`."""
        return []

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """The per-sample score, or the sufficient statistics that `aggregate` sums; see `scores`."""
        raise NotImplementedError(f"{self.name} has neither score() nor scores()")

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[Score]:
        """The score of every sample, once all are predicted: numbers, or lists of one length.

        Override it in place of `score` where a sample's score needs the others (CIDEr's document frequencies).
        """
        return [self.score(s, p) for s, p in zip(samples, predictions, strict=True)]

    @abstractmethod
    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        """Metric -> value, in the units the field prints (percent). Metrics in `unmeasured` are left out."""

    def corpus_metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The primary metric in percent, (B,), of summed scores (B, statistics); for tasks with `corpus`."""
        raise NotImplementedError(f"{self.name} has no corpus_metric()")

    def unmeasured(self) -> dict[str, str]:
        """Metric -> why it is not measured on this machine (a program that is missing), in one sentence."""
        return {}

    def labelled(self, split: str) -> bool:
        """False for a split whose answers only the organisers' server knows."""
        return True

    def settings(self, split: str) -> dict[str, Any]:
        """What the capability's second stage gets as batch.options (candidates, decoding ...)."""
        return {}

    def taught(self) -> dict[str, Any]:
        """What of `settings` a batch that is learnt from is given, too: the words around the question, where the task
        has some of its own. Training on other words than those of the evaluation would teach the words."""
        return {}

    def write_upload(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
        """Write the server's file for an unlabelled split and return its path."""
        raise NotImplementedError(f"{self.name} has no unlabelled split")

    def groups(self, samples: Sequence[Sample]) -> dict[str, str]:
        """Sample id -> sub-score name (answer type ...), for tasks that report by group."""
        return {}


T = TypeVar("T", bound=type[Task])


def task(
    name: str,
    *,
    title: str,
    capability: str,
    metric: str,
    version: int,
    data: str = "",
    chance: float = 0.0,
    training: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[T], T]:
    """Register a Task. All arguments must be literals: `vlbench list tasks` reads them without importing the file.

    version is bumped when a number could change. data: the name of the root in vlbench.toml that holds the files
    (several tasks may share one), the task's name where it is left out. chance: what the best constant answer scores in
    the primary metric, in percent, where that is more than a few (vlbench/records/convergence.py asks). training:
    publication -> what it sets where it trains on this task, for recipes that ask (`vlbench.method.Context`).
    """

    def register(cls: T) -> T:
        cls.name, cls.capability, cls.metric, cls.version = name, capability, metric, version
        cls.data = data or name
        return cls

    return register


def for_learning(task: Task) -> Task:
    """The task as a method is given it: it gives the samples of train and select, and of no other split. (A method that
    reads the files of the report split by hand is found by those who review it, not here.)"""
    view = copy(task)

    def samples(split: str) -> list[Sample]:
        splits = [name for role, name in task.roles().items() if role != "report"]
        if split not in splits:
            raise UserError(
                f"a method asked for the split {split} of {task.name}: it may learn from "
                f"{' and '.join(splits) or 'no split of it'} alone. What is reported is read by nothing else."
            )
        return task.samples(split)

    vars(view)["samples"] = samples
    return view


def held_out(sample_id: str, percent: int) -> bool:
    """The digest rule that cuts `select` from `train`: about `percent` of all ids, stable for ever, no randomness.

    Where several samples share an image, pass the image's id, so that select shows no image of train.
    """
    return int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4], "big") % 100 < percent


def digest_samples(samples: Sequence[Sample], extra: Any = None) -> str:
    """Digest of a split's metadata: ids, texts, targets, clusters and image file names. What the files hold is digested
    beside it (`vlbench.cell.contents`)."""
    sha = hashlib.sha256(json.dumps(extra, sort_keys=True, default=str).encode())
    for s in samples:
        row = [s.id, [p.name for p in s.images], s.text, s.target, s.cluster, *s.texts]
        row += [list(s.candidates)] if s.candidates else []
        sha.update(json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode())
    return sha.hexdigest()


def refuse_report_ids(task: Task, samples: Sequence[Sample], *, same_ids: bool = True) -> None:
    """Raise UserError where a sample that a method would learn from is in the report split, or shows an image of it.
    same_ids: False for samples of other data, whose ids are numbers that may be equal by chance."""
    report = task.roles()["report"]
    if task.missing(report):
        return  # nothing to compare with: the report split is not on this machine
    theirs = task.samples(report)
    ids = {s.id for s in theirs} if same_ids else set()
    images = {p for s in theirs for p in s.images}
    shared = [s.id for s in samples if s.id in ids or any(p in images for p in s.images)]
    if shared:
        raise UserError(
            f"{len(shared)} samples of the report split {report} of {task.name} are in the data a method would learn "
            f"from (first: {', '.join(shared[:3])}): remove them from the training annotations."
        )
