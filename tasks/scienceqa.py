"""ScienceQA-IMG: school questions with two to five options, those that show a picture (Lu et al., NeurIPS 2022, arXiv
2209.09513; scienceqa.github.io).

The number of tables is the accuracy over the 2,017 questions of test that have an image. Of the rules, official is
LLaVA's, whose numbers the field compares with. train, minival and their images are the benchmark's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, task

from . import _choice
from ._asked import LETTER, AskedOptions, directions, lacking, located
from ._choice import LETTERS, Options
from ._choice_table import answer_in, options_of
from ._files import identifier_of, inside, read_json, refuse, text_of, texts_of, whole_number
from ._packed import Row
from ._tabled import Tabled, cell, image_of

if TYPE_CHECKING:
    from vlbench.mini.world import World

SUBJECTS = {"natural science": "nat", "social science": "soc", "language science": "lan"}
FOLDER = {"minival": "val", "minitest": "test", "minitrain": "train"}  # split -> the one whose images it shows
RULES: Mapping[str, Callable[[str, Options], str]] = {
    "official": _choice.scienceqa_llava, "lmms": _choice.scienceqa_lmms,
}  # fmt: skip


class Problem(NamedTuple):
    """One question. cluster: its skill, as questions of one skill are made by one template and share diagrams."""

    image: Path
    hint: str
    question: str
    options: Options
    answer: str
    subject: str
    cluster: str


class ScienceQAOptions(AskedOptions):
    """Options of `task=scienceqa`."""

    rule: Literal["official", "lmms"] = Field(
        "official",
        description="how an answer is asked for and read: official is LLaVA's, which strips nothing; lmms writes "
        "Context: before the hint, and takes letters in any case",
    )


@task("scienceqa", title="ScienceQA, questions with an image", capability="answer", metric="accuracy", version=1)
class ScienceQA(Tabled):
    """`root` holds problems.json and pid_splits.json (or has them in data/scienceqa/), and images/SPLIT/ID/image.png
    (or SPLIT/ID/image.png). In place of them, for test and val: ScienceQA_TEST.tsv and ScienceQA_VAL.tsv (of
    VLMEvalKit), or lmms-eval's ScienceQA-IMG/test-*.parquet and validation-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = ScienceQAOptions
    asked: ClassVar[str] = LETTER
    kinds: ClassVar[tuple[str, ...]] = tuple(SUBJECTS.values())
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", kinds)
    splits: ClassVar[tuple[str, ...]] = ("test", "val", "minitest", "minival")
    learned: ClassVar[Mapping[Role, str]] = {"train": "train", "select": "minival"}
    tables: ClassVar[Mapping[str, Sequence[str]]] = {
        "test": ("ScienceQA_TEST.tsv", "ScienceQA-IMG/test-*.parquet"),
        "val": ("ScienceQA_VAL.tsv", "ScienceQA-IMG/validation-*.parquet"),
    }
    options: ScienceQAOptions

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.scienceqa import WORLD

        return WORLD

    def lacks(self, split: str) -> list[str]:
        images = f"the images of {FOLDER.get(split, split)}, as ID/image.png"
        names = {self._file("problems.json"): "the problems", self._file("pid_splits.json"): "the ids of each split"}
        return lacking({**names, self._images(split): images})

    def released(self, split: str) -> Mapping[str, Problem]:
        path = self._file("pid_splits.json")
        ids, problems = read_json(path), read_json(self._file("problems.json"))
        if not isinstance(ids, dict) or not isinstance(ids.get(split), list) or not isinstance(problems, dict):
            raise UserError(f"{path} should map {split} to a list of ids, and problems.json ids to problems.")
        try:
            wanted = [identifier_of(number) for number in ids[split]]
        except ValueError as error:
            raise UserError(f"{path} has an id of {split} that is none: {error}.") from None
        refuse((i for i, n in Counter(wanted).items() if n > 1), f"{path} has ids of {split} twice")
        refuse(set(wanted) - problems.keys(), f"{self._file('problems.json')} lacks problems of {split}")
        odd = [i for i in wanted if not isinstance(problems[i], dict)]
        refuse(odd, f"{self._file('problems.json')} has problems of {split} that are no objects")
        return {i: self._problem(i, problems[i], self._images(split)) for i in wanted if problems[i].get("image")}

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Problem]:
        options, answer = options_of(row, place), answer_in(row.get("answer"), options_of(row, place), place)
        subject = SUBJECTS.get(str(row.get("subject", row.get("category"))), "")
        cluster = str(row.get("skill") or row.get("topic") or "")
        hint, question = str(row.get("hint", "")), cell(row, "question", place=place)
        return str(row.get("index", number)), Problem(
            image_of(row, place), hint, question, options, answer, subject, cluster
        )

    def _problem(self, number: str, row: Mapping[str, Any], images: Path) -> Problem:
        place = f"{self._file('problems.json')}: problem {number}"
        try:
            options, answer = _choice.lettered(texts_of(row["choices"])), whole_number(row["answer"])
            hint, question, name = text_of(row.get("hint") or ""), text_of(row["question"]), text_of(row["image"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place} is not valid: {error!r}.") from None
        if not 0 <= answer < len(options):
            raise UserError(f"{place} has {len(options)} choices, and answer {answer}: correct it.")
        image = images / inside(number, place) / inside(name, place)
        cluster = str(row.get("skill") or row.get("topic") or "")
        subject = SUBJECTS.get(str(row.get("subject")), "")
        return Problem(image, hint, question, options, LETTERS[answer], subject, cluster)

    def sample(self, number: str, row: Problem) -> Sample:
        return Sample(
            number, (row.image,), self._text(row), {row.answer: 1.0}, row.cluster, candidates=tuple(row.options)
        )

    def _text(self, row: Problem) -> str:
        hint = f"{'Context: ' if self.options.rule == 'lmms' else ''}{row.hint}\n" if row.hint else ""
        return f"{hint}{row.question}\n" + _choice.lines(row.options)

    def judged(self, row: Problem, said: str) -> tuple[float, bool]:
        letter = RULES[self.options.rule](said, row.options)
        return float(letter == row.answer), letter in row.options

    def kind(self, row: Problem) -> str:
        return row.subject

    def _file(self, name: str) -> Path:
        return located(self.root, name, f"data/scienceqa/{name}")

    def _images(self, split: str) -> Path:
        folder = FOLDER.get(split, split)
        return located(self.root, f"images/{folder}", folder)
