"""RIA, OWL, LLM-Pruner and Wanda-sp against the arrays of their original code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests import minis
from tests.lab import Lab
from tests.nn.kinds import KINDS
from tests.oracles import Oracle
from tests.pruning.toy import pruner
from vlbench.calibration.statistics import Statistics
from vlbench.compression.changes import Changes
from vlbench.compression.masks import keep_fraction, keep_n_of_m
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.width import streams
from vlbench.errors import UserError
from vlbench.pruning.owl import met, outliers, owl
from vlbench.structure import Block, Rows, Structure, Tower, attention_site, count_setter, ffn_site

llm_pruner = importlib.import_module("vlbench.methods.llm_pruner")


def module(name: str) -> Any:
    """The file of a method."""
    return importlib.import_module(f"vlbench.methods.{name}")


@pytest.fixture
def neighbours(shared: Path) -> Path:
    return shared / "oracles" / "neighbours"


def seen(square_mean: Tensor) -> Statistics:
    return Statistics(square_mean.double(), 1)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0])
def test_ria(neighbours: Path, power: float) -> None:
    oracle = Oracle(neighbours / "ria_a.npz")
    score = pruner("ria", power=power).score(oracle["W"], seen(oracle["scaler_row"]))
    assert torch.allclose(score, oracle[f"score/{power}"], rtol=1e-6, atol=0)
    assert torch.equal(keep_fraction(score, 0.5, "row"), oracle[f"keep_per_row/{power}"])


@pytest.mark.parametrize("ranking", ["sum", "retained_degree_unstructured", "retained_degree_per_outneuron"])
def test_ria_deals_columns_out(neighbours: Path, ranking: str) -> None:
    """The published order, and the 2:4 mask in it, mapped back."""
    oracle = Oracle(neighbours / "ria_a.npz")
    ria, scores = pruner("ria", sparsity="2:4", reallocate=ranking), oracle["score/0.5"]
    order = ria.order(scores, torch.arange(scores.shape[1])[:, None])
    assert torch.equal(order, oracle[f"reallocated/{ranking}/index"])
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[:, order] = keep_n_of_m(scores[:, order], 2, 4)
    assert torch.equal(keep, oracle[f"reallocated/{ranking}/keep"])


@pytest.mark.parametrize("name", ["deit", "llama", "blip_vqa"])
@torch.no_grad()
def test_units_in_another_order_compute_the_same(name: str) -> None:
    kind = next(k for k in KINDS if k.name == name)
    net = kind.adopt(kind.build())
    want, ria = kind.run(net), module("ria")
    sites = [pair for t in kind.structure(net).towers for block in t.blocks for pair in ria.readers(block)]
    assert {site.unit for site, _ in sites} >= {"neuron"}
    for site, reader in sites:
        before = net.get_parameter(reader.param).clone()
        for path, weight in ria.permuted(net, site, torch.randperm(site.units)).items():
            net.get_parameter(path).copy_(weight)
        assert not torch.equal(net.get_parameter(reader.param), before)
    assert float((kind.run(net) - want).abs().max()) <= 1e-10


def test_a_run_deals_out_and_keeps_the_pattern(lab: Lab) -> None:
    told = lab.run("method=ria", "sparsity=2:4", "reallocate=sum", "calibration_samples=4")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "ria" in str(p))
    model, state = load_model(folder / "model")
    assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in state.masks.values())
    name = "blocks.0.mlp.fc1.weight"
    dense, saved = load_file(lab.weights / "model.safetensors")[name], model.net.get_parameter(name).detach()
    rows = [
        ((dense * mask == row).all(1)).nonzero().flatten() for row, mask in zip(saved, state.masks[name], strict=True)
    ]
    assert torch.cat(rows).sort().values.tolist() == list(range(len(dense)))  # every neuron once,
    assert torch.cat(rows).tolist() != list(range(len(dense)))  # in another order
    assert "reallocate=sum is for n:m patterns" in lab.refused_run("method=ria", "sparsity=0.5", "reallocate=sum")


def test_owl(neighbours: Path) -> None:
    oracle = Oracle(neighbours / "owl_ratios_a.npz")
    for number, case in enumerate(oracle.facts["cases"]):
        percent = [
            outliers([oracle[f"W/{i}/{m}"].abs() * oracle[f"scaler_row/{i}/{m}"].sqrt() for m in (0, 1)], case["M"])
            for i in range(5)
        ]
        ratios = owl(percent, case["sparsity"], case["Lamda"])
        assert torch.allclose(torch.tensor(percent).double(), oracle[f"outlier_percent/{number}"], atol=1e-6)
        assert torch.allclose(torch.tensor(ratios).double(), oracle[f"layer_sparsity/{number}"], atol=1e-7)


def test_owl_of_equal_blocks_and_of_blocks_of_other_sizes() -> None:
    """The code gives NaN where all blocks have as many outliers, and misses the target where sizes differ."""
    assert owl([2.0, 2.0], 0.5, 0.08) == pytest.approx([0.5, 0.5])
    sizes = {"a": 100, "b": 900}
    found = met({"a": 0.42, "b": 0.58}, sizes, 0.5)
    assert sum(found[n] * sizes[n] for n in sizes) == pytest.approx(500)
    assert found["b"] - found["a"] == pytest.approx(0.16)


class Layer(nn.Module):
    """Projections of one attention and one gated feed-forward layer."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.heads = 3
        for name, weight in weights.items():
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight.data = weight
            setattr(self, name, linear)


