"""Benchmarks of choices that come as one table (see _packed.py): a row is a question, its options and the letter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Sample

from . import _choice
from ._asked import LETTER, Asked, AskedOptions, unique
from ._choice import LETTERS, Options
from ._files import answer_of, identifier_of
from ._packed import Packed, Row, Say, listed

Rule = Callable[[str, Options], str]


class Choice(NamedTuple):
    """A row. answer: "" where it is not public. fields: the rest of the row, as the file has it."""

    images: tuple[Path, ...]
    question: str
    hint: str
    options: Options
    answer: str
    fields: Mapping[str, Any]


class ChoiceOptions(AskedOptions):
    """Options of tasks on tables of choices."""

    rule: Literal["lmms", "vlmevalkit"] = Field(
        "lmms", description="how an answer is read: as lmms-eval or as VLMEvalKit (without a judge model) reads it"
    )


class ChoiceTable(Asked):
    """Base of these tasks. A subclass names its tables and the rules that read an answer; the first column of `columns`
    that a row has is its sub-score, by `named`."""

    Options: ClassVar[type[AskedOptions]] = ChoiceOptions
    asked: ClassVar[str] = LETTER
    tables: ClassVar[Mapping[str, tuple[str, ...]]]  # split -> what its table may be called
    rules: ClassVar[Mapping[str, Rule]]
    columns: ClassVar[tuple[str, ...]] = ("category",)
    named: ClassVar[Mapping[str, str]] = {}  # value of that column -> sub-score
    options: ChoiceOptions

    def table(self, split: str) -> Packed:
        return Packed(self.root, f"{self.name}-{split}", self.tables[split])

    def missing(self, split: str) -> list[str]:
        return self.table(split).missing(self.name)

    def prepare(self, split: str, say: Say) -> None:
        if self.table(split).sources:
            self.table(split).prepare(say)

    def rows(self, split: str) -> Mapping[str, Choice]:
        packed = self.table(split)
        place = str(packed.index)
        return unique(((self.number(row, place), self.choice(row, place)) for row in packed.rows()), place)

    def number(self, row: Row, place: str) -> str:
        """The id of a row."""
        return number_of(row, place)

    def choice(self, row: Row, place: str) -> Choice:
        """Raises UserError for a row without options or image, and an answer outside its options."""
        place = f"{place}, row {self.number(row, place)}"
        options = options_of(row, place)
        answer = answer_in(row.get("answer"), options, place)
        if "question" not in row:
            raise UserError(f"{place} has no question: correct the table.")
        if not row["images"]:
            raise UserError(f"{place} has no image: correct the table.")
        return Choice(row["images"], question_of(row, place), str(row.get("hint", "")), options, answer, row)

    def text(self, row: Choice) -> str:
        """What is asked, without the words around it."""
        return f"{row.question}\n{_choice.lines(row.options)}"

    def sample(self, number: str, row: Choice) -> Sample:
        target = {row.answer: 1.0} if row.answer else None
        return Sample(number, row.images, self.text(row), target, self.cluster(row), candidates=tuple(row.options))

    def cluster(self, row: Choice) -> str:
        return row.images[0].stem

    def letter(self, row: Choice, said: str) -> str:
        """The option that an answer chooses; "" for none."""
        letter = self.rules[self.options.rule](said, row.options)
        return letter if letter in row.options else ""

    def judged(self, row: Choice, said: str) -> tuple[float, bool]:
        letter = self.letter(row, said)
        return float(letter == row.answer), bool(letter)

    def kind(self, row: Choice) -> str:
        value = next((str(row.fields[column]) for column in self.columns if column in row.fields), "")
        return self.named.get(value, value)


def number_of(row: Row, place: str) -> str:
    """The id of a row of any table. Raises UserError for a row without one, and for what is no id."""
    for column in ("index", "id", "question_id"):
        if column in row:
            try:
                return identifier_of(row[column])
            except ValueError as error:
                raise UserError(f"{place} has a row whose {column} is none: {error}: correct the table.") from None
    raise UserError(f"{place} has a row without index: correct the table.")


def question_of(row: Row, place: str) -> str:
    """Raises UserError where the question is no text."""
    if not isinstance(row["question"], str):
        raise UserError(f"{place} has the question {row['question']!r}, which is no text: correct the table.")
    return row["question"]


def options_of(row: Row, place: str) -> Options:
    """Letter -> text, of columns A, B ..., or choice_a, choice_b ..., or of a list. Two at least, without a gap."""
    by_letter = {
        letter: row[column] for letter in LETTERS for column in (letter, f"choice_{letter.lower()}") if column in row
    }
    column = "options" if "options" in row else "choices"
    values = by_letter or _choice.lettered(listed(row, column, place))
    try:
        texts = {letter: answer_of(value) for letter, value in values.items()}
    except ValueError as error:
        raise UserError(f"{place} has an option that is none: {error}: correct the table.") from None
    if len(texts) < 2 or "".join(texts) != LETTERS[: len(texts)]:
        raise UserError(f"{place} has the options {', '.join(texts) or 'none'}: it should have A, B and so on.")
    return texts


def answer_in(given: Any, options: Options, place: str) -> str:
    """The letter of a letter in any case, or of a number from 0 on."""
    text = "" if given is None else str(given).strip()
    letter = LETTERS[int(text)] if text.isdigit() and int(text) < len(LETTERS) else text.upper()
    if text and letter not in options:
        raise UserError(f"{place} has the answer {text!r}, and the options {', '.join(options)}: correct the table.")
    return letter
