"""Benchmarks that come as one table with their images inside: VLMEvalKit's TSV (base64 in a cell), and parquet as
lmms-eval reads it ({bytes, path} in a cell).

Images are unpacked once, by `vlbench data prepare`, into files named by their content, so that a photograph that many
questions show is one file, and is encoded once. What else the table says goes into one JSON file beside them, which is
what is read from then on. A cell that holds a list is read as a literal; nothing in a table is ever run.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from vlbench.disk.storage import cannot_write, write_json
from vlbench.errors import UserError

from ._files import inside, read_json, texts_of

FOLDER = "unpacked"
LONGEST_REFERENCE = 64  # characters of an image cell that names another row; longer ones are images (VLMEvalKit)
EDGE = 1 << 16  # bytes at both ends of a table that tell whether it is the one that was unpacked
AT_ONCE = 64  # rows of a parquet file that are in memory together
SAID = 500  # rows between two lines of progress
MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
NOTHING = ("", "nan")

Row = dict[str, Any]
Say = Callable[[str], None]


class Packed:
    """A table below `root`. names: the files it may be, or patterns of several ("*/val-*.parquet"); the first kind that
    is there is taken."""

    def __init__(self, root: Path, name: str, names: Sequence[str]) -> None:
        self.root, self.names = root, names
        self.index = root / FOLDER / f"{name}.json"
        self._names: dict[bytes, str] = {}  # digest of a cell -> its file
        self._made: list[str] = []  # the files that were not there before

    @property
    def sources(self) -> list[Path]:
        """The table's files, in the order of their names."""
        return next((files for name in self.names if (files := sorted(self.root.glob(name)))), [])

    def missing(self, task: str) -> list[str]:
        """Why `rows` cannot be read, in one sentence; nothing where they can."""
        sources = self.sources
        if self.index.is_file():
            if not sources or _told(read_json(self.index)) == _marks(sources, self.root):
                return []
            return [f"{sources[0]} is another table than the one that was unpacked: {_remedy(task)}."]
        if sources:
            return [f"the images inside {sources[0]} are not unpacked: {_remedy(task)}."]
        return [f"{self.root / self.names[0]} should hold the questions and images."]

    def rows(self) -> list[Row]:
        """The rows as they were unpacked, with "images": the files that each shows."""
        content = read_json(self.index)
        if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
            raise UserError(f"{self.index} is damaged: delete it and unpack the table again.")
        for number, row in enumerate(content["rows"]):
            try:
                row["images"] = tuple(self.root / inside(name, self.index) for name in texts_of(row["images"]))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{self.index}: row {number} is damaged ({error!r}): unpack the table again.") from None
        return list(content["rows"])

    def prepare(self, say: Say) -> None:
        """Unpack the table, unless it was. Raises UserError for damaged rows, and where nothing can be written."""
        sources = self.sources
        if not sources:
            raise UserError(f"{self.root / self.names[0]} is not there: put the table of the benchmark there first.")
        marks = _marks(sources, self.root)
        if self.index.is_file() and _told(read_json(self.index)) == marks:
            return
        try:
            self._unpack(sources, marks, say)
        except UserError:
            self._take_back()
            raise

    def _unpack(self, sources: Sequence[Path], marks: list[list[Any]], say: Say) -> None:
        rows: list[Row] = []
        try:
            (self.root / FOLDER / "images").mkdir(parents=True, exist_ok=True)
            for source in sources:
                for row in (_parquet_rows if source.suffix == ".parquet" else _tsv_rows)(source):
                    rows.append(self._unpacked(row, source))
                    if len(rows) % SAID == 0:
                        say(f"{source.name}: {len(rows)} rows")
        except OSError as error:
            raise cannot_write(self.index.parent, error) from error
        _follow_references(rows, sources[0])
        write_json(self.index, {"sources": marks, "rows": rows})

    def _take_back(self) -> None:
        """Remove the images of a table that is refused, and the folders where nothing else is."""
        for name in self._made:
            (self.root / name).unlink(missing_ok=True)
        for folder in (self.root / FOLDER / "images", self.root / FOLDER):
            with suppress(OSError):  # not there, or another table's images are
                folder.rmdir()

    def _unpacked(self, row: Row, source: Path) -> Row:
        """The row without its images, and where they are now; a reference stays one, as a text."""
        place = f"{source}, row {row.get('index', row.get('id', row.get('question_id', '?')))}"
        cells = _images_of(row, place)
        kept = {key: _plain(value) for key, value in row.items() if key not in cells and not _is_empty(value)}
        flat = [one for cell in cells.values() for one in (cell if isinstance(cell, list) else [cell])]
        names = [self._stored(one, place) for one in flat]
        if not names and "image_path" in kept:
            paths = _listed(kept.pop("image_path"), place)
            names = [str(inside(str(path), place)) for path in paths]
        return {**kept, "images": names}

    def _stored(self, cell: Any, place: str) -> str:
        """The file of an image, below root; "=INDEX" for a reference to another row's."""
        if isinstance(cell, str) and len(cell) <= LONGEST_REFERENCE:
            return f"={cell.strip()}"
        key = hashlib.blake2b(cell if isinstance(cell, bytes) else str(cell).encode()).digest()
        if key not in self._names:  # a rotation of a question repeats its image
            self._names[key] = self._written(cell if isinstance(cell, bytes) else _decoded(cell, place), place)
        return self._names[key]

    def _written(self, data: bytes, place: str) -> str:
        """The file of an image, below root, named by its content."""
        suffix = next((end for magic, end in MAGIC.items() if data.startswith(magic)), "")
        if not suffix:
            raise UserError(f"{place}: its image is none of {', '.join(sorted(MAGIC.values()))}: the table is damaged.")
        name = f"{FOLDER}/images/{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
        if not (self.root / name).exists():
            draft = self.root / f"{name}.{os.getpid()}.draft"
            draft.write_bytes(data)
            draft.replace(self.root / name)
            self._made.append(name)
        return name


