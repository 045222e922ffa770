"""Oracle: a board whose nearest rows are worked out by hand; what a run ends with fits 80 columns and eight lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.leaderboard.factory import record
from vlbench.leaderboard.excerpt import LINES, Excerpt, others_line
from vlbench.leaderboard.local import print_excerpt
from vlbench.leaderboard.rows import row_alone, rows
from vlbench.records.record import Record


def board() -> list[Record]:
    """The dense model; magnitude at three sparsities, and four others at 0.5, of which one is of another pattern."""
    pruned = {"magnitude": 0.60, "wanda": 0.70, "obd": 0.66, "random": 0.10}
    return [
        record(),
        *(record(name, sparsity=0.5, accuracy=value, pattern="unstructured") for name, value in pruned.items()),
        record("magnitude", sparsity=0.3, accuracy=0.61, pattern="unstructured"),
        record("uniform", sparsity=0.5, accuracy=0.6, pattern="structured"),
    ]


def excerpt(method: str = "magnitude", sparsity: float = 0.5) -> Excerpt:
    every = rows(board())
    row = next(row for row in every if row.method == method and abs(row.sparsity - sparsity) < 0.01)
    return Excerpt(row, every, {row.config}, file="runs/tables/mini/vqav2.csv")


def shown(of: Excerpt, **console: object) -> list[str]:
    stream = io.StringIO()
    of.show(Console(file=stream, **console))  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_the_nearest_are_of_like_pattern_and_sparsity_and_the_best_stands_first() -> None:
    """At 0.5 obd and wanda are nearer in value than random; the row at 0.3 and the structured one are farther still."""
    assert [row.method for row in excerpt().shown()] == ["dense", "wanda", "obd", "magnitude", "random"]
    assert excerpt("dense", 0).shown()[0].method == "dense"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_eight_lines_and_a_sentence_that_fit(width: int) -> None:
    lines = shown(excerpt(), width=width, force_terminal=True, color_system=None)
    assert len(lines) == LINES + 1
    assert max(map(len, lines[1:-2])) <= width
    assert "params" in lines[1]
    assert "MACs" in lines[1]
    assert sum(line.startswith("*") for line in lines) == 2  # the row, and what the star means
    assert ("not shown at 80 columns: seeds" in lines[-2]) == (width == 80)
    dense, magnitude = excerpt().shown()[0].value, excerpt().row.value
    assert f"magnitude keeps {100 * magnitude / dense:.1f} % of accuracy at 50.0 % sparsity" in lines[-1]
    assert "2 more rows: --board, runs/tables/mini/vqav2.csv" in lines[-1]


def test_a_run_of_no_board_shows_the_same_row_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limited = record("magnitude", sparsity=0.5, accuracy=0.6, flags=["limit"])
    print_excerpt(limited, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("not for a board: limit.")
    row = row_alone(limited)
    assert f"{row.value:.1f} [{row.low:.1f}, {row.high:.1f}]" in lines[-3]
    assert f"{row.delta:.1f} [{row.delta_low:.1f}, {row.delta_high:.1f}]" in lines[-3]
    assert "50.0%" in lines[-3]
    assert not (tmp_path / "tables").exists()


def test_secondary_metrics_stand_beside_those_of_the_dense_model() -> None:
    own, dense = record("magnitude", sparsity=0.5), record()
    own = own.model_copy(update={"metrics": {**own.metrics, "top5": 71.23}})
    assert others_line(own, None) == "other metrics: top5 71.2"
    dense = dense.model_copy(update={"metrics": {**dense.metrics, "top5": 90.0}})
    assert others_line(own, dense) == "other metrics: top5 71.2 (dense 90.0)"
    assert others_line(record(), None) == "other metrics: none"
