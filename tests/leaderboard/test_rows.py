"""Which records make a row, in which order, and that nothing but their content decides it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.leaderboard.factory import PER_IMAGE, board, record
from vlbench.errors import UserError
from vlbench.leaderboard.rows import COLUMNS, load_results, merge, rows, rows_of
from vlbench.leaderboard.tables import csv_text, markdown
from vlbench.records.record import Link, Record, pack_scores, unpack_scores, write_record

BOARD = [
    *board(),
    *(r.model_copy(update={"cell": f"{r.cell}-clip", "model": "clip-mini"}) for r in board()[:4]),
    *(r.model_copy(update={"cell": f"{r.cell}-nlvr2", "task": "nlvr2"}) for r in board()[:3]),
    record("upop", sparsity=0.5, seed=3, pattern="structured", trained=True, flags=["limit"]),
    record("wanda", sparsity=0.25, pattern="2:4", complete=False),
]


def save(folder, records, names=None):
    for i, r in enumerate(records):
        write_record(folder / r.suite / f"{names[i] if names else r.cell}.json", r)


def one(records: list[Record]):
    (row,) = rows(records)
    return row


@settings(max_examples=40, deadline=None)
@given(st.permutations(BOARD), st.integers(1, len(BOARD)))
def test_rows_do_not_depend_on_the_order_of_records(shuffled, size):
    chosen = shuffled[:size]
    in_order = [r for r in BOARD if r in chosen]
    assert rows(chosen) == rows(in_order)
    assert csv_text(rows(chosen)) == csv_text(rows(in_order))


def test_order_within_a_board():
    found = [(r.method, r.pattern, r.trained, r.sparsity, r.options) for r in rows(reversed(board()))]
    assert found == [
        ("dense", "dense", False, 0.0, ""),
        ("finetune", "dense", True, 0.0, ""),
        ("wanda", "2:4", False, 0.5, "calibration=128"),
        ("wanda", "2:4", False, 0.5, "calibration=64"),
        ("uniform", "structured", True, 0.5, ""),
        ("upop", "structured", True, 0.5, ""),
        ("magnitude", "unstructured", False, 0.5, ""),
        ("magnitude", "unstructured", False, 0.75, ""),
    ]


def test_sparsity_rises_by_number_not_by_text():
    records = [record("magnitude", sparsity=s, pattern="unstructured") for s in (0.9, 0.05, 0.5)]
    assert [r.sparsity for r in rows(records)] == pytest.approx([0.05, 0.5, 0.9])


def test_seeds_become_one_row():
    seeds = [record("upop", sparsity=0.5, accuracy=a, seed=s) for s, a in enumerate((0.7, 0.75, 0.72))]
    row = one(seeds)
    values = [r.interval.value for r in seeds]
    assert (row.seeds, row.value) == (3, pytest.approx(sum(values) / 3))
    assert row.spread is not None
    assert row.high - row.low > max(r.interval.high - r.interval.low for r in seeds)
    assert row.delta == pytest.approx(sum(r.vs_dense.delta for r in seeds) / 3)
    assert row.delta_low < row.delta < row.delta_high


def test_costs_of_a_row():
    row = one([record("uniform", sparsity=0.5, pattern="structured")])
    assert (row.sparsity, row.parameters, row.nonzero) == (0.5, 1_200_000, 1_200_000)
    assert row.model_reduction == pytest.approx(0.75 / 1.95)
    assert row.macs_reduction == pytest.approx(0.35, abs=1e-6)
    unmeasured = one([record("uniform", sparsity=0.5, macs=None, macs_dense=None)])
    assert (unmeasured.macs, unmeasured.macs_reduction) == (None, None)


def test_one_cluster_has_no_interval():
    row = one([record("wanda", sparsity=0.5, values=[1.0, 0.0, 1.0])])
    assert (row.clusters, row.low, row.high, row.delta_low, row.delta_high, row.p) == (
        1,
        None,
        None,
        None,
        None,
        1.0,
    )
    assert row.delta is not None


def test_a_seed_that_was_not_compared_leaves_the_row_without_a_difference():
    pair = [record("upop", sparsity=0.5, seed=0), record("upop", sparsity=0.5, seed=1, vs_dense=None)]
    assert (one(pair).delta, one(pair).p) == (None, None)


@pytest.mark.parametrize("change", [{"complete": False}, {"flags": ["limit"]}])
def test_unfinished_and_limited_cells_are_left_out(change):
    assert rows([record("wanda", sparsity=0.5, **change)]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"split_digest": "other"},
        {"task_version": 2},
        {"weights_digest": "other"},
        {"evaluation": {"precision": "bf16"}},
        {"label": "mine"},
    ],
)
def test_rows_that_must_not_be_compared_are_in_different_blocks(change):
    first, second = rows([record(), record(cell="other", **change)])
    assert first.block != second.block
    assert first.dense
    assert second.dense


def test_options_are_shown_where_they_tell_rows_apart():
    records = [
        record("wanda", sparsity=0.5, options={"calibration": n, "damping": 0.1}, cell=str(n)) for n in (64, 128)
    ]
    assert {r.options for r in rows(records)} == {"calibration=64", "calibration=128"}
    assert [r.options for r in rows(records[:1])] == [""]


def test_options_are_named_as_in_a_command():
    """Two links have `steps`, one has `allocation`, and versions are of every link."""

    def chain(search: int, allocation: str) -> list[Link]:
        return [
            Link(name="upop_search", version="1", options={"steps": search, "allocation": allocation}),
            Link(name="finetune", version="1", options={"steps": 300}),
        ]

    records = [
        record("upop", sparsity=0.5, chain=chain(n, how), cell=f"{n}{how}")
        for n, how in ((150, "global"), (150, "uniform"), (90, "global"))
    ]
    assert {r.options for r in rows(records)} == {
        "allocation=global upop_search.steps=150",
        "allocation=uniform upop_search.steps=150",
        "allocation=global upop_search.steps=90",
    }


def test_a_target_whose_zeros_were_filled_is_told_as_an_option():
    """LoRA at 0.7 and at 2:4 both end with a sparsity of 0; where zeros are left, their column tells it."""
    filled = [
        record("wanda+lora", trained=True, options={"sparsity": target}, cell=f"c{target}".replace(":", "of"))
        for target in (0.7, "2:4")
    ]
    assert {r.options for r in rows(filled)} == {"sparsity=0.7", "sparsity=2:4"}
    kept = [record("wanda", sparsity=s, pattern="unstructured", cell=f"k{s}") for s in (0.5, 0.7)]
    assert {r.options for r in rows(kept)} == {""}


def test_variants_of_a_method_stand_together():
    records = [
        record("upop", sparsity=s + shift, pattern="structured", options={"n": n}, cell=f"{s}{n}")
        for s in (0.75, 0.5) for n, shift in (("b", 1e-3), ("a", 0.0), ("c", -1e-3))
    ]  # fmt: skip
    assert [(r.options, round(r.sparsity, 2)) for r in rows(records)] == [
        ("n=a", 0.5), ("n=a", 0.75), ("n=b", 0.5), ("n=b", 0.75), ("n=c", 0.5), ("n=c", 0.75),
    ]  # fmt: skip


def test_other_metrics_are_means_over_the_seeds_that_all_have_them():
    same = [
        record("upop", sparsity=0.5, seed=seed, accuracy=0.7).model_copy(update={"metrics": metrics})
        for seed, metrics in (
            (0, {"accuracy": 70.0, "yes/no": 80.0, "other": 10.0, "spice": 1.0}),
            (1, {"accuracy": 70.0, "yes/no": 81.0, "other": 20.0}),
        )
    ]
    assert one(same).metrics == "yes/no=80.5000 other=15.0000"
    assert one([record()]).metrics == ""


def test_columns_are_fixed():
    assert COLUMNS[:5] == ("suite", "task", "split", "task_version", "model")
    assert len(COLUMNS) == 40


def test_a_row_has_converged_where_every_seed_has():
    """And n_tuned is that of the seed where most settings were tried."""
    told = {"sparsity": 0.5, "pattern": "structured", "trained": True}
    good, bad = (record("upop", accuracy=a, seed=s, **told) for s, a in enumerate((0.7, 0.27)))
    assert [rows([one])[0].converged for one in (good, bad)] == [True, False]  # chance of vqav2 is 26 %
    assert rows([good, bad])[0].converged is False
    assert [row.converged for row in rows([record(), record("wanda", sparsity=0.5)])] == [None, None]
    assert [row.n_tuned for row in rows([good, record("upop", seed=1, n_tuned=3, **told)])] == [3]


def test_files_are_read_in_any_folder_and_order(tmp_path):
    save(tmp_path / "a", BOARD, names=[f"{i:02d}" for i in range(len(BOARD))])
    save(tmp_path / "b", BOARD[::-1], names=[f"{i:02d}" for i in range(len(BOARD))])
    assert load_results(tmp_path / "a") == load_results(tmp_path / "b")


def test_a_damaged_file_is_named(tmp_path):
    save(tmp_path, board())
    (tmp_path / "mini" / "zz.json").write_text('{"schema_version": 1, "cell"')
    with pytest.raises(UserError, match=r"zz\.json is damaged"):
        load_results(tmp_path)


def test_two_results_of_one_cell_must_agree(tmp_path):
    mine = record("wanda", sparsity=0.5)
    elsewhere = mine.model_copy(update={"provenance": {"torch": "2.9.0"}, "phases": {"encode": 9.0}})
    save(tmp_path, [mine, elsewhere], names=["first", "second"])
    assert len(load_results(tmp_path)) == 1
    other = record("wanda", sparsity=0.5, accuracy=0.3).model_copy(update={"cell": mine.cell})
    save(tmp_path, [other], names=["third"])
    with pytest.raises(UserError, match=r"first\.json and .*third\.json"):
        load_results(tmp_path)


def test_two_machines_may_differ_in_the_last_digit(tmp_path):
    mine = record("wanda", sparsity=0.5)
    nearly = mine.model_copy(update={"vs_dense": mine.vs_dense.model_copy(update={"p": mine.vs_dense.p * (1 + 1e-11)})})
    for folder, names in (("a", ["first", "second"]), ("b", ["second", "first"])):
        save(tmp_path / folder, [mine, nearly], names=names)
    kept = load_results(tmp_path / "a")
    assert len(kept) == 1
    assert load_results(tmp_path / "b") == kept
    other = mine.vs_dense.model_copy(update={"delta": mine.vs_dense.delta + 1e-6})
    save(tmp_path / "a", [mine.model_copy(update={"vs_dense": other})], names=["third"])
    with pytest.raises(UserError, match=r"third\.json are different results"):
        load_results(tmp_path / "a")


@settings(max_examples=25, deadline=None)
@given(st.permutations(BOARD), st.permutations(BOARD), st.integers(0, len(BOARD)))
def test_merging_does_not_depend_on_the_order(committed, local, size):
    """Nor on which of equal results is the local one: only the marks do."""
    some = [r for r in BOARD if r in local[:size]]
    one, marked = merge(committed, [r for r in local if r in some])
    two, same = merge(BOARD, some)
    assert marked == same
    assert rows(one) == rows(two) == rows(BOARD)
    assert marked == {row.config for row, records in rows_of(BOARD) if any(r in some for r in records)}


def test_rows_of_gives_each_row_its_records():
    found = rows_of(reversed(board()))
    assert [row for row, _ in found] == rows(board())
    assert [r.seed for r in next(rs for row, rs in found if row.method == "upop")] == [0, 1, 2]
    assert sum(len(rs) for _, rs in found) == len(board())


def test_scores_may_stay_on_the_disk(tmp_path):
    save(tmp_path, board())
    light = load_results(tmp_path, scores=False)
    assert rows(light) == rows(load_results(tmp_path))
    assert all(len(r.scores) == 64 for r in light)
    turned = np.roll(unpack_scores(board()[0].scores)[:, 0], PER_IMAGE)  # of the same mean and clusters
    changed = board()[0].model_copy(update={"scores": pack_scores(turned.tolist())})
    save(tmp_path, [changed], names=["other"])
    with pytest.raises(UserError, match="different results"):
        load_results(tmp_path, scores=False)


def test_two_cells_for_one_configuration_and_seed_must_agree():
    """A cell measured again under a newer numerics_version would otherwise count as a second seed."""
    old = record("wanda", sparsity=0.5, cell="old")
    new = record("wanda", sparsity=0.5, accuracy=0.7, cell="new", identity={"numerics_version": 2})
    with pytest.raises(UserError, match=r"cells new and old .*numerics_version"):
        rows([old, new])


def test_local_results_replace_committed_ones():
    committed, local = board(), [record("magnitude", sparsity=0.5, accuracy=0.6, pattern="unstructured")]
    limited = record("upop", sparsity=0.5, seed=0, pattern="structured", trained=True, flags=["limit"])
    merged, own = merge(committed, [*local, limited])
    marked = [r for r in rows(merged) if r.config in own]
    assert [(r.method, r.value) for r in marked] == [("magnitude", local[0].interval.value)]
    assert len(rows(merged)) == len(rows(committed))


def test_the_later_local_result_stays():
    first = record("wanda", sparsity=0.5, cell="first", accuracy=0.7)
    second = record("wanda", sparsity=0.5, cell="second", accuracy=0.6)
    assert merge([], [first, second])[0] == [second]


def test_the_page_follows_the_rows_too():
    assert markdown(rows(board())) == markdown(rows(board()[::-1]))
