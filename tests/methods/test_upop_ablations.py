"""The ablation options of UPop's search: each against its formula written out, on a tiny DeiT and random batches."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from tests.lab import Lab
from tests.methods.killed import killed_and_resumed, same_weights
from vlbench.cell.resolve import resolve
from vlbench.checks.tiny import Workshop
from vlbench.compression.cut import cut
from vlbench.compression.gates import Gates
from vlbench.compression.saved import load_model, save_model
from vlbench.errors import UserError
from vlbench.machine.ui import Screen
from vlbench.nn import timm as adopted
from vlbench.plugins.table import forget, table
from vlbench.plugins.workspace import package_folder
from vlbench.structure import Structure
from vlbench.training.loop import NotFiniteError

upop = importlib.import_module("vlbench.methods.upop")
STEPS = 12


@dataclass
class Searched:
    """A search that was run: every step's gate gradients with the gates they were taken at, and the gates after it."""

    net: torch.nn.Module
    structure: Structure
    search: Any
    steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]]
    after: list[dict[str, Tensor]]


def run(weight: float = 1.0, seed: int = 0, **words: Any) -> Searched:
    torch.manual_seed(0)
    net = timm.create_model(
        "deit_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )
    adopted.adopt(net).double()
    options = upop.SearchOptions.model_validate({"steps": STEPS, "interval": 2, **words})
    structure = options.units_of(Structure((adopted.vision_tower(net),)))
    cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
    search = upop.Search(Gates(net, structure), structure, options, cost, seed=seed)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    done = Searched(net, structure, search, [], [])
    rng = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=rng)
        labels = torch.randint(10, (4,), generator=rng)
        (weight * torch.nn.functional.cross_entropy(net(images), labels)).backward()
        gates = {n: g.detach().clone() for n, g in search.gates.value.items()}
        done.steps.append(({n: g.grad.clone() for n, g in search.gates.value.items()}, gates))
        search.after_backward(step)
        optimiser.step()
        optimiser.zero_grad()
        search.after_step(step)
        done.after.append({n: g.detach().clone() for n, g in search.gates.value.items()})
    return done


def removed(done: Searched, gates: Mapping[str, Tensor]) -> float:
    """The part of the cost whose gates are not 1."""
    cost = done.search.cost
    return sum(cost[n] * float((g != 1).sum()) for n, g in gates.items()) / sum(
        cost[n] * len(g) for n, g in gates.items()
    )


def largest_unit(done: Searched) -> float:
    cost = done.search.cost
    return max(cost.values()) / sum(cost[n] * len(g) for n, g in done.after[0].items())


# Importance ----------------------------------------------------------------------------------------------------------


def naive(done: Searched, importance: str) -> dict[str, list[float]]:
    """The score of every unit, one by one."""
    found: dict[str, list[float]] = {}
    for site in done.structure.sites:
        rows = []
        for unit in range(site.units):
            history = [(float(g[site.name][unit]), float(gate[site.name][unit])) for g, gate in done.steps]
            if importance == "signed":
                rows.append(sum(g for g, _ in history))
            elif importance == "abs":
                rows.append(-sum(abs(g) for g, _ in history))
            elif importance == "square":
                rows.append(-sum(g * g for g, _ in history))
            elif importance == "taylor":
                rows.append(-abs(sum(gate * g for g, gate in history)))
            else:
                owned = [
                    float(value)
                    for part in site.slices
                    if len(part.shape) > 1
                    for value in done.net.get_parameter(part.param).detach().index_select(
                        part.dim, part.index[unit]).flatten()
                ]  # fmt: skip
                rows.append(-math.sqrt(sum(v * v for v in owned) / len(owned)))
        found[site.name] = rows
    return found