@pytest.mark.parametrize("grouping", ["sum", "mean", "max", "prod", "first"])
@pytest.mark.parametrize("taylor", ["vectorize", "param_first", "param_second", "param_mix"])
def test_llm_pruner(neighbours: Path, taylor: str, grouping: str) -> None:
    oracle = Oracle(neighbours / "llm_pruner_taylor_a.npz")
    net = Layer(oracle.tensors("W/"))
    learnt = {
        f"{n}.weight": Statistics(torch.zeros(1), 1, None, oracle[f"grad/{n}"], oracle[f"acc_grad/{n}"])
        for n in oracle.tensors("W/")
    }
    method = pruner("llm_pruner", taylor=taylor, grouping=grouping)
    ffn = ffn_site(net, "f", modality="language", up="up", gate="gate", down="down", activation=F.silu)
    attention = attention_site(
        net, "a", modality="language", query=Rows("q"), key=Rows("k"), value=Rows("v"), output="o", heads=3,
        set_heads=count_setter("", "heads"),
    ).with_unit("head")  # fmt: skip
    neurons = method.importance(net, ffn, learnt)
    heads = method.importance(net, attention, learnt)
    if grouping != "first":  # ours has no order of a group's matrices
        assert torch.allclose(neurons, oracle[f"mlp/{taylor}/{grouping}"], rtol=1e-10, atol=1e-12)
        wanted = oracle[f"attn/{taylor}/{grouping}"]
        wanted = wanted if len(wanted) == 3 else wanted.view(3, -1).sum(1)
        assert torch.allclose(heads, wanted, rtol=1e-10, atol=1e-12)


def test_wanda_sp_of_the_first_layer(neighbours: Path) -> None:
    """Its masks from the recorded inputs of the first layer, which nothing pruned has touched."""
    oracle = Oracle(neighbours / "flap_a.npz")
    net = Layer({n: oracle[f"weight/0.{p}.weight"] for n, p in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj"))})
    for name, rows in (("q", 384), ("k", 384), ("v", 384), ("up", 20)):
        setattr(net, name, nn.Linear(6, rows, bias=False))
    attention = attention_site(
        net, "a", modality="language", query=Rows("q"), key=Rows("k"), value=Rows("v"), output="o", heads=3,
        set_heads=count_setter("", "heads"),
    ).with_unit("head")  # fmt: skip
    ffn = ffn_site(net, "f", modality="language", up="up", down="down", activation=F.silu)
    learnt = {}
    for name, path in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
        statistics = Statistics.zeros(oracle[f"inputs/0.{path}"].shape[-1], torch.device("cpu"))
        statistics.add(oracle[f"inputs/0.{path}"])
        learnt[f"{name}.weight"] = statistics
    method = pruner("wanda_sp")
    for ratio in (0.34, 0.5):
        for site, key in ((attention, "attn_mask"), (ffn, "mlp_mask")):
            score = method.importance(net, site, learnt)
            keep = score >= score.sort().values[int(len(score) * ratio)]
            assert torch.equal(keep, oracle[f"wanda_sp/{ratio}/{key}/0"])


def test_units_are_whole_heads() -> None:
    """Of the structure that a pruner of heads is given, where a layer can lose them."""
    net = Layer({n: torch.randn(12, 12) for n in ("q", "k", "v", "o")})
    site = attention_site(
        net, "a", modality="language", query=Rows("q"), key=Rows("k"), value=Rows("v"), output="o", heads=3,
        set_heads=count_setter("", "heads"),
    )  # fmt: skip
    structure = Structure((Tower("t", (Block("", (site,)),)),))
    assert pruner("wanda_sp").units(structure).sites[0].unit == "head"


def test_a_run_with_owl_meets_the_target(lab: Lab) -> None:
    """The record of a whole run: blocks get ratios of their own, and their mean by entries is the target."""
    told = lab.run(
        "method=wanda", "sparsity=0.5", "allocation=owl", "group=matrix", "owl_multiple=2", "calibration_samples=8"
    )
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "wanda" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.02)
    ratios = load_model(folder / "model")[1].log["wanda"]["ratios"]
    assert len(set(ratios.values())) > 1


def test_channels_go_from_everything_that_owns_them(lab: Lab) -> None:
    """A whole run against counting: the stream of the saved model is narrower, its record meets the target, and what it
    computes is reopened (the score of its own evaluation). Importance: by the formula, over all matrices."""
    words = ("method=llm_pruner", "mode=channel", "sparsity=0.5", "calibration_samples=4")
    told = lab.run(*words)
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "llm_pruner" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.02)
    model, state = load_model(folder / "model")
    (kept,) = (sites["vision.width"] for sites in (cut.sites for cut in state.cuts))
    assert kept[0] == "width"
    assert model.net.norm.normalized_shape == (len(kept[1]),)
    assert {p.shape[-1] for n, p in model.net.named_parameters() if n.endswith("qkv.weight")} == {len(kept[1])}


