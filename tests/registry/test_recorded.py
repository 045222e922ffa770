"""Oracle: what the original code gave in float32, with its masks in place (not cut), and its ranks of retrieval."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.test_upop import blip_names
from tests.methods.test_upop_heads import names_of
from tests.oracles import Oracle
from tests.registry.test_blip import close, opened, recorded, samples_of
from tests.registry.test_blip_nlvr import batch_of
from vlbench.capability import Batch
from vlbench.compression.cut import cut
from vlbench.compression.gates import Gates
from vlbench.evaluation.ranks import ranks

recall = importlib.import_module("vlbench.tasks._recall")
FLOAT32 = 1e-5  # the manifest's tolerance


def answered(model: Any, oracle: Oracle, dtype: torch.dtype) -> dict[str, Tensor]:
    """Key of the recording -> what BLIP's question answering gives."""
    images = oracle["in/images"].to(dtype)
    owner, answers = oracle["in/image_index"], oracle.facts["answer_list"]
    encoded = model.encode(images)
    states, mask = model.question_states(encoded, oracle.facts["questions"], owner)
    ranked = model.rank(states, mask, model.candidate_ids(answers), len(answers))
    loss = model.answer_loss(Batch(samples_of(oracle), images, owner[:, None]))
    return {"rank_all/log_probs_sum": ranked, "rank_all/max_ids": ranked.argmax(1), "train/loss": loss}


def judged(model: Any, oracle: Oracle, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same of NLVR2."""
    batch = batch_of(oracle)
    images = model.encode(batch.images.to(dtype))
    logits = model.logits(images, oracle.facts["texts"], batch.owner)
    return {"logits": logits, "loss": model.judge_loss(replace(batch, images=batch.images.to(dtype)))}


HEADS: dict[str, Callable[[Any, Oracle, torch.dtype], dict[str, Tensor]]] = {"vqa": answered, "nlvr": judged}


def recording(shared: Path, name: str) -> Oracle:
    return Oracle(shared / "oracles" / "models" / f"{name}.npz")


def names(head: str) -> list[tuple[str, str]]:
    files = recorded(f"blip_{head}_eval") + recorded(f"blip_{head}_compressed")
    return [(head, file) for file in files]


@pytest.mark.parametrize(("head", "name"), names("vqa") + names("nlvr"))
def test_float32_equals_the_originals_float32(shared: Path, tmp_path: Path, head: str, name: str) -> None:
    oracle = recording(shared, name)
    model = opened(f"blip-{head}", oracle, "ckpt/" if "compressed" in name else "sd/", tmp_path)
    model.net.float()
    with torch.no_grad():
        found = HEADS[head](model, oracle, torch.float32)
    compared = [key for key in found if f"out32/{key}" in oracle.arrays.files]
    assert len(compared) == 2
    for key in compared:
        assert found[key].dtype == torch.float32
        assert close(found[key], oracle[f"out32/{key}"], FLOAT32), key


@pytest.mark.parametrize("kind", ["gated", "cut"])
@pytest.mark.parametrize(
    ("head", "name"), [(head, name) for head in HEADS for name in recorded(f"blip_{head}_compressed")]
)
def test_masked_equals_the_originals_search_model(
    shared: Path, tmp_path: Path, head: str, name: str, kind: str
) -> None:
    """Gates of 0 and 1 on the weights before compress(), and the same units cut away with the whole heads' scale."""
    oracle = recording(shared, name)
    model = opened(f"blip-{head}", oracle, "dense/", tmp_path)
    structure = model.structure()
    keys = blip_names(structure) if head == "vqa" else names_of(structure, "text_encoder.encoder.layer")
    masks = {site: oracle[f"mask/{key}"].flatten().double() for site, key in keys.items()}
    assert len(masks) == len(oracle.tensors("mask/"))
    if kind == "gated":
        Gates(model.net, structure).set(masks)
    else:
        cut(model.net, structure, {site: mask.nonzero().flatten() for site, mask in masks.items()})
    with torch.no_grad():
        found = HEADS[head](model, oracle, torch.float64)
    for key, value in found.items():
        wanted = oracle[f"out_masked/{key}"]
        assert close(value.reshape(wanted.shape), wanted), key


@pytest.mark.parametrize("name", recorded("blip_retrieval_eval"))
def test_ranks_of_the_recorded_scores(shared: Path, name: str) -> None:
    """Equal wherever the right one was re-ranked; beyond, all candidates tie at -100 and the original's are by luck."""
    oracle = recording(shared, name)
    owner = torch.arange(len(oracle["out/text_feat"])) // 2
    assert {str(i): (owner == i).nonzero().flatten().tolist() for i in owner.tolist()} == oracle.facts["img2txt"]
    forward, backward = oracle["out/score_matrix_i2t"], oracle["out/score_matrix_t2i"].t()
    right = torch.stack([row[owner == i].max() for i, row in enumerate(forward)]), backward[owner, range(len(owner))]
    told = oracle["out/rank_i2t"].numpy(), oracle["out/rank_t2i"].numpy()
    for ours, theirs, score in zip(ranks(forward, backward, owner), told, right, strict=True):
        chosen = (score > -100).numpy()
        assert chosen.any()
        assert (ours[chosen] == theirs[chosen]).all()
        assert (ours >= theirs).all()


@pytest.mark.parametrize("name", recorded("blip_retrieval_eval"))
def test_recalls_of_the_recorded_similarities(shared: Path, name: str) -> None:
    oracle = recording(shared, name)
    owner = torch.arange(len(oracle["out/text_feat"])) // 2
    of_image, of_text = ranks(oracle["out/sims"], oracle["out/sims"], owner)
    hits = [recall.hits(rank, of_text[owner == i].tolist()) for i, rank in enumerate(of_image.tolist())]
    found = recall.table(torch.tensor(hits, dtype=torch.float64).sum(0).numpy())
    wanted = oracle.facts["metrics_itc_only"]
    for ours, theirs in (("tr", "txt"), ("ir", "img")):
        for cut_at in recall.CUTS:
            assert found[f"{ours}_r{cut_at}"] == pytest.approx(wanted[f"{theirs}_r{cut_at}"], abs=1e-9)
    assert found["r_mean"] == pytest.approx(wanted["r_mean"], abs=1e-9)