@pytest.mark.parametrize("importance", ["signed", "abs", "square", "taylor", "weight"])
def test_an_importance_is_its_formula(importance: str) -> None:
    done = run(importance=importance)
    wanted = naive(done, importance)
    for name, score in done.search.score().items():
        assert torch.allclose(score, torch.tensor(wanted[name], dtype=torch.float64), rtol=1e-6, atol=1e-12), name
    assert len({float(gate.min()) for _, gates in done.steps for gate in gates.values()}) > 2, "gates moved on the way"


def test_the_highest_standardised_scores_are_gone() -> None:
    """By hand: z-score of each kind, one order, cost by cost up to the target."""
    done = run(importance="square", sparsity=0.4)
    score, units = naive(done, "square"), []
    for kind in ("attention", "ffn"):
        names = [s.name for s in done.structure.sites if s.kind == kind]
        values = [v for n in names for v in score[n]]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        units += [((v - mean) / deviation, n, i) for n in names for i, v in enumerate(score[n])]
    cost, gone, spent = done.search.cost, set(), 0.0
    total = sum(cost[n] * len(v) for n, v in score.items())
    for _, name, unit in sorted(units, reverse=True):
        if abs(spent + cost[name] - 0.4 * total) >= abs(spent - 0.4 * total):
            break
        spent += cost[name]
        gone.add((name, unit))
    assert {(n, i) for n, g in done.after[-1].items() for i, v in enumerate(g.tolist()) if v == 0} == gone


def test_random_units_are_the_seeds() -> None:
    one, same, other = run(importance="random"), run(importance="random", weight=2.0), run(importance="random", seed=1)
    assert all(torch.equal(one.search.kept[n], same.search.kept[n]) for n in one.search.kept)
    assert any(not torch.equal(one.search.kept[n], other.search.kept[n]) for n in one.search.kept)


def test_each_importance_keeps_other_units() -> None:
    kept = [str(run(importance=i).search.kept) for i in ("signed", "abs", "square", "taylor", "weight", "random")]
    assert len(set(kept)) == len(kept)


def test_step_standardises_gradients_and_a_weight_has_none() -> None:
    with pytest.raises(ValueError, match="importance=weight has none"):
        upop.SearchOptions(importance="weight", standardise="step")


# Pruning -------------------------------------------------------------------------------------------------------------


def test_progressive_gates_fall_together_and_units_come_back() -> None:
    done = run(interval=1)
    for step, ratio in done.search.updates:
        values = {float(v) for gate in done.after[step].values() for v in gate}
        assert values <= {1.0, 1 - ratio / 0.5}
    back = [(a[n] < 1) & (b[n] == 1) for a, b in zip(done.after, done.after[1:], strict=False) for n in a]
    assert any(bool(x.any()) for x in back)


def test_iterative_gates_are_zero_for_good() -> None:
    done = run(pruning="iterative", interval=1, update_at_zero=True)
    for step, ratio in done.search.updates:
        gates = done.after[step]
        assert {float(v) for gate in gates.values() for v in gate} <= {0.0, 1.0}
        assert removed(done, gates) == pytest.approx(ratio, abs=largest_unit(done))
    for before, after in zip(done.after, done.after[1:], strict=False):
        assert all(bool((after[n][before[n] == 0] == 0).all()) for n in after)
    # What is gone keeps the sum it went with.
    name, unit = next((n, int((g == 0).nonzero()[0])) for n, g in done.after[2].items() if bool((g == 0).any()))
    last = next(step for step, gates in enumerate(done.after) if gates[name][unit] == 0)
    summed = sum(float(g[name][unit]) for g, _ in done.steps[: last + 1])
    assert float(done.search.total[name][unit]) == pytest.approx(summed, abs=1e-12)


def test_iterative_widths_stay_multiples() -> None:
    done = run(pruning="iterative", interval=1, multiple_of=4)
    assert all(len(kept) % 4 == 0 for kept in done.search.kept.values())


