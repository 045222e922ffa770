"""MMMU: questions of college exams in thirty subjects (Yue et al., CVPR 2024, arXiv 2311.16502).

900 questions of val, 53 of them open. The original draws a letter at random where it finds none, by a generator that is
seeded once, so that what it draws depends on every question before: here that is wrong, or worth one in n
(guess=share), and `unparsed` counts it. Differences below four points are noise (one standard error is 1.6). Questions
with several images show all of them, in their order, before the text; images=first shows the first alone, for models
that take one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, task

from . import _choice, _mmmu_rules
from ._asked import AskedOptions, directions, unique
from ._choice import Options
from ._choice_table import Choice, ChoiceTable, Rule, question_of
from ._packed import Row, listed

SUBJECTS = {
    "art": "Art Art_Theory Design Music",
    "business": "Accounting Economics Finance Manage Marketing",
    "science": "Biology Chemistry Geography Math Physics",
    "health": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health",
    "humanities": "History Literature Sociology Psychology",
    "technology": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
    "Mechanical_Engineering",
}
DISCIPLINES = {subject: name for name, subjects in SUBJECTS.items() for subject in subjects.split()}
SPLITS = {"val": "validation", "dev": "dev"}  # ours -> the files'
LETTER, SHORT = (
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
)
RULES: Mapping[str, Callable[[str, Options], str]] = {"official": _mmmu_rules.official, "lmms": _mmmu_rules.lmms}


class MMMUOptions(AskedOptions):
    """Options of `task=mmmu`."""

    rule: Literal["official", "lmms"] = Field(
        "official", description="how a letter is found: as MMMU's own code or as lmms-eval finds it"
    )
    guess: Literal["wrong", "share"] = Field(
        "wrong", description="what an answer without a letter is worth: nothing, or one in the number of options"
    )
    images: Literal["all", "first"] = Field("all", description="which of a question's images are shown")
    max_length: int = Field(128, ge=1, description="tokens of an answer at most")


@task("mmmu", title="MMMU", capability="answer", metric="accuracy", version=1)
class MMMU(ChoiceTable):
    """`root` holds SUBJECT/validation-*.parquet and SUBJECT/dev-*.parquet of the thirty subjects (the release), or
    MMMU_DEV_VAL.tsv (VLMEvalKit's). decoding=rank is of the questions that have options."""

    Options: ClassVar[type[AskedOptions]] = MMMUOptions
    asked: ClassVar[str] = "{}"
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        split: ("MMMU_DEV_VAL.tsv", f"*/{name}-*.parquet") for split, name in SPLITS.items()
    }
    splits: ClassVar[tuple[str, ...]] = ("val",)
    learned: ClassVar[Mapping[Role, str]] = {"select": "dev"}
    rules: ClassVar[Mapping[str, Rule]] = RULES
    kinds: ClassVar[tuple[str, ...]] = tuple(SUBJECTS)
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", kinds)
    fewer_images: ClassVar[str] = "images=first shows the first alone, or name a model that reads several with model="
    options: MMMUOptions  # type: ignore[assignment]

    def rows(self, split: str) -> Mapping[str, Choice]:
        packed = self.table(split)
        place = str(packed.index)
        rows = [row for row in packed.rows() if str(row.get("split", SPLITS[split])) in (split, SPLITS[split])]
        questions = unique(((self.number(row, place), self.choice(row, place)) for row in rows), place)
        return {i: row for i, row in questions.items() if row.options} if self.options.decoding == "rank" else questions

    def number(self, row: Row, place: str) -> str:
        return super().number({"id": row["id"]} if "id" in row else row, place)

    def choice(self, row: Row, place: str) -> Choice:
        if not self._is_open(row):
            return super().choice(row, place)
        if not row["images"] or "question" not in row or "answer" not in row:
            raise UserError(f"{place}: an open question lacks its image, text or answer.")
        return Choice(row["images"], question_of(row, place), "", {}, str(row["answer"]), row)

    def _is_open(self, row: Row) -> bool:
        kind = row.get("question_type")
        return kind == "open" if kind else not {"A", "B"} <= row.keys()

    def text(self, row: Choice) -> str:
        if not row.options:
            return f"{row.question}\n\n{SHORT}"
        return f"{row.question}\n{_choice.lines(row.options)}\n\n{LETTER}"

    def sample(self, number: str, row: Choice) -> Sample:
        if self.options.images == "first":
            row = row._replace(images=row.images[:1])
        return super().sample(number, row)

    def judged(self, row: Choice, said: str) -> tuple[float, bool]:
        if not row.options:
            return float(_mmmu_rules.open_right(said, self._answers(row.fields))), bool(said.strip())
        letter = RULES[self.options.rule](said, row.options)
        if not letter:
            return (1 / len(row.options) if self.options.guess == "share" else 0.0), False
        return float(letter == row.answer), True

    def _answers(self, fields: Mapping[str, Any]) -> list[str]:
        return [str(answer) for answer in listed(fields, "answer", self.name)]

    def kind(self, row: Choice) -> str:
        """Of the subject in the id (validation_Accounting_1), or in the column category."""
        subject = str(row.fields.get("id", "")).partition("_")[2].rpartition("_")[0]
        return DISCIPLINES.get(subject or str(row.fields.get("category", "")).replace(" ", "_"), "")
