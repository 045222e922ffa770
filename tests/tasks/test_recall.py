"""Ranks and recalls. Oracles: exact ranks, BLIP's itm_eval and CLIP_benchmark (manifest, section 4)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlbench.evaluation.ranks import original_ranks, ranks
from vlbench.plugins.table import table

recall = importlib.import_module("vlbench.tasks._recall")

CASES = ("continuous", "quantised_ties", "constant_rows_cols", "blip_rerank_k16", "blip_rerank_k8")
THEIRS = {f"{direction}_r{k}": f"{old}_r{k}" for direction, old in (("tr", "txt"), ("ir", "img")) for k in (1, 5, 10)}
THEIRS |= {"r_mean": "r_mean", "tr_mean": "txt_r_mean", "ir_mean": "img_r_mean"}


def case_of(shared: Path, case: str) -> tuple[Any, Any, dict[str, Any]]:
    """Scores in both directions, each (images, texts), and what is recorded of them."""
    folder = shared / "oracles/metrics/retrieval"
    with np.load(folder / "scores_a.npz") as scores:
        forward = scores[f"{case}__i2t"]
        backward = scores[f"{case}__t2i"].T if f"{case}__t2i" in scores.files else forward
    return forward, backward, json.loads((folder / "results_a.json").read_text())[case]


def owners(images: int = 100, texts: int = 5) -> Any:
    return np.repeat(np.arange(images), texts)


def metrics(text_rank: Any, image_ranks: Any) -> dict[str, float]:
    """Through the sums, as the task has it: text t is image t // 5's."""
    rows = [recall.hits(int(a), b.tolist()) for a, b in zip(text_rank, image_ranks.reshape(-1, 5), strict=True)]
    return dict(recall.table(np.sum(rows, axis=0)))


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("case", CASES)
def test_recorded_ranks(shared: Path, case: str, kind: str) -> None:
    forward, backward, oracle = case_of(shared, case)
    owner = owners()
    if kind == "tensor":
        forward, backward, owner = torch.tensor(forward), torch.tensor(backward), torch.tensor(owner)
    text_rank, image_ranks = ranks(forward, backward, owner)
    assert text_rank.dtype == image_ranks.dtype == np.int64
    assert text_rank.tolist() == oracle["pess_rank_txt_per_image"]
    assert image_ranks.tolist() == oracle["pess_rank_img_per_text"]
    if not oracle["has_ties"]:
        assert text_rank.tolist() == oracle["opt_rank_txt_per_image"]
        assert image_ranks.tolist() == oracle["opt_rank_img_per_text"]


def test_optimistic_ranks_are_those_of_a_little_bonus(shared: Path) -> None:
    """The recorded optimistic ranks, by lifting the right pairs above their ties: what a tie is worth."""
    forward, backward, oracle = case_of(shared, "quantised_ties")
    right = np.zeros(forward.shape, bool)
    right[owners(), np.arange(500)] = True
    lifted = [np.where(right, scores + 0.25, scores) for scores in (forward, backward)]
    text_rank, image_ranks = ranks(lifted[0], lifted[1], owners())
    assert text_rank.tolist() == oracle["opt_rank_txt_per_image"]
    assert image_ranks.tolist() == oracle["opt_rank_img_per_text"]


@pytest.mark.parametrize("case", CASES)
def test_recorded_recalls(shared: Path, case: str) -> None:
    forward, backward, oracle = case_of(shared, case)
    found = metrics(*ranks(forward, backward, owners()))
    assert found == pytest.approx({m: oracle["exact_pessimistic"][old] for m, old in THEIRS.items()}, abs=1e-9)
    blips = [oracle["blip_itm_eval_numpy_argsort"], oracle["blip_itm_eval_stable_sort"]]
    if oracle["has_ties"] and case != "blip_rerank_k16":  # whose ties are all behind the tenth place
        best = oracle["exact_optimistic"]
        for metric, old in THEIRS.items():
            assert all(found[metric] - 1e-9 <= theirs[old] <= best[old] + 1e-9 for theirs in blips)
        assert found["r_mean"] < min(theirs["r_mean"] for theirs in blips)
        return
    for theirs in blips:
        assert found == pytest.approx({m: theirs[old] for m, old in THEIRS.items()}, abs=1e-9)
    clip = oracle["clip_benchmark"]
    for k in (1, 5, 10):
        assert found[f"tr_r{k}"] == pytest.approx(100 * clip[f"text_retrieval_recall@{k}"], abs=1e-4)
        assert found[f"ir_r{k}"] == pytest.approx(100 * clip[f"image_retrieval_recall@{k}"], abs=1e-4)