def test_once_is_the_ranking_of_all_steps_at_gate_one() -> None:
    done = run(pruning="once")
    assert all(bool((g == 1).all()) for gates in done.after[:-1] for g in gates.values())
    assert done.search.updates == [(STEPS - 1, 0.5)]
    sums = {n: sum(g[n] for g, _ in done.steps) for n in done.after[0]}
    kinds = {s.name: s.kind for s in done.structure.sites}
    score = upop.standardise(sums, kinds)
    kept = upop.unified({n: -v for n, v in score.items()}, done.search.cost, 0.5)
    assert all(torch.equal(done.search.kept[n], kept[n]) for n in kept)


# Allocation, ramp, unit ----------------------------------------------------------------------------------------------


def test_uniform_allocation_takes_the_same_fraction_of_every_site() -> None:
    done = run(allocation="uniform", sparsity=0.25)
    for site in done.structure.sites:
        assert len(done.search.kept[site.name]) == round(0.75 * site.units)
        score = done.search.total[site.name]
        gone = score[done.after[-1][site.name] == 0]
        assert float(gone.min()) >= float(score[done.search.kept[site.name]].max())
    assert {
        len(k) / s.units for s, k in zip(done.structure.sites, run(sparsity=0.25).search.kept.values(), strict=True)
    } != {0.75}


def test_the_codes_ramp_is_the_codes_to_the_last_bit() -> None:
    """Oracle: p_t of the published code, which multiplies before it divides, for p = .5, T = 20, t = 10."""
    assert 0.5 * upop.RAMP["sine-code"](10 + 1, 20) == 0.3802029828000154
    assert 0.5 * upop.RAMP["sine"](10 + 1, 20) == 0.38020298280001547  # what committed results were made with
    assert resolve({"task": "imagenet", "method": "upop", "recipe": "upop-code"}).links[0].options.ramp == "sine-code"


HALF_SINE = (lambda x: math.sin(math.pi * x / 2),) * 2


@pytest.mark.parametrize(
    ("ramp", "part"), [*zip(("sine", "sine-code"), HALF_SINE, strict=True), ("linear", lambda x: x)]
)
def test_the_ratio_grows_along_the_ramp(ramp: str, part: Any) -> None:
    done = run(ramp=ramp, sparsity=0.4)
    for step, ratio in done.search.updates:
        assert ratio == pytest.approx(0.4 * part((step + 1) / STEPS), abs=1e-12)
        assert removed(done, done.after[step]) == pytest.approx(ratio, abs=largest_unit(done))


def test_cosine_is_the_papers_word_for_the_sine() -> None:
    assert upop.SearchOptions(ramp="cosine") == upop.SearchOptions()


def test_whole_heads_go_and_the_function_stays() -> None:
    done = run(unit="head", sparsity=0.25)
    assert {s.unit for s in done.structure.sites if s.kind == "attention"} == {"head"}
    done.net.eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        gated = done.net(images)
        done.search.gates.remove()
        kept = {n: torch.tensor([1]) if len(k) == 2 else k for n, k in done.search.kept.items()}
        done.search.gates = Gates(done.net, done.structure)
        done.search.gates.set({n: _gate(len(done.after[0][n]), k) for n, k in kept.items()})
        gated = done.net(images)
        done.search.gates.remove()
        cut(done.net, done.structure, kept)
        assert (done.net(images) - gated).abs().max() < 1e-12
    assert all(block.attn.num_heads == 1 for block in done.net.blocks)  # type: ignore[union-attr]


def _gate(units: int, kept: Tensor) -> Tensor:
    gate = torch.zeros(units, dtype=torch.float64)
    gate[kept] = 1.0
    return gate


# Whole runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    forget()
    return Workshop(table("methods").get("upop_search"), tmp_path_factory.mktemp("work"), Screen(quiet=True))


def of_search(words: Mapping[str, str]) -> dict[str, str]:
    return {f"upop_search.{key}": value for key, value in words.items()}


