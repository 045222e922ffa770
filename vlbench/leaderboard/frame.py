"""The leaderboards as a pandas data frame."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from .filters import selected
from .rows import COLUMNS, Row, other_metrics

if TYPE_CHECKING:
    import pandas as pd

EXTRA = {"cells": "object", "seed_values": "object", "local": "bool"}
KINDS = {
    "str": "object",
    "int": "int64",
    "float": "float64",
    "bool": "bool",
    "int | None": "Int64",
    "bool | None": "boolean",
}


def results(runs: Path, words: dict[str, str]) -> pd.DataFrame:
    """See `vlbench.results`."""
    import pandas as pd

    rows, local = selected(words, runs)
    lines = [
        [
            *(other_metrics(records) if name == "metrics" else getattr(row, name) for name in COLUMNS),
            " ".join(record.cell for record in records),
            " ".join("" if record.seed is None else str(record.seed) for record in records),
            row.config in local,
        ]
        for row, records in rows
    ]
    frame = pd.DataFrame(lines, columns=[*COLUMNS, *EXTRA])
    # Of an empty frame too, and of a column without a value, the types are those of the row's fields.
    return frame.astype({field.name: KINDS.get(str(field.type), "float64") for field in fields(Row)} | EXTRA)
