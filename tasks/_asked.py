"""What the benchmarks of written answers share: how they are asked, by which evaluator's rule an answer is read, and
the share of answers that no rule could read.

An evaluator's *rule* enters the cell's identity, so that rows of different rules never stand in one table. `unparsed`
is the percentage of answers that say nothing the benchmark asks for: after heavy pruning it rises first, and rules that
guess, or take everything else for "yes", hide it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, field_validator

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions

SHORT = "{}\nAnswer the question using a single word or phrase."
LETTER = "{}\nAnswer with the option's letter from the given choices directly."
UNPARSED = "unparsed"

R = TypeVar("R")


class AskedOptions(TaskOptions):
    """Options of benchmarks whose answers are written. A task adds `rule` where evaluators differ, and its own default
    of max_length (the tokens that its reference evaluator allows)."""

    decoding: Literal["generate", "rank"] = Field(
        "generate",
        description="generate: free text, read by a rule, as published numbers are; rank: the likeliest of the "
        "sample's own options, which needs no rule: the fair way to compare a pruned model with its dense one",
    )
    prompt: str | None = Field(
        None, description="words around the question, which stands at {}; left out: the reference evaluator's"
    )
    beams: int = Field(1, ge=1, description="width of the beam search; 1: greedy, as the reference evaluators do")
    max_length: int = Field(16, ge=1, description="tokens of an answer at most")

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and "{}" not in value:
            raise ValueError(f"{value!r} has no {{}} where the question goes")
        return value


class Asked(Task):
    """Base of these tasks. A subclass reads its files (`rows`), makes samples of them (`sample`), and judges an answer
    (`judged`); what it may be read in is `splits`, the first of which is reported by default.

    Scores are [right, unparsed], unless the subclass has statistics of its own.
    """

    Options: ClassVar[type[TaskOptions]] = AskedOptions
    asked: ClassVar[str] = SHORT  # the words around the question
    splits: ClassVar[tuple[str, ...]]
    learned: ClassVar[Mapping[Role, str]] = {}  # train and select, where the benchmark has them
    kinds: ClassVar[tuple[str, ...]] = ()  # sub-scores "accuracy/KIND", in a table's order
    options: AskedOptions

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {**cls.learned, "report": cls.splits[0]}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return cls.splits

    @abstractmethod
    def rows(self, split: str) -> Mapping[str, Any]:
        """Sample id -> what the files say of it, in their order."""

    @abstractmethod
    def sample(self, number: str, row: Any) -> Sample:
        """The sample of one row."""

    def samples(self, split: str) -> list[Sample]:
        return [self.sample(number, row) for number, row in self.read(split).items()]

    def settings(self, split: str) -> dict[str, Any]:
        options = self.options
        return {
            "decoding": options.decoding, "prompt": options.prompt or self.asked, "beams": options.beams,
            "max_length": options.max_length,
        }  # fmt: skip

    def taught(self) -> dict[str, Any]:
        return {"prompt": self.options.prompt or self.asked}

    def read(self, split: str) -> Mapping[str, Any]:
        """`rows`, once a split. Raises UserError for a split that the task does not have."""
        splits = (*self.splits, *self.learned.values())
        if split not in splits:
            raise UserError(f"{self.name} has no split {split!r}. {did_you_mean(split, splits)}")
        if split not in self._rows:
            self._rows[split] = self.rows(split)
        return self._rows[split]

    @cached_property
    def _rows(self) -> dict[str, Mapping[str, Any]]:
        return {}

    def row(self, sample: Sample) -> Any:
        """What the files say of a sample. Files that have been read come first."""
        splits = (*self.splits, *self.learned.values())
        for split in sorted(splits, key=lambda split: split not in self._rows):
            if (split in self._rows or not self.missing(split)) and sample.id in self.read(split):
                return self.read(split)[sample.id]
        raise UserError(f"sample {sample.id} is in no file of {self.name} here, so that it cannot be scored.")

    def judged(self, row: Any, said: str) -> tuple[float, bool]:
        """How right an answer is, in [0, 1], and whether it says something that the benchmark asks for."""
        raise NotImplementedError(f"{self.name} has neither judged() nor score()")

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        right, parsed = self.judged(self.row(sample), prediction["answer"])
        return [right, float(not parsed)]

    def kind(self, row: Any) -> str:
        """The sub-score that a row counts for; empty where it counts for none."""
        return ""

    def groups(self, samples: Sequence[Sample]) -> dict[str, str]:
        kinds = {sample.id: self.kind(self.row(sample)) for sample in samples} if self.kinds else {}
        return {number: kind for number, kind in kinds.items() if kind in self.kinds}

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        groups = self.groups(samples)
        values: defaultdict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, cast(Sequence[list[float]], scores), strict=True):
            values[self.metric].append(score[0])
            values[UNPARSED].append(score[1])
            if sample.id in groups:
                values[f"{self.metric}/{groups[sample.id]}"].append(score[0])
        return {metric: 100 * fmean(values[metric]) for metric in self.metrics if metric in values}


def directions(metric: str, kinds: Iterable[str] = ()) -> dict[str, Literal["higher", "lower"]]:
    """Which way is better: of the metric, of its sub-scores, and of `unparsed`."""
    names = (metric, *(f"{metric}/{kind}" for kind in kinds))
    return {**dict.fromkeys(names, "higher"), UNPARSED: "lower"}


def located(root: Path, *names: str) -> Path:
    """The first of these files or folders below `root` that exists; else the first."""
    places = [root / name for name in names]
    return next((place for place in places if place.exists()), places[0])


def lacking(wanted: Mapping[Path, str]) -> list[str]:
    """One sentence for each file or folder that does not exist: path -> what it should hold."""
    return [f"{path} should hold {what}." for path, what in wanted.items() if not path.exists()]


def unique(pairs: Iterable[tuple[str, R]], place: str) -> dict[str, R]:
    """A dict of the pairs. Raises UserError naming keys that come twice."""
    rows: dict[str, R] = {}
    for key, value in pairs:
        if key in rows:
            raise UserError(f"{place} has {key} twice: remove one of them.")
        rows[key] = value
    return rows