@pytest.mark.parametrize("processor", ["avx512", "avx2", "no_avx2"])
@pytest.mark.parametrize("case", CASES)
def test_no_processors_order_of_ties_is_below_ours(shared: Path, case: str, processor: str) -> None:
    """Oracle: BLIP's itm_eval on three kinds of processor, whose argsort orders ties differently: ours is the floor."""
    forward, backward, _ = case_of(shared, case)
    found = metrics(*ranks(forward, backward, owners()))
    variants = json.loads((shared / "oracles/metrics/retrieval/argsort_cpu_variants_a.json").read_text())
    told = variants[processor][case]
    assert all(found[metric] <= told[theirs] + 1e-9 for metric, theirs in THEIRS.items())
    if case == "continuous":
        assert found == pytest.approx({m: told[theirs] for m, theirs in THEIRS.items()}, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_originals_order_of_ties_is_one_of_those_recorded(shared: Path, case: str) -> None:
    """Oracle: BLIP's itm_eval itself, on three kinds of processor and with a stable sort."""
    forward, backward, oracle = case_of(shared, case)
    variants = json.loads((shared / "oracles/metrics/retrieval/argsort_cpu_variants_a.json").read_text())
    recorded = [*(variants[kind][case] for kind in ("avx512", "avx2", "no_avx2")), oracle["blip_itm_eval_stable_sort"]]
    ours = metrics(*original_ranks(forward, backward, owners()))
    assert any(ours == pytest.approx({m: told[old] for m, old in THEIRS.items()}, abs=1e-9) for told in recorded)
    floor = metrics(*ranks(forward, backward, owners()))
    assert all(floor[metric] <= ours[metric] + 1e-9 for metric in ours)


def test_ties_enter_the_identity_where_they_are_not_the_default(tmp_path: Path) -> None:
    cls = table("tasks").get("coco_retrieval").load()
    plain, original = (cls(tmp_path, cls.Options(k_test=4, **more)) for more in ({}, {"ties": "original"}))
    assert plain.settings("test") == {"k_test": 4}
    assert original.settings("test") == {"k_test": 4, "ties": "original"}
    assert "ties" not in plain.options.recorded()
    assert original.options.recorded()["ties"] == "original"


def plain_ranks(forward: Any, backward: Any, owner: list[int]) -> tuple[list[int], list[int]]:
    """The definition, in Python: wrong candidates that are not below the best right one."""
    images, texts = forward.shape
    mine = [[t for t in range(texts) if owner[t] == i] for i in range(images)]
    of_images = []
    for i in range(images):
        best = max((forward[i, t] for t in mine[i]), default=-np.inf)
        of_images.append(sum(not forward[i, t] < best for t in range(texts) if owner[t] != i))
    of_texts = [
        sum(not backward[i, t] < backward[owner[t], t] for i in range(images) if i != owner[t]) for t in range(texts)
    ]
    return of_images, of_texts


@pytest.mark.parametrize("images", [1, 3, 300, 520])  # on both sides of a block of rows
def test_uneven_owners_in_any_order(images: int) -> None:
    draws = np.random.default_rng(images)
    owner = draws.integers(0, images, size=40).tolist()  # some images own no text
    forward, backward = draws.integers(-3, 3, size=(2, images, 40)).astype(np.float32)
    backward[0, :5] = -np.inf
    of_images, of_texts = ranks(forward, backward, owner)
    assert (of_images.tolist(), of_texts.tolist()) == plain_ranks(forward, backward, owner)
    lonely = sorted(set(range(images)) - set(owner))
    assert of_images[lonely].tolist() == [40] * len(lonely)


def test_a_score_that_is_no_number_never_helps() -> None:
    scores = np.array([[0.5, np.nan, 0.1, 0.2], [0.9, 0.4, np.nan, 0.8]], np.float32)
    of_images, of_texts = ranks(scores, scores, [0, 0, 1, 1])
    assert of_images.tolist() == [0, 1]  # by the other text of theirs
    assert of_texts.tolist() == [1, 1, 1, 0]
    alone = np.array([[np.nan, 0.1], [0.9, np.nan]], np.float32)
    assert [r.tolist() for r in ranks(alone, alone, [0, 1])] == [[1, 1], [1, 1]]
    wrong = np.array([[0.5, np.nan]], np.float32).repeat(2, axis=0)
    assert [r.tolist() for r in ranks(wrong, wrong, [0, 1])] == [[1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    scores = torch.tensor([[0.5, 0.25, 2.0], [1.0, 0.25, 0.5]], dtype=dtype)
    of_images, of_texts = ranks(scores, scores, [0, 0, 1])
    assert of_images.tolist() == [1, 1]
    assert of_texts.tolist() == [1, 1, 1]


def test_shapes_are_checked() -> None:
    scores = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"\(3, 4\), \(4, 3\), \(4,\)"):
        ranks(scores, scores.T, [0, 1, 2, 2])
    with pytest.raises(ValueError, match="an owner for each text"):
        ranks(scores, scores, [0, 1, 2])
    for wrong in ([0, 1, 2, 3], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="owners must be images 0 to 2"):
            ranks(scores, scores, wrong)


def test_hits_at_the_cuts() -> None:
    assert recall.hits(0, [0, 4, 5, 9, 10]) == [1, 1, 1, 1, 1, 2, 4, 5]
    assert recall.hits(1, [1]) == [0, 1, 1, 1, 0, 1, 1, 1]
    assert recall.hits(5, [3]) == [0, 0, 1, 1, 0, 1, 1, 1]
    assert recall.hits(10, [30, 2]) == [0, 0, 0, 1, 0, 1, 1, 2]


def test_recalls_weigh_texts_by_number_and_rows_by_themselves() -> None:
    rows = np.array([recall.hits(0, [0, 0, 0, 9]), recall.hits(7, [20])])
    found = recall.table(rows.sum(axis=0))
    assert found == pytest.approx(
        {
            "tr_r1": 50, "tr_r5": 50, "tr_r10": 100, "ir_r1": 60, "ir_r5": 60, "ir_r10": 80,
            "tr_mean": 200 / 3, "ir_mean": 200 / 3, "r_mean": 200 / 3,
        }
    )  # fmt: skip
    assert list(found) == list(recall.METRICS)
    assert recall.r_mean(rows.astype(float)).tolist() == pytest.approx([(300 + 75 + 75 + 100) / 6, 100 / 6])
