"""Oracle: the numbers that went in (the CSV beside a picture): records of every cell that the studies ask for."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.factory import record
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.leaderboard import filters as select
from vlbench.leaderboard.rows import rows_of
from vlbench.plots.command import plot
from vlbench.plots.restoration import comparison
from vlbench.plots.spread import blind_of, grids
from vlbench.records.record import Link, Record, write_record
from vlbench.sweep.sweepfile import lines_of

pytest.importorskip("matplotlib", reason="needs the extra 'plots' (matplotlib)")
BOARDS = Path(__file__).resolve().parents[2] / "leaderboards"


@cache
def records(study: str) -> tuple[Record, ...]:
    """What the cells of a study would leave: its words resolved, with made-up scores."""
    cells = [cell for line in lines_of([], BOARDS / f"{study}.sweep") for cell in line.cells()]
    return tuple(finished(cell) for cell in cells)


def finished(words: dict[str, str]) -> Record:
    spec = resolve(words)
    chain = [
        Link(name=link.entry.name, version="1", options=link.method(link.options).options.recorded())
        for link in spec.links
    ]
    blind, target = words.get("blind") == "true", spec.target
    gone = 0.5 if ":" in target else float(target or 0)
    share = 1.3 if chain[0].options.get("vision") == 0 else 1 - 0.4 * (chain[0].options.get("vision") or 0)
    return record(
        spec.method, sparsity=0.0 if chain[-1].name == "lora" else gone, chain=chain,
        pattern="2:4" if ":" in target else "unstructured" if target else "dense", trained=len(chain) > 1,
        accuracy=0.3 if blind else 0.8 - 0.6 * share * gone**2 / len(chain),
        seed=spec.words.seed if spec.uses_seed else None,
        sparsity_target=target, cell="-".join(f"{k}_{v}".replace(":", "of") for k, v in words.items()),
        evaluation={"precision": "fp32", **({"blind": True} if blind else {})},
        split_digest="blind" if blind else "whole",  # without images there are fewer files to a split
        vs_dense=record("x", accuracy=0.7).vs_dense if target or len(chain) > 1 else None,
    )  # fmt: skip


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """The pictures of a study's finished runs, and the sentences on what is left out."""
    study = request.param
    for one in records(study):
        write_record(tmp_path / "runs" / one.cell / "result.json", one)
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path / "none")
    cells = [one.cell for one in records(study)]
    return plot([], Path, tmp_path / "runs", tmp_path / "out", [*cells, "another"])


@pytest.mark.parametrize("drawn", ["distribution"], indirect=True)
def test_the_grid_over_the_modalities_is_drawn_whole(drawn: Any) -> None:
    files, left = drawn
    names = [f"mini-vqav2-blip-mini-{what}" for what in ("tradeoff", "wanda-distribution")]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")]
    assert left == [f"1 of the sweep's {len(records('distribution')) + 1} cells: not finished, or of other words."]
    table = read(files[-1])
    count = Counter(row["line"] for row in table)
    assert count == {
        "both alike": 5 + 2, "language alone": 5 + 2, "vision alone": 5 + 2,
        "iso-ratio: vision + language = 100%": 5, "iso-ratio: vision + language = 120%": 7,
        "iso-parameter: 50% of the prunable set": 6, "iso-parameter: 60% of the prunable set": 6,
        "dense": 1, "dense, without images": 1,
    }  # fmt: skip
    assert len({row["config"] for row in table}) == len({one.method + str(one.chain) + str(one.evaluation)
                                                         for one in records("distribution")})  # fmt: skip
    line = [row for row in table if row["line"] == "iso-ratio: vision + language = 120%"]
    assert [float(row["vision"]) for row in line] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert all(float(row["vision"]) + float(row["language"]) == pytest.approx(1.2) for row in line)
    alone = [row for row in table if row["line"] == "language alone" and row["panel"] == "sides"]
    assert [float(row["language"]) for row in alone] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    wanted = next(r for r in records("distribution") if r.evaluation.get("blind")).interval.value
    assert [row["line"] for row in table[-2:]] == ["dense", "dense, without images"]
    assert float(table[-1]["value"]) == pytest.approx(wanted)


