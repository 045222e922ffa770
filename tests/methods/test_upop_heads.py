"""UPop's search on the other heads against trajectories of the original code: NLVR2, captions, Segmenter, CLIP."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.upop_code import code_options, code_search
from tests.oracles import Oracle, assert_final_weights, blip_config
from tests.registry.test_blip import recorded, vocabulary
from tests.registry.test_clip import assert_as_recorded, assert_same_outputs, opened, site_of
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.gates import Gates
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.images.spec import ImageSpec
from vlbench.model import Card
from vlbench.nn.attend import Shared
from vlbench.plugins.table import table
from vlbench.structure import Structure
from vlbench.task import Sample
from vlbench.tensors.reading import load_into

keys = importlib.import_module("vlbench.registry._blip_keys")
Names = Mapping[str, str]


def blip(head: str, oracle: Oracle, folder: Path, **dims: int) -> Any:
    """Our head with the recorded start, in float64."""
    cls = table("models").get(head).load()
    weights = oracle.tensors("init/")
    size = next(len(v) for k, v in weights.items() if k.endswith("embeddings.word_embeddings.weight"))
    (folder / "vocab.txt").write_text("\n".join(vocabulary()[: size - 2]) + "\n")  # without [DEC] and [ENC]
    positions = next(v for k, v in weights.items() if k.endswith("embeddings.position_embeddings.weight"))
    mlp = weights["visual_encoder.blocks.0.mlp.fc1.bias"].numel() // dims["vw"]
    shape = {"vmlp": mlp, "vd": 12, "img": 16, "patch": 8, "layers": 12, "positions": len(positions), **dims}
    card = Card(head, "", cls.cards[0].capabilities, "", ImageSpec(size=16))
    config = blip_config(shape)
    config["text_config"].update(vocab_size=size, bos_token_id=size - 2)
    model = cls.build(card, config, folder)
    load_into(model.net.double(), keys.converted(weights))
    return model


def names_of(structure: Structure, text: str) -> Names:
    """Site -> the original's mask key."""
    parts = {"attention": "attn", "self": "attention.self", "cross": "crossattention.self"}
    parts |= {"cross0": "crossattention.self0", "cross1": "crossattention.self1"}
    names = {}
    for site in structure.sites:
        tower, layer, part = site.name.split(".")
        ffn = "mlp" if tower == "vision" else "intermediate"
        stem = "visual_encoder.blocks" if tower == "vision" else text
        names[site.name] = f"{stem}.{layer}.{ffn if part == 'ffn' else parts[part]}.alpha"
    return names


def arrays(oracle: Oracle, step: int, names: Names, what: str) -> dict[str, Tensor]:
    return {site: oracle[f"{what}/{step:04d}/{key}"].flatten().double() for site, key in names.items()}


def follow(
    oracle: Oracle, model: Any, names: Names, options: Any, optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor], w_sp: Mapping[str, float],
) -> None:  # fmt: skip
    """Search as the original did, comparing gradients and gates wherever they were recorded."""
    structure = model.structure()
    search = code_search(Gates(model.net, structure), structure, options)
    model.net.training = True
    seen = {k.split("/")[1] for k in oracle.arrays.files if k.startswith("grad/")}
    updates = 0
    for step in range(options.steps):
        loss = loss_of(step)
        if "loss" in oracle.arrays.files:
            assert float(loss.detach()) == pytest.approx(float(oracle["loss"][step].sum()), abs=1e-10)
        loss.backward()
        search.after_backward(step)
        if f"{step:04d}" in seen:
            told = arrays(oracle, step, names, "grad")
            for site in structure.sites:  # without the original's L1 term, the same for all units of a kind
                wanted = told[site.name] - w_sp[site.kind] * (step + 1)
                assert torch.allclose(search.total[site.name], wanted, rtol=0, atol=1e-10)
        optimiser.step()
        optimiser.zero_grad()
        search.after_step(step)
        if f"alpha/{step:04d}/{next(iter(names.values()))}" in oracle.arrays.files:
            updates += 1
            told = arrays(oracle, step, names, "alpha")
            for name, gate in search.gates.value.items():
                assert torch.equal(gate.detach(), told[name])
    assert updates == len(oracle.facts["updates"]) == len(search.updates)


