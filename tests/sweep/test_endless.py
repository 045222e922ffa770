"""Oracle: the product of the lists' lengths."""

from __future__ import annotations

import pytest

from vlbench.errors import UserError
from vlbench.sweep.planning import plan
from vlbench.sweep.sweepfile import Line


def test_more_than_a_million_cells_are_refused_before_they_are_counted_out() -> None:
    many = ",".join(str(i) for i in range(1001))
    line = Line({"task": "imagenet", "method": "magnitude", "seed": many, "sparsity": many, "limit": many})
    with pytest.raises(UserError, match="1,003,003,001 cells"):
        plan([line])


def test_the_count_is_that_of_the_cells() -> None:
    line = Line({"task": "a,b", "seed": "0,1,2,0"})
    assert line.count() == len(line.cells()) == 6