ABLATIONS = [
    *({"importance": i} for i in ("abs", "square", "taylor", "weight", "random")),
    *({"allocation": "uniform", "sparsity": s} for s in ("0.5", "0.75")),
    *({"pruning": p} for p in ("iterative", "once")),
    {"pruning": "iterative", "allocation": "uniform"},
    {"pruning": "iterative", "budget": "code"},
    {"unit": "head"}, {"unit": "head", "unit_cost": "macs"},
    {"ramp": "linear", "standardise": "step"}, {"standardise": "off"},
    {"ratio": "2x"}, {"ratio": "3x"}, {"ratio": "4x"}, {"ratio": "5x"}, {"ratio": "10x"},
]  # fmt: skip


@pytest.mark.parametrize("words", ABLATIONS, ids=lambda w: "-".join(w.values()))
def test_an_ablation_meets_its_target_and_reloads(workshop: Workshop, words: dict[str, str], tmp_path: Path) -> None:
    outcome = workshop.run(of_search({"steps": "4", "interval": "1", **words}))
    target = 1 - 1 / float(words["ratio"].rstrip("x")) if "ratio" in words else float(words.get("sparsity", "0.5"))
    left = outcome.model.structure().size
    if words.get("unit_cost") != "macs":
        assert 1 - left / outcome.size == pytest.approx(target, abs=0.02)
    else:
        assert left < outcome.size
    save_model(tmp_path / "model", outcome.model, outcome.state)
    again = load_model(tmp_path / "model")[0]
    assert torch.equal(workshop.outputs(again), workshop.outputs(outcome.model))