def test_channel_importance_is_the_sum_over_the_group() -> None:
    kind = next(k for k in KINDS if k.name == "deit")
    net = kind.adopt(kind.build())
    (stream,) = streams(kind.structure(net)).values()
    grads = {s.param: torch.randn(s.shape, dtype=torch.float64) for s in stream.slices}
    learnt = {n: Statistics(torch.zeros(1), 1, None, g, g.square()) for n, g in grads.items()}
    found = pruner("llm_pruner", mode="channel")._of_stream(net, stream, learnt)
    wanted = torch.zeros(24, dtype=torch.float64)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1:
            continue
        product = (parameter.detach() * grads[name]).abs()
        reads = name.endswith(("qkv.weight", "fc1.weight", "head.weight", "cls_token", "pos_embed"))
        wanted += product.movedim(-1 if reads else 0, 0).flatten(1).sum(1)
    assert torch.allclose(found, wanted, rtol=1e-12)


def test_a_stream_that_cannot_be_narrowed_is_refused() -> None:
    kind = next(k for k in KINDS if k.name == "t5")
    with pytest.raises(UserError, match="the tower encoder cannot be narrowed: encoder and decoder share one matrix"):
        pruner("llm_pruner", mode="channel").check(kind.structure(kind.adopt(kind.build())))


