"""Letters of 5 x 7 pixels, painted into patches of the lattice; boards with words, and bars with letters below them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np

from .render import UInt8Array, paint_ground
from .scenes import COLORS, IMAGE_SIZE, LATTICE, PALETTE, SPLITS, Draws, Ground, ground

CELLS = IMAGE_SIZE // LATTICE
# A row of pixels is a number of five bits, the most significant to the left.
FONT: dict[str, tuple[int, ...]] = {
    "A": (14, 17, 17, 31, 17, 17, 17), "B": (30, 17, 17, 30, 17, 17, 30), "C": (14, 17, 16, 16, 16, 17, 14),
    "D": (30, 17, 17, 17, 17, 17, 30), "E": (31, 16, 16, 30, 16, 16, 31), "F": (31, 16, 16, 30, 16, 16, 16),
    "G": (14, 17, 16, 23, 17, 17, 15), "H": (17, 17, 17, 31, 17, 17, 17), "I": (14, 4, 4, 4, 4, 4, 14),
    "K": (17, 18, 20, 24, 20, 18, 17), "L": (16, 16, 16, 16, 16, 16, 31), "M": (17, 27, 21, 21, 17, 17, 17),
    "N": (17, 25, 21, 19, 17, 17, 17), "O": (14, 17, 17, 17, 17, 17, 14), "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17), "S": (15, 16, 16, 14, 1, 1, 30), "T": (31, 4, 4, 4, 4, 4, 4),
    "U": (17, 17, 17, 17, 17, 17, 14), "X": (17, 17, 10, 4, 10, 17, 17), "Y": (17, 17, 10, 4, 4, 4, 4),
}  # fmt: skip
WORDS = (
    "BAR", "BED", "BOX", "BUS", "CAR", "CAT", "CUP", "DOG", "EAR", "FAN", "FOX", "GUM", "HAT", "ICE", "KEY", "LIP",
    "MAN", "MAP", "NET", "OIL", "PEN", "RED", "RUG", "SEA", "SUN", "TAX", "TEA", "TOY", "TUB", "YES",
)  # fmt: skip
BOARDS = ("red", "green", "blue", "yellow", "white", "black")
DARK, LIGHT = (16, 16, 16), (244, 244, 244)
BAR_LETTERS = "ABCDEFGH"
VALUES = 9  # a bar is of 1 to 9
STEP = 5  # pixels a unit
PAPER = (240, 240, 240)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Board:
    """A board three patches wide and one high, whose first patch is at (row, column)."""

    color: str
    word: str
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Bar:
    letter: str
    color: str
    value: int


@cache
def glyph(letter: str) -> UInt8Array:
    """(7, 5) of 0 and 1."""
    return np.array([[row >> bit & 1 for bit in range(4, -1, -1)] for row in FONT[letter]], dtype=np.uint8)


def boards(split: str, index: int, stream: int) -> tuple[tuple[Board, ...], Ground]:
    """Two or three boards in different rows, of different colours and words, and the ground behind them."""
    key = (stream, SPLITS[split], index)
    draws = Draws(*key)
    number = draws.between(2, 3)
    rows = _different(draws, range(1, 7, 2), number)
    colors, words = (_different(draws, pool, number) for pool in (BOARDS, WORDS))
    places = [draws.below(CELLS - 2) for _ in range(number)]
    looks = zip(colors, words, rows, places, strict=True)
    return tuple(Board(c, w, r, p) for c, w, r, p in looks), ground(draws, *key)


def bars(split: str, index: int, stream: int) -> tuple[Bar, ...]:
    """Three to six bars of different letters, colours and values."""
    draws = Draws(stream, SPLITS[split], index)
    number = draws.between(3, 6)
    letters = _different(draws, BAR_LETTERS, number)
    colors = _different(draws, COLORS[:-2], number)
    values = _different(draws, range(1, VALUES + 1), number)
    return tuple(Bar(a, b, c) for a, b, c in zip(letters, colors, values, strict=True))


def _different(draws: Draws, pool: Sequence[T], number: int) -> list[T]:
    """So many of a pool, none twice, in the order drawn."""
    left = list(pool)
    return [left.pop(draws.below(len(left))) for _ in range(number)]


def render_boards(shown: Sequence[Board], behind: Ground) -> UInt8Array:
    """(64, 64, 3)"""
    canvas: UInt8Array = paint_ground(behind).astype(np.uint8)
    for board in shown:
        top, left = board.row * LATTICE, board.column * LATTICE
        canvas[top : top + LATTICE, left : left + 3 * LATTICE] = PALETTE[board.color]
        ink = DARK if sum(PALETTE[board.color]) > 350 else LIGHT
        for place, letter in enumerate(board.word):
            _write(canvas, letter, top, left + place * LATTICE, ink)
    return canvas


def render_bars(shown: Sequence[Bar]) -> UInt8Array:
    """(64, 64, 3): bars six pixels wide in the patches from the second column on, their letters in the last row."""
    canvas: UInt8Array = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), PAPER, dtype=np.uint8)
    base = IMAGE_SIZE - LATTICE
    canvas[base - VALUES * STEP : base, LATTICE - 2 : LATTICE - 1] = DARK  # the axis, with a tick at every value
    for value in range(VALUES + 1):
        canvas[base - value * STEP - 1, LATTICE - 4 : LATTICE - 1] = DARK
    for number, bar in enumerate(shown, start=1):
        left = number * LATTICE
        canvas[base - bar.value * STEP : base, left + 1 : left + 7] = PALETTE[bar.color]
        _write(canvas, bar.letter, base, left, DARK)
    return canvas


def _write(canvas: UInt8Array, letter: str, top: int, left: int, ink: tuple[int, int, int]) -> None:
    window = canvas[top : top + 7, left + 1 : left + 6]
    window[glyph(letter).astype(bool)] = ink
