"""Rows and published results as points of a picture: quality against parameters and MACs, absolute and as fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .published import DENSE, Point, Published, points
from .rows import Row
from .tables import name


@dataclass(frozen=True)
class Size:
    """What a point is measured by. params: parameters that are not zero; macs: of one sample; value: percent points.
    None: not known."""

    params: float | None
    macs: float | None
    value: float | None

    def over(self, dense: Size) -> Size:
        """As fractions of the dense model's."""
        pairs = ((self.params, dense.params), (self.macs, dense.macs), (self.value, dense.value))
        return Size(*(mine / theirs if mine is not None and theirs else None for mine, theirs in pairs))


@dataclass(frozen=True)
class Spot:
    """One point. family: what shares a colour and a line, one
    configuration at several targets; config: the row's, empty for a published one. low, high: 95 % interval
    of the value. fraction: of the dense model (of its own table, for a published one), None where that is not known.
    protocol: of a published one, with its source."""

    name: str
    family: str
    pattern: str
    trained: bool
    config: str
    size: Size
    fraction: Size | None
    low: float | None = None
    high: float | None = None
    protocol: str = ""

    @property
    def published(self) -> bool:
        return not self.config


def dense_size(rows: Sequence[Row]) -> Size:
    """The dense model of a block, from any of its rows: what is left and by how much it was reduced."""
    row = rows[0]
    macs = next((r.macs / (1 - r.macs_reduction) for r in rows if r.macs and r.macs_reduction is not None), None)
    value = next(
        (r.value for r in rows if r.dense), next((r.value - r.delta for r in rows if r.delta is not None), None)
    )
    return Size(row.nonzero / (1 - row.model_reduction), macs, value)


def measured(rows: Sequence[Row]) -> list[Spot]:
    """A point a row of one block."""
    dense = dense_size(rows)
    marks = []
    for row in rows:
        size = Size(row.nonzero, row.macs, row.value)
        label = " ".join(part for part in (name(row), row.sparsity_target) if part)
        marks.append(
            Spot(
                label, _family(row, rows), row.pattern, row.trained, row.config, size, size.over(dense),
                low=row.low, high=row.high,
            )
        )  # fmt: skip
    return marks


def _family(row: Row, rows: Sequence[Row]) -> str:
    """The method; with its options where two of its rows aim at one target, so that no line joins two of its ways."""
    ways = [r for r in rows if (r.method, r.recipe, r.pattern) == (row.method, row.recipe, row.pattern)]
    alike = len({r.sparsity_target for r in ways}) == len(ways)
    return name(replace(row, options="") if alike else row)


def published(rows: Sequence[Row], numbers: Sequence[Published]) -> list[Spot]:
    """What others printed for the task and metric of a block, where it has a size."""
    spots = [_spot(point) for point in points(numbers, rows[0].task, rows[0].metric)]
    return [spot for spot in spots if spot.size.params or spot.size.macs]


def _spot(point: Point) -> Spot:
    row = point.row
    size = Size(row.params, row.macs, row.value)
    dense = None if point.dense is None else Size(point.dense.params, point.dense.macs, point.dense.value)
    label = " ".join(part for part in (row.method, row.target) if part)
    protocol = f"{row.model}, {row.dataset} {row.split}: {row.protocol}. {row.source}"
    pattern = row.pattern or DENSE
    trained = row.restoration not in ("", "none")
    return Spot(label, row.method, pattern, trained, "", size, dense and size.over(dense), protocol=protocol)