def test_nlvr2_end_to_end(shared: Path, tmp_path: Path) -> None:
    """120 steps, 12 layers of every kind; the optimiser decays everything, as the scripts do."""
    oracle = Oracle(shared / "oracles" / "upop" / "nlvr_p50_f64.npz")
    model = blip("blip-nlvr", oracle, tmp_path, vw=32, vh=2, th=32, heads=2, inter=64)
    names = names_of(model.structure(), "text_encoder.encoder.layer")

    def loss_of(step: int) -> Tensor:
        at = oracle.tensors(f"batch/{step % 60}/")
        count = len(at["y"])
        states = model.encode(torch.cat([at["im0"], at["im1"]]))
        sides = tuple(Shared(states, torch.arange(count) + i * count) for i in (0, 1))
        ids, mask = at["ids"].clone(), (at["ids"] != 0).long()
        ids[:, 0] = model.enc
        out = model.net.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=sides, use_cache=False)
        return F.cross_entropy(model.net.cls_head(out.last_hidden_state[:, 0]), at["y"])

    options = code_options("nlvr2", sparsity=0.5, steps=120)
    optimiser = torch.optim.AdamW(model.net.parameters(), lr=1e-3, weight_decay=0.05)
    w_sp = {"attention": oracle.facts["w_sp_attn"], "ffn": oracle.facts["w_sp_mlp"]}
    follow(oracle, model, names, options, optimiser, loss_of, w_sp)


@pytest.mark.parametrize("name", recorded("search_caption"))
def test_captions_end_to_end(shared: Path, tmp_path: Path, name: str) -> None:
    oracle = Oracle(shared / "oracles" / "models" / f"{name}.npz")
    d = oracle.facts["dims"]
    model = blip(
        "blip-caption", oracle, tmp_path, vw=d["h"], vh=d["heads"], th=d["h"], heads=d["heads"], inter=d["inter"]
    )
    names = names_of(model.structure(), "text_decoder.bert.encoder.layer")
    prompt = oracle.facts["prompt"]

    def loss_of(step: int) -> Tensor:
        index = step % oracle.facts["nb"]
        texts = [t.removeprefix(prompt) for t in oracle.facts["texts"][index]]
        samples = [Sample(str(i), (), target=t) for i, t in enumerate(texts)]
        ids, _ = model.targets(texts, prompt)
        assert torch.equal(ids, oracle[f"batch/{index}/caption_ids"].long())
        images = oracle[f"batch/{index}/im"].double()
        return model.caption_loss(Batch(samples, images, torch.arange(len(texts))[:, None], {"prompt": prompt}))

    facts = oracle.facts
    options = code_options("coco_caption", sparsity=facts["p"], steps=facts["steps"])
    assert options.interval == facts["interval"]
    optimiser = torch.optim.AdamW(model.net.parameters(), lr=1e-3, weight_decay=0.05)
    follow(oracle, model, names, options, optimiser, loss_of, {"attention": facts["w_attn"], "ffn": facts["w_mlp"]})
    assert_final_weights(oracle, model.net)
    model.net.eval()
    with torch.no_grad():
        assert float(loss_of(0)) == pytest.approx(float(oracle["out/final_eval_loss_batch0"]), abs=1e-9)


def test_segmenter_end_to_end(shared: Path) -> None:
    """SGD with momentum; 24 steps, no update at step 0."""
    oracle = Oracle(shared / "oracles" / "upop" / "segmenter_p30_f64.npz")
    family = importlib.import_module("vlbench.registry.segmenter")
    weights = {k: v for k, v in oracle.tensors("init/").items() if not k.endswith("alpha")}
    config = {
        "classes": oracle["init/decoder.cls_emb"].shape[1],
        "encoder": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "decoder": {"depth": 2, "heads": 2},
    }
    model = family.MaskSegmenter.build(family.MaskSegmenter.cards[0], config, Path())
    dropped = importlib.import_module("vlbench.registry._segmenter_keys").DROPPED
    model.net.double()
    model.load({k: v for k, v in weights.items() if not dropped.search(k)})  # its FFN is narrower than timm's
    structure = model.structure()
    parts = {"attention": "attn", "ffn": "mlp"}
    paths = {site.name: block.path for tower in structure.towers for block in tower.blocks for site in block.sites}
    names = {s.name: f"{paths[s.name]}.{parts[s.kind]}.alpha" for s in structure.sites}

    def loss_of(step: int) -> Tensor:
        at = oracle.tensors(f"batch/{step % 6}/")
        samples = [Sample(str(i), ()) for i in range(len(at["im"]))]
        return model.segment_loss(Batch(samples, at["im"], torch.arange(len(at["im"]))[:, None], maps=at["seg"]))

    options = code_options("ade20k", sparsity=0.3, steps=24, interval=5)
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": 1e-4}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.net.named_parameters():  # timm's rule: no decay of vectors and of learned tokens
        free = parameter.ndim == 1 or name.endswith(("pos_embed", "cls_token", "cls_emb"))
        groups[free]["params"].append(parameter)
    optimiser = torch.optim.SGD(groups, lr=4e-3, momentum=0.9, nesterov=True)
    follow(oracle, model, names, options, optimiser, loss_of, w_sp={"attention": 4.8e-3, "ffn": 2e-4})
    for key, value in oracle.tensors("final/").items():
        if not key.endswith("alpha") and not dropped.search(key):
            assert torch.allclose(model.net.state_dict()[key], value, rtol=0, atol=1e-9), key


