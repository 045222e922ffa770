"""RealWorldQA: 765 questions about photographs taken on roads and elsewhere (xAI 2024). There is no split to choose
anything on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vlbench.errors import UserError
from vlbench.task import task

from . import _choice
from ._asked import directions
from ._choice_table import Choice, ChoiceTable, Rule, question_of
from ._packed import Row

INSTRUCTION = "Please answer directly with only the letter of the correct option and nothing else."


@task("realworldqa", title="RealWorldQA", capability="answer", metric="accuracy", version=1)
class RealWorldQA(ChoiceTable):
    """`root` holds RealWorldQA.tsv (VLMEvalKit's, with options in columns), or lmms-eval's data/test-*.parquet, whose
    questions have their options and instruction inside, and answers that may be words."""

    asked: ClassVar[str] = "{}"
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": ("RealWorldQA.tsv", "data/test-*.parquet")}
    splits: ClassVar[tuple[str, ...]] = ("test",)
    rules: ClassVar[Mapping[str, Rule]] = {"lmms": _choice.vlmevalkit, "vlmevalkit": _choice.vlmevalkit}
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy")

    def choice(self, row: Row, place: str) -> Choice:
        if "A" in row:
            return super().choice(row, place)
        if self.options.rule == "vlmevalkit" or self.options.decoding == "rank":
            raise UserError(
                "rule=vlmevalkit and decoding=rank need the options in columns, as RealWorldQA.tsv has them: put that "
                "table there, or take rule=lmms with decoding=generate."
            )
        if not row["images"] or "question" not in row or "answer" not in row:
            raise UserError(f"{place}: a row lacks its image, question or answer.")
        return Choice(row["images"], question_of(row, place), "", {}, str(row["answer"]), row)

    def text(self, row: Choice) -> str:
        if not row.options:
            return row.question.strip()
        return f"{super().text(row)}\n{INSTRUCTION}"

    def judged(self, row: Choice, said: str) -> tuple[float, bool]:
        if self.options.rule == "vlmevalkit":
            return super().judged(row, said)
        letter = row.answer.strip().upper() in ("A", "B", "C", "D")
        parsed = bool(_choice.lmms_letter(said, "ABCD")) if letter else bool(said.strip())
        return float(_choice.realworldqa(said, row.answer)), parsed
