"""UPop's search against trajectories of the original code (DeiT and BLIP VQA, float64)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.upop_code import code_options, code_search
from tests.oracles import Oracle, assert_final_weights, open_blip_vqa
from tests.registry.test_blip import recorded
from vlbench.capability import Batch
from vlbench.compression.cut import cut
from vlbench.compression.gates import Gates
from vlbench.nn import timm as adopted
from vlbench.structure import Structure
from vlbench.task import Sample
from vlbench.training.loop import Hook, Loop

upop = importlib.import_module("vlbench.methods.upop")


def tiny_deit(weights: Mapping[str, Tensor]) -> torch.nn.Module:
    net = timm.create_model(
        "deit_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    adopted.adopt(net).double().load_state_dict({k: v for k, v in weights.items() if not k.endswith("alpha")})
    return net


def masks_of(oracle: Oracle, step: int, names: Mapping[str, str], what: str = "alpha") -> dict[str, Tensor]:
    """Site -> recorded array (units,) after `step`."""
    found = oracle.tensors(f"{what}/{step:04d}/")
    return {site: found[key].flatten() for site, key in names.items()}


def deit_names(structure: Structure) -> dict[str, str]:
    parts = {"attention": "attn", "ffn": "mlp"}
    return {s.name: f"blocks.{s.name.split('.')[1]}.{parts[s.kind]}.alpha" for s in structure.sites}


@pytest.fixture
def deit(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "upop" / "deit_p50_f64.npz")


def search_deit(oracle: Oracle) -> tuple[torch.nn.Module, Structure, Any, dict[int, tuple[dict[str, Tensor], ...]]]:
    """Our search over the recorded batches, trained by the project's own loop with recipe=upop-code; gates and summed
    gradients at every update."""
    net = tiny_deit(oracle.tensors("init/"))
    structure = Structure((adopted.vision_tower(net),))
    options = code_options("imagenet", sparsity=0.5, steps=20, interval=4, lr=1e-3)
    search = code_search(Gates(net, structure), structure, options)
    seen: dict[int, tuple[dict[str, Tensor], ...]] = {}

    class Record(Hook):
        def after_step(self, step: int) -> None:
            if search.updates and search.updates[-1][0] == step:
                gates = {n: g.detach().clone() for n, g in search.gates.value.items()}
                seen[step] = (gates, {n: t.clone() for n, t in search.total.items()})

    class Recorded:
        """Batches, as the loop asks for them."""

        def at(self, step: int) -> Batch:
            batch = oracle.tensors(f"batch/{step % 5}/")
            return Batch([Sample(str(i), ()) for i in range(len(batch["x"]))], batch["x"], batch["y"][:, None])

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(net(batch.images), batch.owner[:, 0])  # the targets travel as owners

    net.eval()
    Loop(net, loss, cast(Any, Recorded()), options, seed=0, hooks=[search, Record()]).run()
    return net, structure, search, seen


def test_deit_trajectory_equals_the_original(deit: Oracle) -> None:
    net, structure, search, seen = search_deit(deit)
    names = deit_names(structure)
    assert search.updates == [(int(s), pytest.approx(p, abs=1e-15)) for s, p in deit.facts["updates"]]
    weights = {"attention": deit.facts["w_sp_attn"], "ffn": deit.facts["w_sp_mlp"]}
    for step, (gates, totals) in seen.items():
        for site in structure.sites:
            assert torch.equal(gates[site.name], masks_of(deit, step, names)[site.name])
            # The original's L1 term adds the same constant to every gradient of a kind, which the z-score removes.
            recorded = masks_of(deit, step, names, "grad")[site.name] - weights[site.kind] * (step + 1)
            assert torch.allclose(totals[site.name], recorded, rtol=0, atol=1e-10)
    for key, value in deit.tensors("final/").items():
        if not key.endswith("alpha"):
            assert torch.allclose(net.get_parameter(key), value, rtol=0, atol=1e-9)


def test_cut_deit_keeps_the_function_of_the_search_model(deit: Oracle) -> None:
    net, structure, search, _ = search_deit(deit)
    images = deit.tensors("batch/0/")["x"]
    net.eval()
    with torch.no_grad():
        gated = net(images)
        assert torch.allclose(gated, deit["out/search"], rtol=0, atol=1e-9)
        search.gates.remove()
        cut(net, structure, search.kept)
        assert (net(images) - gated).abs().max() < 1e-12
    assert {s.name: s.units for s in Structure((adopted.vision_tower(net),)).sites} == {
        site: deit.facts["kept"][key][0] for site, key in deit_names(structure).items()
    }


def test_exact_budget_meets_the_target_and_code_budget_stays_below() -> None:
    rng = torch.Generator().manual_seed(0)
    score = {f"{k}{i}": torch.randn(n, generator=rng) for k, n in (("a", 16), ("f", 128)) for i in range(3)}
    cost = {n: 12.0 if n[0] == "a" else 1.0 for n in score}
    total = sum(cost[n] * len(v) for n, v in score.items())

    def removed(kept: Mapping[str, Tensor]) -> float:
        return sum(cost[n] * (len(score[n]) - len(k)) for n, k in kept.items()) / total

    exact = upop.unified({n: -v for n, v in score.items()}, cost, 0.5)
    assert abs(removed(exact) - 0.5) <= 6 / total
    assert removed(upop.code_budget(score, cost, 0.5)) <= removed(exact) + 12 / total
    assert all(len(k) >= 1 for k in upop.code_budget(score, cost, 0.99).values())


def test_standardise_is_per_kind_with_unbiased_deviation() -> None:
    values = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0]), "f": torch.tensor([10.0, 30.0])}
    kinds = {"a": "attention", "b": "attention", "f": "ffn"}
    found = upop.standardise(values, kinds)
    assert torch.allclose(torch.cat([found["a"], found["b"]]), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.allclose(found["f"], torch.tensor([-(0.5**0.5), 0.5**0.5]))


def test_gate_gradient_is_the_sum_of_weight_times_gradient() -> None:
    """At gate 1 dL/dg of a unit = sum over its gated rows of W * dL/dW (+ b * dL/db)."""
    torch.manual_seed(0)
    net = timm.create_model(
        "deit_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    adopted.adopt(net).double()
    structure = Structure((adopted.vision_tower(net),))
    gates = Gates(net, structure)
    net(torch.randn(2, 3, 32, 32, dtype=torch.float64)).square().sum().backward()
    taken = gates.take()
    for site in structure.sites:
        expected = torch.zeros(site.units, dtype=torch.float64)
        for part in site.slices:
            if part.gated:
                parameter = net.get_parameter(part.param)
                product = (parameter * parameter.grad).detach()
                rows = product.sum(1) if product.ndim > 1 else product
                expected += rows[part.index].sum(1)
        assert torch.allclose(taken[site.name], expected, rtol=1e-9, atol=1e-12)
    assert all(float(v.abs().max()) == 0 for v in gates.take().values()), "take() clears"


def blip_names(structure: Structure) -> dict[str, str]:
    """Site -> the original's mask key, for the three towers of BLIP VQA."""
    towers = {"vision": "visual_encoder.blocks", "question": "text_encoder.encoder.layer"}
    towers["answer"] = "text_decoder.bert.encoder.layer"
    parts = {"attention": "attn", "self": "attention.self", "cross": "crossattention.self"}
    names = {}
    for site in structure.sites:
        tower, layer, part = site.name.split(".")
        ffn = "mlp" if tower == "vision" else "intermediate"
        names[site.name] = f"{towers[tower]}.{layer}.{ffn if part == 'ffn' else parts[part]}.alpha"
    return names


