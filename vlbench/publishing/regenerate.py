"""leaderboards/results -> the boards beside it, byte for byte; and the same of one's own runs.

No model runs here, and no clock, locale, hash seed or file order shows in a board.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from ..disk.storage import write_text
from ..errors import UserError
from ..leaderboard.consistency import board_of
from ..leaderboard.local import readable
from ..leaderboard.published import load_published
from ..leaderboard.rows import COLUMNS, Row, load_results, merge, ranked, rows_of
from ..leaderboard.tables import GENERATED, csv_text, markdown
from ..pages.board import page
from ..plugins.workspace import boards_folder
from ..records.record import Record
from .difference import differences

PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def boards(results_root: Path) -> dict[Path, str]:
    """<suite>/<task>.csv and .md, a board for each suite and task, and <suite>/index.html, a page for each suite:
    names relative to the leaderboards' folder -> text."""
    return _texts(rows_of(load_results(results_root, scores=False)))


def own_boards(runs: Path) -> dict[Path, str]:
    """The same of the finished runs in `runs`, beside the committed rows that they may be compared with. What was run
    here has a star before its method, but for the CSV files, whose columns are for programs. Raises UserError where no
    run enters a board."""
    mine = [record for record in readable(runs) if ranked(record)]
    if not mine:
        raise UserError(f"no run in {runs} enters a board: `vlbench list runs` shows them, `vlbench run` makes one.")
    blocks = {board_of(record) for record in mine}
    committed = [r for r in load_results(boards_folder() / "results", scores=False) if board_of(r) in blocks]
    records, local = merge(committed, mine)
    return _texts(rows_of(records), local)


def _texts(rows: Sequence[tuple[Row, Sequence[Record]]], starred: Collection[str] = ()) -> dict[Path, str]:
    """starred: the `config` of rows that are marked."""
    texts: dict[Path, str] = {}
    for (suite, task), group in groupby(rows, key=lambda pair: (pair[0].suite, pair[0].task)):
        members = [row for row, _ in group]
        board = Path(file_name(suite)) / file_name(task)
        texts[board.with_name(f"{board.name}.csv")] = csv_text(members)
        texts[board.with_name(f"{board.name}.md")] = markdown([_marked(row, starred) for row in members])
    for suite, pairs in groupby(rows, key=lambda pair: pair[0].suite):
        shown = [(_marked(row, starred), records) for row, records in pairs]
        texts[Path(file_name(suite)) / "index.html"] = page(suite, shown, load_published())
    return texts


def _marked(row: Row, starred: Collection[str]) -> Row:
    return replace(row, method=f"* {row.method}") if row.config in starred else row


def write(results_root: Path, out_root: Path) -> list[Path]:
    """Write all boards under `out_root`, remove generated ones that have no results left; return what
    changed."""
    return _written(boards(results_root), out_root)


def write_own(runs: Path, out_root: Path) -> list[Path]:
    """Write the boards of one's own runs, as `write` does those of results."""
    return _written(own_boards(runs), out_root)


def _written(texts: Mapping[Path, str], out_root: Path) -> list[Path]:
    changed = [name for name, text in texts.items() if _bytes(out_root / name) != text.encode()]
    for name in changed:
        write_text(out_root / name, texts[name])
    strays = list(_strays(out_root, texts))
    for name in strays:
        (out_root / name).unlink()
    return sorted([*changed, *strays])


def check(results_root: Path, out_root: Path) -> list[str]:
    """What `write` would change: file, row, column, old -> new. Empty where every byte is as it should be."""
    texts = boards(results_root)
    lines: list[str] = []
    for name, text in texts.items():
        present = _bytes(out_root / name)
        if present is None:
            lines.append(f"{name.as_posix()} is missing")
        elif present != text.encode():
            lines += differences(name.as_posix(), present.decode("utf-8", errors="replace"), text)
    return [*lines, *(f"{name.as_posix()} has no results" for name in _strays(out_root, texts))]


def _strays(out_root: Path, texts: Mapping[Path, str]) -> Iterator[Path]:
    """Boards without results. Only files that begin as a board does: a page written by hand is none."""
    for path in sorted(path for kind in ("csv", "md", "html") for path in out_root.glob(f"*/*.{kind}")):
        name, head = path.relative_to(out_root), path.read_bytes()[:400].decode("utf-8", errors="replace")
        if name not in texts and (head.startswith(",".join(COLUMNS)) or GENERATED in head):
            yield name


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def file_name(name: str) -> str:
    """A contributed file says which suite and task it is of: it must not reach outside the boards' folder."""
    if not PATH_NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be part of a file name: letters, digits and ._+- only. Mend the result.")
    return name
