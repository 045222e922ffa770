"""Boards and bars. The oracle reads the pictures back: glyphs by their pixels, values by the heights of bars."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from vlbench.mini.letters import BOARDS, FONT, STEP, VALUES, WORDS, bars, boards, glyph, render_bars, render_boards
from vlbench.mini.scenes import COLORS, PALETTE


def read_cell(pixels: np.ndarray, paper: tuple[int, int, int]) -> str:
    """The letter in a patch (8, 8, 3) of this paper: the one whose pixels are not paper."""
    ink = (pixels[:7, 1:6] != np.array(paper, dtype=np.uint8)).any(axis=2)
    return next((letter for letter in FONT if (glyph(letter).astype(bool) == ink).all()), "?")


def test_letters_differ_and_words_are_of_them() -> None:
    assert all((glyph(a) != glyph(b)).sum() >= 2 for a, b in combinations(FONT, 2))
    assert all(len(word) == 3 and set(word) <= set(FONT) for word in WORDS)
    assert len(set(WORDS)) == len(WORDS)
    assert set(BOARDS) <= set(COLORS)


def test_boards_are_read_back() -> None:
    for index in range(60):
        shown, ground = boards("val", index, 16)
        pixels = render_boards(shown, ground)
        assert pixels.shape == (64, 64, 3)
        for values in zip(*((b.color, b.word, b.row) for b in shown), strict=True):
            assert len(set(values)) == len(shown)
        for board in shown:
            row = pixels[8 * board.row : 8 * board.row + 8, 8 * board.column :]
            word = "".join(read_cell(row[:, 8 * k : 8 * k + 8], PALETTE[board.color]) for k in range(3))
            assert word == board.word
    assert boards("val", 3, 16) == boards("val", 3, 16) != boards("train", 3, 16)


@pytest.mark.parametrize("split", ["train", "val"])
def test_bars_are_read_back(split: str) -> None:
    for index in range(60):
        shown = bars(split, index, 17)
        assert 3 <= len(shown) <= 6
        pixels = render_bars(shown)
        for number, bar in enumerate(shown, start=1):
            assert 1 <= bar.value <= VALUES
            column = pixels[:56, 8 * number + 3]
            height = (column == np.array(PALETTE[bar.color], dtype=np.uint8)).all(axis=1).sum()
            assert height == bar.value * STEP
            assert read_cell(pixels[56:, 8 * number : 8 * number + 8], (240, 240, 240)) == bar.letter
        for values in zip(*((b.letter, b.color, b.value) for b in shown), strict=True):
            assert len(set(values)) == len(shown)