def recorded_gradients(file: Path) -> tuple[Oracle, dict[str, Tensor]]:
    """The recording, and the masks of its search at 1, by the original's names."""
    oracle = Oracle(file)
    names = [k.removeprefix("grad/0000/") for k in oracle.arrays.files if k.startswith("grad/0000/")]
    return oracle, {key: torch.ones(oracle[f"grad/0000/{key}"].numel()) for key in names}


def follow_gradients(oracle: Oracle, masks: dict[str, Tensor], options: Any) -> None:
    """The recorded sums of gradients must give the recorded masks, bit for bit."""

    class Gate:
        value = masks

        def set(self, gates: Mapping[str, Tensor]) -> None:
            self.value = dict(gates)

    class Site:
        def __init__(self, name: str) -> None:
            self.name, self.kind = name, "attention" if name.endswith(("attn.alpha", "self.alpha")) else "ffn"

    class Sites:
        sites = tuple(Site(key) for key in masks)

    gates: Any = Gate()
    structure: Any = Sites()
    search = code_search(gates, structure, options)
    for step, ratio in oracle.facts["updates"]:
        search.total = {key: oracle[f"grad/{step:04d}/{key}"].flatten().double() for key in masks}
        search.after_step(step)
        assert search.updates[-1][1] == pytest.approx(ratio, abs=1e-15)
        for key, gate in gates.value.items():
            assert torch.equal(gate.float(), oracle[f"alpha/{step:04d}/{key}"].flatten().float()), (step, key)


def test_clip_gates_follow_from_the_recorded_gradients(shared: Path) -> None:
    """In float32 two implementations' gradients differ; the same gradients must give the same gates."""
    oracle, masks = recorded_gradients(shared / "oracles" / "upop" / "clip_p50_f32.npz")
    steps = oracle.facts["updates"][-1][0] + 1
    follow_gradients(oracle, masks, code_options("coco_retrieval", sparsity=0.5, steps=steps, interval=10))


@pytest.mark.parametrize("name", recorded("search_retrieval"))
def test_retrieval_gates_follow_from_the_recorded_gradients(shared: Path, name: str) -> None:
    """Vision, text and cross-attention ranked together; the loss and its momentum twin are of loss=momentum."""
    oracle, masks = recorded_gradients(shared / "oracles" / "models" / f"{name}.npz")
    options = code_options("coco_retrieval", sparsity=oracle.facts["p"], steps=oracle.facts["steps"])
    assert options.interval == oracle.facts["interval"]
    follow_gradients(oracle, masks, options)


def test_cut_clip_divides_by_the_root_of_its_kept_heads(shared: Path, tmp_path: Path) -> None:
    """The recorded dense weights and masks, cut with softmax_scale=kept, give the original's compressed model."""
    oracle = Oracle(shared / "oracles" / "models" / "clip_compressed_a.npz")
    model = opened(tmp_path, oracle.tensors("dense/"))
    keep = {site_of(k): v.flatten().nonzero().flatten() for k, v in oracle.tensors("mask/").items()}
    state = Compression(cuts=[Cut.of(model.structure(), keep, kept_scale=True)], pattern="structured")
    cut(model.net, model.structure(), keep, kept_scale=True)
    assert_as_recorded(model, oracle, "out")
    save_model(tmp_path / "saved", model, state)
    assert_same_outputs(load_model(tmp_path / "saved")[0], model, oracle)