def _remedy(task: str) -> str:
    return f"run vlbench data prepare task={task}"


def _marks(sources: Sequence[Path], root: Path) -> list[list[Any]]:
    """What tells a table from another: name, size, and a digest of both ends of each file."""
    return [[path.relative_to(root).as_posix(), path.stat().st_size, _ends(path)] for path in sources]


def _ends(path: Path) -> str:
    with path.open("rb") as file:
        sha = hashlib.sha256(file.read(EDGE))
        file.seek(max(0, path.stat().st_size - EDGE))
        sha.update(file.read(EDGE))
    return sha.hexdigest()[:32]


def _told(content: Any) -> Any:
    return content.get("sources") if isinstance(content, dict) else None


def _tsv_rows(path: Path) -> Iterator[Row]:
    """The rows of a TSV, one in memory at a time."""
    csv.field_size_limit(sys.maxsize)  # an image is a field
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            cells = _tsv_cells(file)
            columns = next(cells, [])
            if "question" not in columns:
                raise UserError(f"{path} is no table of questions: its first line should name the columns.")
            for values in cells:
                row = dict(zip(columns, values, strict=False))
                if len(values) != len(columns):
                    raise UserError(f"{path}, row {row.get('index')}: it has not as many cells as the first line.")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a TSV: {error}.") from None


def _tsv_cells(lines: Iterator[str]) -> Iterator[list[str]]:
    """The cells of each row. A line without a quotation mark is split at its tabs, five times faster than csv reads it;
    one with a mark, which may hold line breaks, is csv's, with as many of the next lines as it asks for."""
    for line in lines:
        text = line.rstrip("\r\n")
        if '"' in text:
            yield next(csv.reader(chain((line,), lines), delimiter="\t"))
        elif text:
            yield text.split("\t")


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path.name} is a parquet file: pip install 'vlbench[parquet]' reads them.") from None
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=AT_ONCE):
            yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}.") from None


def _images_of(row: Row, place: str) -> dict[str, Any]:
    """Column -> image: base64 text, bytes, or a list of either; in the order of image, image_1, image_2 ..."""
    images: dict[str, Any] = {}
    for name in sorted((key for key in row if re.fullmatch(r"image(_\d+)?", key)), key=lambda key: (len(key), key)):
        value = row[name]
        if isinstance(value, dict):
            value = value.get("bytes")
        elif isinstance(value, list):
            value = [one.get("bytes") if isinstance(one, dict) else one for one in value]
        elif isinstance(value, str) and value.startswith("["):
            value = _listed(value, place)
        if value is None:
            row[name] = ""
        elif not _is_empty(value):
            images[name] = value
    return images


def _decoded(text: str, place: str) -> bytes:
    try:
        text = str(text)
        broken = any(blank in text for blank in " \n\r")  # base64 that was wrapped into lines
        return base64.b64decode("".join(text.split()) if broken else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{place}: its image is no base64 ({error}): the table is damaged.") from None


def _follow_references(rows: Sequence[Row], source: Path) -> None:
    """Put the image that a row names by another row's index in the place of the name."""
    own = {str(row.get("index")): row["images"] for row in rows}
    for row in rows:
        for at, name in enumerate(row["images"]):
            if name.startswith("="):
                place = f"{source}, row {row.get('index')}: its image is that of row {name[1:]}"
                theirs = own.get(name[1:])
                if theirs is None or name[1:] == str(row.get("index")):
                    raise UserError(f"{place}, which {'is itself' if theirs else 'is not there'}: correct the table.")
                if len(theirs) != 1 or theirs[0].startswith("="):
                    raise UserError(f"{place}, which has no image of its own: correct the table.")
                row["images"] = [*row["images"][:at], theirs[0], *row["images"][at + 1 :]]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | list) else str(value)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in NOTHING) or value != value


def _listed(value: Any, place: str) -> list[Any]:
    """A list, of a cell that holds one or writes one as Python does. Raises UserError for anything that is no literal:
    a cell is data, and is not run."""
    if isinstance(value, list | tuple):
        return list(value)
    text = str(value)
    if not text.lstrip().startswith(("[", "(")):
        return [value]
    try:
        values = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{place}: {text[:60]!r} is no list of plain values: correct the table.") from None
    return list(values) if isinstance(values, list | tuple) else [values]


def listed(row: Mapping[str, Any], column: str, place: str) -> list[Any]:
    """The values of a cell that holds one or several."""
    return _listed(row[column], place) if column in row else []