def of_flap(oracle: Oracle) -> tuple[Structure, nn.Module, dict[str, Statistics]]:
    """The two layers' projections, their inputs counted, and the sites that read them."""
    weights, learnt, blocks = {}, {}, []
    for layer in (0, 1):
        for short, path in (("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
            weights[f"{short}{layer}"] = oracle[f"weight/{layer}.{path}.weight"]
            statistics = Statistics.zeros(weights[f"{short}{layer}"].shape[1], torch.device("cpu"), moments=True)
            statistics.add(oracle[f"inputs/{layer}.{path}"])
            learnt[f"{short}{layer}.weight"] = statistics
    net = Layer(weights)
    for layer in (0, 1):
        for name, rows in (("q", 384), ("k", 384), ("v", 384), ("up", 20)):
            setattr(net, f"{name}{layer}", nn.Linear(6, rows, bias=False))
        q, k, v = (Rows(f"{name}{layer}") for name in "qkv")
        attention = attention_site(
            net, f"{layer}.a", modality="language", query=q, key=k, value=v, output=f"o{layer}", heads=3,
            set_heads=count_setter("", "heads"),
        ).with_unit("head")  # fmt: skip
        ffn = ffn_site(net, f"{layer}.f", modality="language", up=f"up{layer}", down=f"down{layer}", activation=F.silu)
        blocks.append(Block("", (attention, ffn)))
    return Structure((Tower("t", tuple(blocks)),)), net, learnt


@pytest.mark.parametrize("number", range(4))
def test_flap(neighbours: Path, number: int) -> None:
    """Means, scores, masks of heads and neurons, and biases of every case."""
    oracle = Oracle(neighbours / "flap_a.npz")
    case = oracle.facts["cases"][number]
    structure, net, learnt = of_flap(oracle)
    flap = pruner("flap", metric=case["metric"], spread=case["structure"], sparsity=case["ratio"], compat="original")
    taken = {k: v for block in structure.towers[0].blocks for k, v in flap.of_block(net, block, learnt).items()}
    paths = {"a": ("self_attn.o_proj", "attn_mask", "o_bias"), "f": ("mlp.down_proj", "mlp_mask", "down_bias")}
    importance = {s.name: module("flap").standardised(s, taken[f"score/{s.name}"]) for s in structure.sites}
    keep = flap.kept(structure, importance)
    biases = flap.biases(net, structure, keep, taken)
    for site in structure.sites:
        layer, kind = site.name.split(".")
        path, mask, bias = paths[kind]
        assert torch.allclose(
            taken[f"score/{site.name}"].float(), oracle[f"metric/{case['metric']}/{layer}.{path}"], rtol=1e-4
        )
        assert torch.allclose(taken[f"mean/{site.name}"].float(), oracle[f"mean/{layer}.{path}"], rtol=1e-4, atol=1e-7)
        kept = torch.zeros(site.units, dtype=torch.bool)
        kept[keep[site.name]] = True
        assert torch.equal(kept, oracle[f"{number}/{mask}/{layer}"])
        name = {"a": "o", "f": "down"}[kind] + layer
        assert torch.allclose(biases[name].float(), oracle[f"{number}/{bias}/{layer}"], rtol=1e-4, atol=1e-6)


def test_flap_gives_biases_that_are_saved(tmp_path: Path) -> None:
    """A model whose projections have none (Llama): what is reopened computes the same, bit for bit, and the mean of
    what a removed unit gave is what the bias gives."""
    model = minis.opened("llava-mini")
    changes = Changes(model)
    path = "model.language_model.layers.0.mlp.down_proj"
    before = model.net.get_submodule(path)
    assert before.bias is None
    structure = changes.structure
    site = structure.site("language.0.ffn")
    keep = torch.arange(site.units - 3)
    mean = torch.linspace(-1, 1, site.units)
    wanted = before.weight[:, -3:] @ mean[-3:]
    biases = pruner("flap").biases(
        model.net, Structure((Tower("t", (Block("", (site,)),)),)), {site.name: keep}, {f"mean/{site.name}": mean}
    )
    changes.add_biases(biases)
    changes.cut({site.name: keep}, structure)
    save_model(tmp_path / "model", model, changes.state)
    again, state = load_model(tmp_path / "model")
    assert state.biases == [path]
    assert torch.allclose(again.net.get_submodule(path).bias, wanted, rtol=1e-5)
    assert torch.equal(again.net.get_submodule(path).bias, model.net.get_submodule(path).bias)


def test_a_run_of_flap_meets_the_target(lab: Lab) -> None:
    told = lab.run("method=flap", "sparsity=0.5", "calibration_samples=6")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "flap" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(
        0.5, abs=0.03
    )  # to half a head of this small model


@pytest.mark.parametrize("number", range(4))
def test_dsnot(neighbours: Path, number: int) -> None:
    """The changed masks of every case, n:m among them."""
    oracle = Oracle(neighbours / "dsnot_a.npz")
    case = oracle.facts["cases"][number]
    statistics = Statistics.zeros(64, torch.device("cpu"), moments=True)
    statistics.add(oracle["X"])
    assert statistics.moments is not None
    assert torch.allclose((statistics.moments.total / 6).float(), oracle["sum_metric_row"], atol=1e-5)
    assert torch.allclose((statistics.moments.spread / 6).float(), oracle["var"][:, 0], atol=1e-5)
    dsnot = module("dsnot").DSnoT(
        module("dsnot").DSnoTOptions(
            cycles=case["max_cycle"], threshold=case["update_threshold"], power=case["pow_of_var"],
            same_sign=case["same_sign"], order=case["initial"],
        )
    )  # fmt: skip
    n_m = case["n_m"] and (case["n_m"][1] - case["n_m"][0], case["n_m"][1])
    keep = dsnot.changed(oracle["W"], oracle[f"{number}/keep_initial"], statistics, n_m)
    assert torch.equal(keep, oracle[f"{number}/keep"])
    assert not torch.equal(keep, oracle[f"{number}/keep_initial"])


@pytest.mark.parametrize("n_m", [None, (2, 4)])
def test_dsnot_keeps_the_sparsity_however_long_it_runs(n_m: tuple[int, int] | None) -> None:
    """Against counting: the published code loses weights or the pattern here."""
    random = torch.Generator().manual_seed(3)
    weight, statistics = torch.randn(40, 16, generator=random), Statistics.zeros(16, torch.device("cpu"), moments=True)
    statistics.add(torch.randn(5, 7, 16, generator=random) + 0.5)
    keep = keep_n_of_m(weight.abs(), 2, 4) if n_m else keep_fraction(weight.abs(), 0.5, "row")
    dsnot = module("dsnot").DSnoT(module("dsnot").DSnoTOptions(cycles=200, threshold=0))
    after = dsnot.changed(weight, keep, statistics, n_m)
    assert not torch.equal(after, keep)
    assert torch.equal(after.sum(1), keep.sum(1))
    if n_m:
        assert bool((after.view(40, 4, 4).sum(2) == 2).all())


def test_dsnot_follows_a_mask(lab: Lab) -> None:
    told = lab.run(
        "method=wanda+dsnot",
        "sparsity=0.5",
        "wanda.calibration_samples=4",
        "dsnot.calibration_samples=4",
        "threshold=0",
    )
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "dsnot" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.01)
    assert load_model(folder / "model")[1].log["dsnot"]["moved"] > 0