@pytest.mark.parametrize("drawn", ["restoration"], indirect=True)
def test_restorers_stand_beside_what_they_restore(drawn: Any) -> None:
    files, _ = drawn
    assert [file.name for file in files[3:]] == [f"mini-vqav2-blip-mini-restoration.{k}" for k in ("png", "svg", "csv")]
    table = read(files[-1])
    pruned = [row for row in table if row["target"]]
    restorers = ["none", "lora", "sparselora", "finetune", "norms"]
    targets = ["0.5", "0.6", "0.7", "2:4", "4:8"]
    assert Counter((row["pruner"], row["target"], row["restorer"]) for row in pruned) == Counter(
        product(("magnitude", "wanda"), targets, restorers)
    )
    assert list(dict.fromkeys(row["target"] for row in pruned)) == targets
    for row in pruned:  # what merging leaves, not what was asked for
        asked = 0.5 if ":" in row["target"] else float(row["target"])
        assert float(row["sparsity"]) == (0.0 if row["restorer"] == "lora" else asked)
        assert float(row["low"]) < float(row["value"]) < float(row["high"])
    assert [(row["pruner"], row["restorer"]) for row in table if not row["target"]] == [
        ("dense", "finetune"), ("dense", "lora"),
    ]  # fmt: skip


def restored(**options: Any) -> Record:
    links = {"magnitude": {"sparsity": 0.5}, "finetune": options}
    return record(
        "magnitude+finetune", sparsity=0.5, trained=True, seed=0, pattern="unstructured",
        cell="".join(filter(str.isalnum, f"c{options}")),
        chain=[Link(name=name, version="1", options=given) for name, given in links.items()],
    )  # fmt: skip


def test_a_board_without_unlike_ratios_or_restorers_has_neither() -> None:
    plain = [record(), *(record("magnitude", sparsity=s, pattern="unstructured") for s in (0.3, 0.5))]
    assert grids(rows_of(plain)) == []
    assert comparison(rows_of(plain)) is None
    assert comparison(rows_of([*plain, restored(steps=3)])) is None  # there is nothing to compare it with


def test_restorers_of_one_name_are_told_apart_by_their_options() -> None:
    made = comparison(rows_of([restored(steps=300, lr=0.1), restored(steps=450, lr=0.1)]))
    assert made is not None
    assert set(made.restorers) == {"finetune steps=300", "finetune steps=450"}


def test_pruners_of_other_options_have_grids_of_their_own() -> None:
    found = [
        record("wanda", sparsity=0.5, seed=0, pattern="unstructured", options={"vision": v, "language": 1 - v, **more})
        for v in (0.3, 0.7)
        for more in ({}, {"group": "matrix"})
    ]
    made = grids(rows_of(found))
    assert [[point.x for point in grid.lines] for grid in made] == [[30.0, 70.0]] * 2
    assert len({grid.digest for grid in made}) == 2
    assert grids(rows_of([record("wanda", sparsity=0.5, seed=0, options={"towers": "question:0.3"})])) == []


def test_the_blind_model_is_that_of_the_same_weights() -> None:
    blind = {"precision": "fp32", "blind": True}
    others = [record(evaluation=blind, weights_digest="0" * 64), record(evaluation={**blind, "precision": "bf16"})]
    found = rows_of([record(), *others])
    block = [pair for pair in found if "blind" not in pair[1][0].evaluation]
    assert blind_of(block, found) is None
    found = rows_of([record(), *others, record(evaluation=blind, accuracy=0.3)])
    row = blind_of(block, found)
    assert row is not None
    assert row.value == pytest.approx(record(accuracy=0.3).interval.value)
    assert (row.flags, block[0][0].flags) == ("without images", "")


def test_a_sweep_without_results_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path / "none")
    with pytest.raises(UserError, match="none of the sweep's 2 cells has a result: run vlbench sweep with the same"):
        plot([], Path, tmp_path / "runs", tmp_path / "out", ["a", "b"])
    assert not (tmp_path / "out").exists()
