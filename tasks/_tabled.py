"""Benchmarks with files of their own that people also have as one table: VLMEvalKit's TSV, or lmms-eval's parquet.

The benchmark's own files are read where they are there, and the table where they are not, unpacked once as every table
is (see _packed.py). Rows of both become the same samples, but for ids and names of images, so that cells of the two are
of different splits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlbench.errors import UserError

from ._asked import Asked, unique
from ._packed import Packed, Row, Say


class Tabled(Asked):
    """An `Asked` whose own release a subclass reads by `lacks` and `released`, and a table's rows by `from_table`.
    tables: split -> what its table may be called."""

    tables: ClassVar[Mapping[str, Sequence[str]]] = {}

    @abstractmethod
    def lacks(self, split: str) -> list[str]:
        """`missing` of the benchmark's own files."""

    @abstractmethod
    def released(self, split: str) -> Mapping[str, Any]:
        """`rows` of the benchmark's own files."""

    @abstractmethod
    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Any]:
        """(id, row) of a table's row, the `number`-th. Raises UserError where it is none of this benchmark's."""

    def table(self, split: str) -> Packed | None:
        """The table that is read for a split, None where the benchmark's own files are, or where there is none."""
        if split not in self.tables or not self.lacks(split):
            return None
        packed = Packed(self.root, f"{self.name}-{split}", self.tables[split])
        return packed if packed.sources or packed.index.is_file() else None

    def missing(self, split: str) -> list[str]:
        packed = self.table(split)
        return self.lacks(split) if packed is None else packed.missing(self.name)

    def prepare(self, split: str, say: Say) -> None:
        packed = self.table(split)
        if packed is not None and packed.sources:
            packed.prepare(say)

    def rows(self, split: str) -> Mapping[str, Any]:
        packed = self.table(split)
        if packed is None:
            return self.released(split)
        place = str(packed.index)
        return unique((self.from_table(row, n, f"{place}, row {n}") for n, row in enumerate(packed.rows())), place)


def image_of(row: Row, place: str) -> Path:
    """The one image of a row. Raises UserError where it has none."""
    if len(row["images"]) != 1:
        raise UserError(f"{place} has {len(row['images'])} images, and should have one: correct the table.")
    path: Path = row["images"][0]
    return path


def cell(row: Row, *columns: str, place: str) -> str:
    """The text of the first of these columns that the row has."""
    for column in columns:
        if column in row:
            return str(row[column])
    raise UserError(f"{place} has no {' or '.join(columns)}: correct the table.")


def said_yes(row: Row, place: str) -> bool:
    """Of a yes/no question, whether the answer is yes, in any case."""
    answer = cell(row, "answer", place=place).strip().lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{place} has the answer {answer!r}, which should be yes or no: correct the table.")
    return answer == "yes"
