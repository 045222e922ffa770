"""Tables of benchmarks as VLMEvalKit and lmms-eval have them, made here."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tasks.asked import make


def picture(shade: int = 0, side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256 % 256, 7)).save(file, format="PNG")
    return file.getvalue()


def cell(shade: int = 0) -> str:
    return base64.b64encode(picture(shade)).decode()


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(Table.from_pylist(rows), path)
    return path


def prepared(name: str, root: Path, split: str, **options: Any) -> Any:
    """The task, its table unpacked."""
    task = make(name, root, **options)
    task.prepare(split, lambda line: None)
    assert task.missing(split) == []
    return task


def question(index: Any, **more: Any) -> dict[str, Any]:
    row = {"index": index, "image": cell(1), "question": f"Question {index}?", "A": "red", "B": "blue", "answer": "A"}
    return {**row, **more}