@pytest.mark.parametrize("pruning", ["progressive", "iterative", "once"])
@pytest.mark.parametrize("importance", ["signed", "taylor"])
def test_a_killed_search_resumes_to_the_same_bits(
    workshop: Workshop, pruning: str, importance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = of_search({"steps": "6", "interval": "2", "pruning": pruning, "importance": importance})
    again = killed_and_resumed(workshop, words, monkeypatch, after=3)
    assert same_weights(workshop.run(words), again)


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_no_number_stops_the_search_with_its_site() -> None:
    with pytest.raises(NotFiniteError, match=r"a gate gradient of vision\.0\.attention"):
        run(weight=float("nan"))


def test_a_site_without_heads_says_why(workshop: Workshop) -> None:
    structure = workshop.model().structure()
    plain = Structure(
        tuple(
            type(t)(t.name, tuple(type(b)(b.path, tuple(s.with_unit(s.unit) for s in b.sites)) for b in t.blocks))
            for t in structure.towers
        )
    )
    with pytest.raises(UserError, match=r"cannot be cut by 'head'"):
        upop.UPopSearch(upop.SearchOptions(unit="head")).check(plain)


@pytest.mark.parametrize("method", ["upop", "grid", "mask_based", "uniform"])
def test_an_unreachable_target_is_refused_before_anything_is_trained(lab: Lab, method: str) -> None:
    """Attention of width 16 in two heads keeps one of 8 dimensions, feed-forward one of 64: 0.9219 of the entries."""
    assert lab.run("method=dense").code == 0
    words = ["by=kind"] if method == "grid" else []
    told = lab.refused_run(f"method={method}", "sparsity=0.97", *words)
    assert "cannot be reached with one unit left in each of 4 sites: at most 0.9" in told
    assert not list(lab.folder.glob(f"runs/*{method}*"))


@pytest.mark.parametrize("method", ["upop", "mask_based", "uniform"])
def test_widths_of_multiples_reach_less(lab: Lab, method: str) -> None:
    """Attention of 8 dimensions a head keeps 4 of them, feed-forward 4 of 64: 0.7917 of the entries, that are one
    part attention and two parts feed-forward."""
    assert lab.run("method=dense").code == 0
    word = {"upop": "upop_search.", "mask_based": "mask_based_search."}.get(method, "") + "multiple_of=4"
    told = lab.refused_run(f"method={method}", "sparsity=0.9", word)
    assert "sparsity 0.9 cannot be reached with multiple_of=4 units left in each of 4 sites: at most 0.7917." in told
    assert not list(lab.folder.glob(f"runs/*{method}*"))


def test_a_rule_that_rounds_no_width_is_not_asked_to() -> None:
    with pytest.raises(ValueError, match="multiple_of=8 is not met by budget=code"):
        upop.SearchOptions(budget="code", multiple_of=8)
    assert upop.SearchOptions(budget="code", multiple_of=8, allocation="uniform").multiple_of == 8


# Identities and recipes ----------------------------------------------------------------------------------------------


def test_defaults_are_what_published_results_say() -> None:
    """Options that came later enter neither identity nor record while they are left alone."""
    folder = package_folder("leaderboards") / "results" / "mini"
    for task in ("nlvr2", "imagenet", "ade20k"):
        files = folder.glob(f"mini-{task}-*-upop-0.75-s0-*.json")  # the ablations' too
        links = resolve({"task": task, "method": "upop", "sparsity": "0.75"}).links
        told = [{"name": link.entry.name, "options": link.options.recorded()} for link in links]
        chains = [json.loads(file.read_text())["chain"] for file in files]
        assert told in [[{"name": one["name"], "options": one["options"]} for one in chain] for chain in chains]


def options_of(recipe: str, task: str, **words: str) -> dict[str, Any]:
    told = {"suite": "full", "task": task, "method": "upop", "recipe": recipe, **words}
    return {f"{k.entry.name}.{n}": v for k in resolve(told).links for n, v in k.options.model_dump().items()}


def test_paper_has_sgd_for_ade20k() -> None:
    for ratio, interval in {"0.1": 500, "0.15": 400, "0.2": 300, "0.3": 200}.items():
        found = options_of("paper", "ade20k", sparsity=ratio)
        assert found["upop_search.interval"] == interval
        assert found["upop_search.steps"] * 4 == found["finetune.steps"] == 64 * (20_210 // 64)
        for link in ("upop_search", "finetune"):
            assert [found[f"{link}.{k}"] for k in ("optimiser", "lr", "weight_decay", "batch_size")] == [
                "sgd",
                4e-3,
                0,
                64,
            ]
        assert (found["upop_search.decay"], found["finetune.decay"]) == ("constant", "poly")
        assert found["upop_search.softmax_scale"] == "original"


@pytest.mark.parametrize(
    ("task", "sparsity", "epochs", "interval", "lr"),
    [
        ("nlvr2", "0.5", 15, 50, 3e-6), ("nlvr2", "0.6667", 20, 50, 3e-6), ("nlvr2", "0.9", 27, 50, 3e-6),
        ("vqav2", "0.75", 15, 1000, 2e-5), ("coco_caption", "0.5", 5, 100, 1e-5),
        ("coco_retrieval", "0.75", 9, 200, 1e-5), ("flickr30k_retrieval", "0.5", 12, 50, 1e-5),
    ],
)  # fmt: skip
def test_the_codes_recipe_has_the_published_numbers_and_rules(
    task: str, sparsity: str, epochs: int, interval: int, lr: float
) -> None:
    found, paper = (options_of(recipe, task, sparsity=sparsity) for recipe in ("upop-code", "paper"))
    rules = {"budget": "code", "unit_cost": "36:1", "update_at_zero": True, "softmax_scale": "kept", "decayed": "all",
             "ramp": "sine-code"}  # fmt: skip
    assert found == {**paper, **{f"upop_search.{k}": v for k, v in rules.items()}, "finetune.decayed": "all"}
    assert found["upop_search.steps"] == found["finetune.steps"]
    assert found["upop_search.steps"] % epochs == 0
    assert (found["upop_search.interval"], found["finetune.lr"]) == (interval, lr)


def test_the_codes_recipe_keeps_the_mini_worlds_lengths() -> None:
    links = resolve({"task": "imagenet", "method": "upop", "recipe": "upop-code"}).links
    rules = {"budget": "code", "unit_cost": "12:1", "softmax_scale": "kept", "decayed": "timm",
             "ramp": "sine-code"}  # fmt: skip
    assert links[0].options.recorded() == {**upop.SearchOptions().recorded(), **rules}
