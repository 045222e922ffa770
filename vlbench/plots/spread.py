"""Rows whose target is spread over vision and language: what either side loses alone, and lines of one sum or size.

The grid is that of He et al. 2024 (arXiv 2404.02424), by the ratios that were asked for. iso-ratio: points of a line
have the same sum of the two ratios; iso-parameter: the same number of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..disk.storage import digest
from ..leaderboard.filters import Found
from ..leaderboard.rows import Row
from ..records.record import Record

SPREAD = ("sparsity", "vision", "language", "towers", "budget")  # options of a pruner that say how much goes where
ALIKE, LANGUAGE, VISION = "both alike", "language alone", "vision alone"
SIDES = (ALIKE, LANGUAGE, VISION)
ISO_RATIO, ISO_PARAMETER = "iso-ratio", "iso-parameter"  # what the names of lines begin with


@dataclass(frozen=True)
class Point:
    """A row on a line. x: percent. vision, language: the ratios asked for, None where the other one and the target set
    it."""

    line: str
    x: float
    row: Row
    vision: float | None = None
    language: float | None = None


@dataclass(frozen=True)
class Grid:
    """The rows of one pruner (and what follows it). sides: over the ratio of what is pruned; lines: over the vision
    towers' ratio; patterns: n:m, `x` numbering them. digest: of what the rows share."""

    method: str
    digest: str
    sides: tuple[Point, ...]
    lines: tuple[Point, ...]
    patterns: tuple[Point, ...]


def grids(rows: Sequence[Found]) -> list[Grid]:
    """Of the rows of one block, those of every chain that was asked to prune the modalities unlike."""
    groups: dict[str, list[Found]] = {}
    for row, records in rows:
        if _Asked.of(records[0]) is not None:
            groups.setdefault(_but_for_the_spread(records[0]), []).append((row, records))
    made = [_grid(key, group) for key, group in groups.items()]
    return [grid for grid in made if grid.lines or any(p.line != ALIKE for p in (*grid.sides, *grid.patterns))]


def blind_of(block: Sequence[Found], everything: Sequence[Found]) -> Row | None:
    """The row of the block's dense model without images: the same but for that setting. (The digest of its split is
    another: it holds no images.)"""
    wanted = block[0][1][0]
    evaluation = {**wanted.evaluation, "blind": True}
    return next(
        (row for row, (one, *_) in everything if row.dense and _compared(one) == _compared(wanted, evaluation)), None
    )


def _compared(record: Record, evaluation: Mapping[str, Any] | None = None) -> list[Any]:
    task = [record.suite, record.task, record.task_version, record.split, record.samples, record.clusters]
    return [*task, record.model, record.label, record.weights_digest, evaluation or record.evaluation]


class _Asked(NamedTuple):
    """What a pruner was told. iso_ratio: its target is the ratio of the towers that are pruned."""

    target: float | str
    vision: float | None
    language: float | None
    iso_ratio: bool

    @classmethod
    def of(cls, record: Record) -> _Asked | None:
        """None for a chain that does not begin with a pruner, and for ratios of single towers."""
        options = record.chain[0].options
        if "sparsity" not in options or options.get("towers"):
            return None
        return cls(
            options["sparsity"], options.get("vision"), options.get("language"), options.get("budget") == "ratio"
        )


def _but_for_the_spread(record: Record) -> str:
    """What rows of one grid share."""
    links = [link.model_dump() for link in record.chain]
    links[0]["options"] = {k: v for k, v in links[0]["options"].items() if k not in SPREAD}
    return digest(links)


def _grid(key: str, rows: Sequence[Found]) -> Grid:
    points = [(row, asked) for row, records in rows if (asked := _Asked.of(records[0])) is not None]
    sides = [p for row, asked in points for p in _side(row, asked)]
    lines = [p for row, asked in points for p in _unlike(row, asked)]
    for even in [p for p in sides if p.line == ALIKE]:  # a point of every line that it lies on
        ratio = even.x / 100
        on = dict.fromkeys(p.line for p in lines) & dict.fromkeys((_sum(2 * ratio), _size(ratio))).keys()
        lines += [Point(line, even.x, even.row, ratio, ratio) for line in sorted(on)]
    names = [p.line for p in lines]
    lines = [p for p in lines if names.count(p.line) > 1]
    return Grid(rows[0][0].method, key, _sorted(sides), _sorted(lines), tuple(_patterns(points)))


def _sorted(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda p: (SIDES.index(p.line) if p.line in SIDES else 0, p.line, p.x)))


def _side(row: Row, asked: _Asked) -> Iterator[Point]:
    """A fraction of both towers alike, or of one with the other left alone."""
    target, vision, language, iso_ratio = asked
    if isinstance(target, str):
        return
    if vision is None and language is None:
        yield Point(ALIKE, 100 * target, row, target, target)
    elif vision == 0 and (language is not None or iso_ratio):
        ratio = target if language is None else language
        yield Point(LANGUAGE, 100 * ratio, row, 0.0, ratio)
    elif language == 0 and (vision is not None or iso_ratio):
        ratio = target if vision is None else vision
        yield Point(VISION, 100 * ratio, row, ratio, 0.0)


def _unlike(row: Row, asked: _Asked) -> Iterator[Point]:
    """Two ratios, or one and the number of weights."""
    target, vision, language, iso_ratio = asked
    if isinstance(target, str) or vision is None:
        return
    if vision and language:
        yield Point(_sum(vision + language), 100 * vision, row, vision, language)
    elif language is None and not iso_ratio:
        yield Point(_size(target), 100 * vision, row, vision, None)


def _sum(ratios: float) -> str:
    return f"{ISO_RATIO}: vision + language = {100 * ratios:.4g}%"


def _size(target: float) -> str:
    return f"{ISO_PARAMETER}: {100 * target:.4g}% of the prunable set"


def _patterns(points: Sequence[tuple[Row, _Asked]]) -> Iterator[Point]:
    """n:m of both towers, or of one with the other left alone: there is no third."""
    texts = {asked.target for _, asked in points if isinstance(asked.target, str)}
    targets = sorted(texts, key=lambda text: [int(number) for number in text.split(":")])
    for row, asked in points:
        if asked.target in texts:
            line = LANGUAGE if asked.vision == 0 else VISION if asked.language == 0 else ALIKE
            yield Point(line, float(targets.index(str(asked.target))), row)
