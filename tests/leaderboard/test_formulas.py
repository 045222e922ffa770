"""Oracle: the characters that begin a formula in spreadsheets (OWASP, CSV injection)."""

from __future__ import annotations

import pytest

from vlbench.leaderboard.tables import _cell


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_begins_a_formula_is_escaped(text: str) -> None:
    assert _cell("label", text) == f"'{text}"


def test_numbers_and_plain_words_are_as_they_are() -> None:
    assert (_cell("macs", -3), _cell("delta", -1.5), _cell("method", "wanda+lora")) == ("-3", "-1.5000", "wanda+lora")