def vqa_batch(oracle: Oracle, index: int) -> Batch:
    """The recorded batch: one question an image, n weighted answers a question."""
    at = f"batch/{index}/"
    questions, answers = oracle.facts["texts"][index]
    counts, weights = oracle[at + "n"].tolist(), oracle[at + "weights"].tolist()
    samples = []
    for i, n in enumerate(counts):
        first = sum(counts[:i])
        # Equal answers with their own weights would share a dict key; the loss is linear in the weights.
        target: dict[str, float] = {}
        for answer, weight in zip(answers[first : first + n], weights[first : first + n], strict=True):
            target[answer] = target.get(answer, 0.0) + weight
        samples.append(Sample(str(i), (), questions[i], target))
    return Batch(samples, oracle[at + "im"].double(), torch.arange(len(counts))[:, None])


class Questions:
    """The recorded batches, as the loop asks for them."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def at(self, step: int) -> Batch:
        return vqa_batch(self.oracle, step % self.oracle.facts["nb"])


class AsRecorded(Hook):
    """Compares summed gradients and masks with the recording, wherever it has them."""

    def __init__(self, oracle: Oracle, search: Any, structure: Structure) -> None:
        self.oracle, self.search, self.structure, self.names = oracle, search, structure, blip_names(structure)

    def after_backward(self, step: int) -> None:
        facts = self.oracle.facts
        if step in facts["grad_snapshots"]:
            weights, found = (
                {"attention": facts["w_attn"], "ffn": facts["w_mlp"]},
                masks_of(self.oracle, step, self.names, "grad"),
            )
            for site in self.structure.sites:
                expected = found[site.name] - weights[site.kind] * (step + 1)
                assert torch.allclose(self.search.total[site.name], expected, rtol=0, atol=1e-10)

    def after_step(self, step: int) -> None:
        if step in [at for at, _ in self.oracle.facts["updates"]]:
            masks = masks_of(self.oracle, step, self.names)
            for name, gate in self.search.gates.value.items():
                assert torch.equal(gate.detach(), masks[name].double())


@pytest.mark.parametrize("name", recorded("search_vqa"))
def test_blip_vqa_trajectory_equals_the_original(shared: Path, tmp_path: Path, name: str) -> None:
    """End to end in float64, by the project's own loop with recipe=upop-code: three towers of 12 layers, gates after
    every update equal, and the weights at the end."""
    oracle = Oracle(shared / "oracles" / "models" / f"{name}.npz")
    facts = oracle.facts
    oracle.facts["vocab"] = Oracle(shared / "oracles" / "models" / "blip_vqa_eval_a.npz").facts["vocab"]
    weights = oracle.tensors("init/")
    d, mlp = facts["dims"], weights["visual_encoder.blocks.0.mlp.fc1.bias"].numel()
    dims = {"vw": d["h"], "vmlp": mlp // d["h"], "vd": facts["layers"], "vh": d["heads"], "img": facts["image_size"]}
    dims |= {"patch": facts["patch_size"], "th": d["h"], "inter": d["inter"], "layers": facts["layers"]}
    positions = weights["text_encoder.embeddings.position_embeddings.weight"].shape[0]
    dims |= {"heads": d["heads"], "positions": positions}
    model = open_blip_vqa(oracle, dims, "init/", tmp_path)
    structure = model.structure()
    # The recording's rate in the place of the script's; what decays is the recipe's.
    options = code_options("vqav2", sparsity=facts["p"], steps=facts["steps"], lr=1e-3, decay="constant", warmup=0)
    assert (options.interval, options.weight_decay, options.decayed) == (facts["interval"], 0.05, "all")
    search = code_search(Gates(model.net, structure), structure, options)
    losses = Loop(
        model.net, model.answer_loss, cast(Any, Questions(oracle)), options, seed=0,
        hooks=[search, AsRecorded(oracle, search, structure)],
    ).run()  # fmt: skip
    assert losses == pytest.approx(oracle["loss"].flatten().tolist()[: facts["steps"]], abs=1e-10)
    assert search.updates == [(at, pytest.approx(ratio, abs=1e-15)) for at, ratio in facts["updates"]]
    assert_final_weights(oracle, model.net)
    model.net.eval()
    with torch.no_grad():  # the gates are the recorded masks, at their last update
        evaluated = float(model.answer_loss(vqa_batch(oracle, 0)))
    assert evaluated == pytest.approx(float(oracle["out/final_eval_loss_batch0"]), abs=1e-9)
    assert_scales_of_kept_widths(model, structure, search)


def assert_scales_of_kept_widths(model: Any, structure: Structure, search: Any) -> None:
    """As the code leaves it: BERT's attention divides by the root of what it kept, the ViT's of the whole head."""
    search.gates.remove()
    whole = {name: layer.scale for name, layer in model.net.named_modules() if hasattr(layer, "scale")}
    cut(model.net, structure, search.kept, kept_scale=search.options.softmax_scale == "kept")
    for site in structure.sites:
        if site.kind == "attention":
            path = site.slices[0].param.rsplit(".", 2)[0]
            kept = len(search.kept[site.name]) ** -0.5
            scale = model.net.get_submodule(path).scale
            assert scale == pytest.approx(whole[path] if site.modality == "vision" else kept), site.name
