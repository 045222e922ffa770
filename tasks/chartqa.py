"""ChartQA: questions about charts, half written by people, half made from captions (Masry et al., Findings of ACL 2022,
arXiv 2203.10244; github.com/vis-nlp/ChartQA).

The metric is relaxed accuracy (see _short.py) over both halves, which have 1,250 questions each in test, and of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, task

from . import _short
from ._asked import AskedOptions, directions, lacking, located
from ._files import answer_of, inside, read_json, text_of
from ._packed import Row, listed
from ._tabled import Tabled, cell, image_of

if TYPE_CHECKING:
    from vlbench.mini.world import World

HALVES = ("human", "augmented")
RULES: Mapping[str, Callable[[str, str], bool]] = {
    "official": _short.relaxed, "vlmevalkit": _short.relaxed_vlmevalkit,
}  # fmt: skip


class Question(NamedTuple):
    """One question about a chart."""

    half: str
    image: Path
    text: str
    answer: str


class ChartQAOptions(AskedOptions):
    """Options of `task=chartqa`."""

    rule: Literal["official", "vlmevalkit"] = Field(
        "official", description="how an answer is read: official takes it as it is; vlmevalkit drops outer blanks first"
    )


@task("chartqa", title="ChartQA, relaxed accuracy", capability="answer", metric="accuracy", version=1)
class ChartQA(Tabled):
    """`root` holds SPLIT/SPLIT_human.json, SPLIT/SPLIT_augmented.json and SPLIT/png/ of train, val and test (or has
    them in "ChartQA Dataset/"). In place of them, for test: ChartQA_TEST.tsv (VLMEvalKit's), or lmms-eval's
    data/test-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = ChartQAOptions
    asked: ClassVar[str] = "{}\nAnswer the question with a single word."
    kinds: ClassVar[tuple[str, ...]] = HALVES
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", HALVES)
    titles: ClassVar[Mapping[str, str]] = {"accuracy": "relaxed accuracy"}
    splits: ClassVar[tuple[str, ...]] = ("test", "val")
    learned: ClassVar[Mapping[Role, str]] = {"train": "train", "select": "val"}
    tables: ClassVar[Mapping[str, Sequence[str]]] = {"test": ("ChartQA_TEST.tsv", "data/test-*.parquet")}
    options: ChartQAOptions

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.chartqa import WORLD

        return WORLD

    def lacks(self, split: str) -> list[str]:
        files = {self._file(split, half): f"the {half} questions of {split}" for half in HALVES}
        return lacking({**files, self._folder(split) / "png": "the charts"})

    def released(self, split: str) -> Mapping[str, Question]:
        return dict(pair for half in HALVES for pair in self._half(split, half))

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        kind = cell(row, "type", "split", place=place)
        half = next((half for half in HALVES if half in kind), None)
        if half is None:
            raise UserError(f"{place} is of {kind!r}, which says neither human nor augmented: correct the table.")
        (answer, *_) = listed(row, "answer", place) or [""]
        question = Question(half, image_of(row, place), cell(row, "question", place=place), str(answer))
        return f"{half}/{row.get('index', number)}", question

    def _half(self, split: str, half: str) -> Iterator[tuple[str, Question]]:
        """(id, question): a question has no id in the files, and is known here by its half and place, and by its split
        where that is another than test: ids of what is learnt from are no ids of what is reported."""
        begin = half if split == self.splits[0] else f"{split}/{half}"
        path, charts = self._file(split, half), self._folder(split) / "png"
        content = read_json(path)
        if not isinstance(content, list):
            raise UserError(f"{path} should be a list of questions.")
        for number, row in enumerate(content):
            try:
                name, text, answer = text_of(row["imgname"]), text_of(row["query"]), answer_of(row["label"])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: entry {number} is no question: {error!r}.") from None
            inside(name, path)
            yield f"{begin}/{number}", Question(half, charts / name, text, answer)

    def sample(self, number: str, row: Question) -> Sample:
        return Sample(number, (row.image,), row.text, {row.answer: 1.0}, row.image.stem)

    def judged(self, row: Question, said: str) -> tuple[float, bool]:
        return float(RULES[self.options.rule](said, row.answer)), bool(said.strip())

    def kind(self, row: Question) -> str:
        return row.half

    def _folder(self, split: str) -> Path:
        return located(self.root, split, f"ChartQA Dataset/{split}")

    def _file(self, split: str, half: str) -> Path:
        return self._folder(split) / f"{split}_{half}.json"
