"""How pictures look and how they are written: the same bytes for the same numbers, on any day.

Colours are those of Okabe and Ito (2008), which people with any of the common colour blindnesses can tell apart.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk.storage import write_bytes, write_text
from ..errors import UserError
from ..leaderboard.tables import fixed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
GREY = "#6B6B6B"  # of what was published: 5.3:1 on white
# From light to dark, blue only: one hue is read right by everybody, and printed in grey as well.
SHADES = "Blues"
MARKERS = "osD^vP*X"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "svg.hashsalt": "vlbench",  # else the ids inside are random
    "svg.fonttype": "path",  # letters as shapes: they look the same where DejaVu Sans is not installed
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our style and without a screen. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib import style
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'vlbench[plots]'.") from None
    with style.context(["default", STYLE]):  # whatever the user's own matplotlibrc says
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches; its axes find their room themselves."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, header: Sequence[str], rows: Sequence[Sequence[object]], out: Path, name: str) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv (the numbers that are drawn) into `out`; returns their paths."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)
    files = [out / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
    for file, kind, metadata in ((files[0], "png", {"Software": None}), (files[1], "svg", {"Date": None})):
        stream = io.BytesIO()
        drawn.savefig(stream, format=kind, metadata=metadata)
        write_bytes(file, stream.getvalue())
    write_text(files[2], _csv(header, rows))
    return files


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([fixed(v, 6) if isinstance(v, float) else v for v in row] for row in rows)
    return stream.getvalue()
