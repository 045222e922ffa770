"""OCRBench: 1,000 images whose text is to be read (Liu et al. 2023, arXiv 2305.07895).

An answer is right where a true one stands anywhere in it, so that a long one scores by rambling: it has 128 tokens at
most. The number of tables is how many of the 1,000 are right, which is ten times the accuracy here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Sample, task

from . import _short
from ._asked import Asked, AskedOptions, directions, unique
from ._choice_table import number_of, question_of
from ._packed import Packed, Row, Say, listed

FORMULAS = "Handwritten Mathematical Expression Recognition"
TYPES = {
    "Regular Text Recognition": "recognition", "Irregular Text Recognition": "recognition",
    "Artistic Text Recognition": "recognition", "Handwriting Recognition": "recognition",
    "Digit String Recognition": "recognition", "Non-Semantic Text Recognition": "recognition",
    "Scene Text-centric VQA": "scene", "Doc-oriented VQA": "documents", "Key Information Extraction": "information",
    FORMULAS: "formulas",
}  # fmt: skip


class Question(NamedTuple):
    """One question. formula: blanks do not count in its answer, and case does."""

    image: Path
    text: str
    answers: tuple[str, ...]
    kind: str
    formula: bool


class OCRBenchOptions(AskedOptions):
    """Options of `task=ocrbench`."""

    rule: Literal["official", "lmms"] = Field(
        "official",
        description="how an answer is read: official as VLMEvalKit does; lmms makes full-width signs plain",
    )
    max_length: int = Field(128, ge=1, description="tokens of an answer at most")


@task("ocrbench", title="OCRBench", capability="answer", metric="accuracy", version=1)
class OCRBench(Asked):
    """`root` holds OCRBench.tsv (VLMEvalKit's), or lmms-eval's data/test-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = OCRBenchOptions
    asked: ClassVar[str] = "{}"
    kinds: ClassVar[tuple[str, ...]] = ("recognition", "scene", "documents", "information", "formulas")
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", kinds)
    splits: ClassVar[tuple[str, ...]] = ("test",)
    options: OCRBenchOptions

    @property
    def table(self) -> Packed:
        return Packed(self.root, "ocrbench-test", ("OCRBench.tsv", "data/test-*.parquet"))

    def missing(self, split: str) -> list[str]:
        return self.table.missing(self.name)

    def prepare(self, split: str, say: Say) -> None:
        if self.table.sources:
            self.table.prepare(say)

    def rows(self, split: str) -> Mapping[str, Question]:
        place = str(self.table.index)
        return unique((self._question(row, n, place) for n, row in enumerate(self.table.rows())), place)

    def _question(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        """lmms-eval's table has no ids: there a row is known by its place."""
        index = number_of({"index": row.get("index", number)}, place)
        answers = tuple(str(answer) for answer in listed(row, "answer", f"{place}, row {index}"))
        if not answers or not row["images"] or "question" not in row:
            raise UserError(f"{place}, row {index}, lacks its image, question or answer: correct the table.")
        kind = str(row.get("category", row.get("question_type", "")))
        formula = kind == FORMULAS or row.get("dataset") == "HME100k"
        return index, Question(row["images"][0], question_of(row, place).strip(), answers, TYPES.get(kind, ""), formula)

    def sample(self, number: str, row: Question) -> Sample:
        return Sample(number, (row.image,), row.text, {row.answers[0]: 1.0}, row.image.stem)

    def judged(self, row: Question, said: str) -> tuple[float, bool]:
        folded = self.options.rule == "lmms"
        right = _short.contained(said, row.answers, formula=row.formula, folded=folded)
        return float(right), bool(said.strip())

    def kind(self, row: Question) -> str:
        return row.kind
