"""One cell from words to record, on the mini suite as it ships (few samples, few steps)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlbench.machine.ui import Screen
from vlbench.records.record import Record, read_record, unpack_scores
from vlbench.run.runner import Runner, Uploaded

SHORT = {"upop_search.steps": "4", "interval": "2", "finetune.steps": "2"}
SMALL = {"upop_search.batch_size": "16", "finetune.batch_size": "16"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def run(runs: Path, **words: str) -> Record:
    evaluation = {"limit": "48", "evaluation.batch_size": "16"}
    return Runner(runs, Screen(quiet=True)).run({**evaluation, **words})


@pytest.mark.parametrize("task", ["vqav2", "imagenet"])
def test_a_pruned_row_beside_the_dense_one(runs: Path, task: str) -> None:
    dense = run(runs, task=task)
    assert dense.vs_dense is None
    assert dense.pattern == "dense"
    assert dense.metrics[dense.metric] > 60, "the mini weights are trained"
    pruned = run(runs, task=task, method="magnitude", sparsity="0.7")
    assert pruned.sparsity == pytest.approx(0.7, abs=1e-3)
    assert pruned.vs_dense is not None
    gap = pruned.interval.value - dense.interval.value
    assert pruned.vs_dense.delta == pytest.approx(gap)
    assert pruned.interval.value == pytest.approx(100 * unpack_scores(pruned.scores)[:, 0].mean())
    assert pruned.macs == pruned.macs_dense == dense.macs
    assert pruned.parameters.nonzero < pruned.parameters.total == dense.parameters.total
    assert pruned.flags == ["limit"]


def test_structured_pruning_saves_macs_and_n_of_m_keeps_its_pattern(runs: Path) -> None:
    cut = run(runs, task="imagenet", method="uniform", sparsity="0.5")
    assert cut.sparsity == pytest.approx(0.5, abs=0.01)
    assert cut.macs is not None
    assert cut.macs_dense is not None
    assert cut.macs < 0.6 * cut.macs_dense
    assert cut.parameters.total == cut.parameters.nonzero < cut.parameters.dense
    n_of_m = run(runs, task="imagenet", method="magnitude", sparsity="2:4")
    assert (n_of_m.pattern, n_of_m.sparsity) == ("2:4", pytest.approx(0.5, abs=1e-6))


def test_upop_runs_whole_and_again_from_disk(runs: Path) -> None:
    words = {"task": "vqav2", "method": "upop", "sparsity": "0.5", **SHORT, **SMALL}
    record = run(runs, **words)
    assert record.method == "upop"
    assert [link.name for link in record.chain] == ["upop_search", "finetune"]
    assert (record.pattern, record.trained, record.seed) == ("structured", True, 0)
    assert record.budget.steps == 6
    assert record.budget.samples_seen == 96
    assert record.sparsity == pytest.approx(0.5, abs=0.01)
    stored = runs / record.cell / "result.json"
    before = stored.stat().st_mtime_ns
    assert run(runs, **words) == record
    assert stored.stat().st_mtime_ns == before
    assert run(runs, **words, seed="1").cell != record.cell
    assert run(runs, task="vqav2", method="magnitude", seed="1").seed is None, "no seed where nothing is drawn"


def test_a_seed_says_what_a_method_draws_whatever_was_drawn_before(runs: Path, tmp_path: Path) -> None:
    words = {"task": "imagenet", "method": "random", "sparsity": "0.2", "limit": "32"}
    one, other = run(runs, **words), run(runs, **words, seed="1")
    torch.rand(7)
    again = run(tmp_path, **words)
    assert again.model_digest == one.model_digest != other.model_digest


def test_the_saved_model_reloads_and_predicts_the_same(runs: Path) -> None:
    """`vlbench.load(DIR)` gives the model of the row, bit for bit."""
    import vlbench
    from vlbench.compression.saved import load_model

    record = run(runs, task="imagenet", method="uniform", sparsity="0.5")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, two = vlbench.load(runs / record.cell / "model"), load_model(runs / record.cell / "model")[0]
    with torch.no_grad():
        assert torch.equal(one.encode(images), two.encode(images))
    assert sum(p.numel() for p in one.net.parameters()) == record.parameters.total


def test_a_split_without_labels_ends_with_the_servers_file(runs: Path) -> None:
    with pytest.raises(Uploaded) as told:
        run(runs, task="vqav2", split="test-dev")
    rows = json.loads(told.value.file.read_text())
    assert len(rows) == 48
    assert set(rows[0]) == {"question_id", "answer"}


def test_predictions_are_in_the_splits_order_with_scores(runs: Path) -> None:
    record = run(runs, task="imagenet")
    lines = [json.loads(t) for t in (runs / record.cell / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == record.samples == 48
    assert np.allclose([line["score"][0] for line in lines], unpack_scores(record.scores)[:, 0])
    assert read_record(runs / record.cell / "result.json") == record
