"""2:4 without a GPU: the pattern is verified, and no speed is made up."""

from __future__ import annotations

import pytest
import torch

from vlbench.compression.masks import keep_n_of_m
from vlbench.compression.semi_structured import UNMEASURED, semi_structured_speed
from vlbench.errors import UserError


def test_on_a_cpu_the_mask_is_verified_and_nothing_is_timed() -> None:
    weight = torch.randn(32, 64)
    found = semi_structured_speed(weight * keep_n_of_m(weight.abs(), 2, 4), 8)
    assert (found.dense, found.sparse, found.note) == (None, None, f"{UNMEASURED}: it needs a GPU")


@pytest.mark.parametrize("columns", [64, 66])
def test_other_patterns_are_refused(columns: int) -> None:
    with pytest.raises(UserError, match="keep 2 of every 4 columns"):
        semi_structured_speed(torch.randn(32, columns), 8)
