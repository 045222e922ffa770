"""Random, Taylor, OBD and magnitude: their formulas, their patterns, and where the target goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.beside import there
from tests.pruning.toy import ToyJob, pruner, random_blocks, zeros
from vlbench.calibration.gradients import gradients
from vlbench.compression.gates import Gates
from vlbench.errors import RunFailed, UserError
from vlbench.plugins.table import table
from vlbench.pruning.decisions import ranked_units
from vlbench.structure import Structure

NAMES = ("magnitude", "random", "wanda", "sparsegpt", "taylor", "obd")


def toy(folder: Path, seed: int = 0, **towers: int) -> ToyJob:
    net, structure = random_blocks((16, 12), (16, 12), (16, 8), towers=towers or None)
    return ToyJob(net, structure, torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(1)), folder, seed)


def words(name: str) -> dict[str, Any]:
    options = table("methods").get(name).load().Options.model_fields
    return {"calibration_samples": 8} if "calibration_samples" in options else {}


def apply(job: ToyJob, name: str, **more: Any) -> ToyJob:
    torch.manual_seed(job.here.seed)
    pruner(name, **words(name), **more).apply(job)
    return job


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.5, 0.7, "2:4"])
def test_every_method_makes_every_pattern(tmp_path: Path, name: str, sparsity: Any) -> None:
    job = apply(toy(tmp_path), name, sparsity=sparsity)
    for matrix, mask in job.changes.state.masks.items():
        weight = job.model.net.get_parameter(matrix)
        assert torch.equal(weight == 0, ~mask)
        if sparsity == "2:4":
            assert bool((mask.view(-1, 4).sum(1) == 2).all())
        else:
            assert float((~mask).float().mean()) == pytest.approx(sparsity, abs=1 / mask.shape[1])
    if name not in ("sparsegpt",):
        cut = apply(toy(tmp_path / "cut"), name, sparsity=0.5, pattern="structured")
        assert [p.shape[0] for p in cut.model.net.parameters()] == [6, 16, 6, 16, 4, 16]


@pytest.mark.parametrize("target", [0.3, 0.7, "2:4"])
@pytest.mark.parametrize("group", ["matrix", "model"])
@pytest.mark.parametrize("name", NAMES)
def test_zeros_of_a_mask_stay_under_a_second_one(tmp_path: Path, name: str, group: str, target: Any) -> None:
    """They are the first to go, so that the second target is met where it is the larger one; no mask sets them free."""
    if group == "model" and (name == "sparsegpt" or target == "2:4"):
        return
    job = apply(toy(tmp_path), "random", sparsity=0.5)
    before = dict(job.changes.state.masks)
    job.here = replace(job.here, seed=1)
    more = {"propagate": "dense"} if group == "model" and name == "wanda" else {}
    apply(job, name, sparsity=target, group=group, **more)
    gone = total = 0
    for matrix, mask in job.changes.state.masks.items():
        weight = job.model.net.get_parameter(matrix)
        assert not bool((mask & ~before[matrix]).any())
        assert torch.equal(weight == 0, ~mask)
        gone, total = gone + int((~mask).sum()), total + mask.numel()
    if target != "2:4":
        assert gone == pytest.approx(max(0.5, target) * total, abs=8)  # a matrix's count is whole


def test_random_units_of_a_model_come_from_every_site_alike(tmp_path: Path) -> None:
    """Numbers of one distribution: 250 units of two entries lose the share that 250 of two hundred lose."""
    net, structure = random_blocks((100, 250), towers={"vision": 1})
    small, small_structure = random_blocks((1, 250), towers={"text": 1})
    both = torch.nn.ModuleDict({"large": net, "small": small})
    sites = [s for t in (*structure.towers, *small_structure.towers) for b in t.blocks for s in b.sites]
    assert [s.entries_per_unit for s in sites] == [200, 2]
    importance = {s.name: pruner("random").importance(both, s, {}) for s in sites}
    joined = Structure((*structure.towers, *small_structure.towers))
    kept = ranked_units(joined, importance, 0.5, 1, additive=type(pruner("random")).additive)
    assert all(0.4 < len(one) / 250 < 0.6 for one in kept.values())


def test_random_follows_the_seed(tmp_path: Path) -> None:
    same = [apply(toy(tmp_path / str(i), seed), "random").changes.state.masks for i, seed in enumerate((0, 0, 1))]
    assert all(torch.equal(same[0][n], same[1][n]) for n in same[0])
    assert not any(torch.equal(same[0][n], same[2][n]) for n in same[0])


def test_taylor_of_a_unit_is_the_gradient_of_its_gate(tmp_path: Path) -> None:
    job = toy(tmp_path)
    method, net = pruner("taylor", **words("taylor")), job.model.net
    batch = job.data.calibration(8, 8)[0]
    seen = gradients(net, list(job.changes.structure.matrices), [(lambda: job.loss(batch), 8)])
    gates = Gates(net, job.changes.structure)
    job.loss(batch).backward()
    wanted = gates.take()
    gates.remove()
    for site in job.changes.structure.sites:
        found = method.importance(net, site, seen)
        assert torch.allclose(found, wanted[site.name].abs(), rtol=1e-5, atol=1e-9)


def test_taylor_and_obd_are_their_formulas(tmp_path: Path) -> None:
    job = toy(tmp_path)
    net, name = job.model.net, "1.fc2.weight"
    grads: list[Tensor] = []
    for batch in job.data.calibration(8, 1):
        net.zero_grad()
        job.loss(batch).backward()
        grads.append(net.get_parameter(name).grad.double().clone())  # type: ignore[union-attr]
    weight = net.get_parameter(name).detach().double()
    net.zero_grad()
    for method, score in (
        ("taylor", (weight * sum(grads) / 8).abs()),
        ("obd", weight**2 * sum(g**2 for g in grads) / 8),
    ):
        done = apply(toy(tmp_path / method), method, sparsity=0.5)
        lowest = score.flatten().argsort()[: score.numel() // 2]
        mask = torch.ones(score.numel(), dtype=torch.bool)
        mask[lowest] = False
        assert torch.equal(done.changes.state.masks[name], mask.view_as(score)), method


def test_the_mean_gradient_does_not_depend_on_batches(tmp_path: Path) -> None:
    masks = [apply(toy(tmp_path / str(b)), "taylor", gradient_batch=b).changes.state.masks for b in (1, 3, 8)]
    assert all(torch.equal(masks[0][n], other[n]) for other in masks[1:] for n in masks[0])


def test_retrieval_has_gradients_of_several_samples() -> None:
    """Its loss compares the samples of a batch: 0 for one alone, whose zeros would rank weights by their places."""
    for name in ("obd", "taylor"):
        options = pruner(name).options
        assert options.samples_a_gradient(compared=True) == 16
        told = pruner(name, gradient_batch=1).options
        assert told.refusal("classify") == ""
        assert "gradient_batch=1: the loss of match compares the samples of a batch" in told.refusal("match")
    assert pruner("obd").options.samples_a_gradient(compared=False) == 1
    assert pruner("obd").options.refusal("match") == ""


def test_a_loss_without_a_gradient_is_told(tmp_path: Path) -> None:
    job = toy(tmp_path)
    job.loss = lambda batch: 0 * job.model.net(batch.x).sum()  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="the loss of the calibration samples has no gradient at all"):
        apply(job, "obd")


def test_gradients_leave_no_trace(tmp_path: Path) -> None:
    job = toy(tmp_path)
    first = next(job.model.net.parameters())
    first.requires_grad_(False)
    before = {k: v.clone() for k, v in job.model.net.state_dict().items()}
    gradients(job.model.net, ["1.fc1.weight"], [(lambda: job.loss(job.data.calibration(2)[0]), 2)])
    assert all(p.grad is None for p in job.model.net.parameters())
    assert [p.requires_grad for p in job.model.net.parameters()] == [False] + [True] * 5
    assert all(torch.equal(v, before[k]) for k, v in job.model.net.state_dict().items())


def test_a_gradient_that_is_not_finite_is_told(tmp_path: Path) -> None:
    job = toy(tmp_path)
    job.data.inputs = job.data.inputs * float("inf")
    with pytest.raises(RunFailed, match=r"gradient of 0\.fc1\.weight is not finite"):
        apply(job, "obd")


def test_groups_rank_where_they_say(tmp_path: Path) -> None:
    """A tower of small weights loses more than its share where the model is ranked as one, and no more by tower."""
    found = {}
    for group in ("matrix", "tower", "model"):
        job = toy(tmp_path / group, vision=1, text=2)
        job.model.net.get_parameter("0.fc1.weight").data.mul_(1e-6)
        apply(job, "magnitude", group=group)
        found[group] = zeros(job.model.net, job.changes.structure)
    assert set(found["matrix"].values()) == {0.5}
    assert found["tower"]["0.fc1.weight"] == 1.0
    assert found["tower"]["0.fc2.weight"] == 0.0
    assert found["model"]["0.fc1.weight"] > 0.9
    sizes = {n: s[0] * s[1] for n, s in job.changes.structure.matrices.items()}
    assert sum(found["model"][n] * sizes[n] for n in sizes) == int(0.5 * sum(sizes.values()))


@pytest.mark.parametrize("pattern", ["unstructured", "structured"])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "taylor"])
def test_towers_have_their_ratios(tmp_path: Path, name: str, pattern: str) -> None:
    """vision=0 leaves vision alone, bit for bit."""
    job = toy(tmp_path, vision=1, text=2)
    before = job.model.net.get_parameter("0.fc1.weight").detach().clone()
    size = job.changes.structure.size
    apply(job, name, pattern=pattern, vision=0, language=0.5)
    assert torch.equal(job.model.net.get_parameter("0.fc1.weight"), before)
    left = sum(int(p.count_nonzero()) for p in job.model.net.parameters())
    assert size - left == 0.5 * (2 * 12 * 16 + 2 * 8 * 16)


@pytest.mark.parametrize("allocation", ["ecoflap", "ecoflap-zeroth"])
def test_ecoflap_moves_ratios_and_keeps_the_target(tmp_path: Path, allocation: str) -> None:
    job = apply(toy(tmp_path), "wanda", allocation=allocation, sparsity=0.5)
    found = zeros(job.model.net, job.changes.structure)
    sizes = {n: s[0] * s[1] for n, s in job.changes.structure.matrices.items()}
    told = job.changes.state.log["wanda"]["ratios"]
    assert len({round(found[f"{i}.fc1.weight"], 2) for i in range(3)}) > 1
    assert all(abs(found[n] - told[n]) < 1 / 8 for n in sizes)  # a row's count is whole
    assert sum(told[n] * sizes[n] for n in sizes) == pytest.approx(0.5 * sum(sizes.values()), abs=1)
    assert max(told.values()) <= 0.6 + 1e-9


def test_damaged_inputs_and_missing_samples_are_told(tmp_path: Path) -> None:
    job = toy(tmp_path)
    job.data.inputs = job.data.inputs * float("nan")
    with pytest.raises(RunFailed, match=r"the inputs of 0\.fc1\.weight \(block 0\) are not finite"):
        apply(job, "wanda")


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "obd"])
def test_widths_without_the_pattern_are_refused_before_anything(tmp_path: Path, name: str) -> None:
    net, structure = random_blocks((16, 6))
    job = ToyJob(net, structure, torch.randn(2, 3, 16), tmp_path)
    with pytest.raises(UserError, match=r"divisible by 4; these are not: 0\.fc2\.weight \(6 columns\)"):
        pruner(name, sparsity="2:4").apply(job)
    assert job.losses == 0


def test_a_pattern_the_method_has_not_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = pruner("magnitude", pattern="structured")
    monkeypatch.setattr(type(method), "patterns", ("unstructured",))
    with pytest.raises(UserError, match="magnitude does not make pattern=structured: it makes unstructured"):
        method.apply(toy(tmp_path))


# A real language model ------------------------------------------------------------------------------------------------

TEXT = """Once upon a time there was a little girl named Anna. She had a small red boat and a big brown dog. One day she
went to the lake with her dog. The sun was warm and the water was blue. "Look, the boat can swim," said Anna. The dog
wanted to play too, so he jumped into the lake. The boat began to rock, and a wave carried it away. Anna was sad. She
sat down on the grass and cried. Then the dog swam out, took the boat in his mouth and brought it back. Anna was very
happy. She hugged the dog and gave him a big bone. They went home together, and her mom made a cake for them. """
MORE = """Tom liked to climb trees. In the garden there was a tall old tree with many apples. His sister Mia was too
small to climb. "I want an apple," she said. Tom went up and up until he saw a red apple. He reached out his hand, but
the branch was thin and it began to bend. "Be careful!" said Mia. Tom was scared and held on to the tree. Their dad
heard them and ran to get a long ladder. He helped Tom to come down. Tom gave the apple to Mia and they shared it. From
that day on they always asked dad to help them when they wanted apples from the tall tree. """


class Story:
    """The 260 K-parameter Llama of TinyStories; calibrated on one text of ours, read on another."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, LlamaForCausalLM

        self.folder = folder
        self.net = LlamaForCausalLM.from_pretrained(folder).eval()
        words = AutoTokenizer.from_pretrained(folder)
        ids = words(TEXT, return_tensors="pt").input_ids
        self.samples = ids[0, : ids.shape[1] // 16 * 16].view(-1, 16)
        self.read = words(MORE, return_tensors="pt").input_ids

    def job(self, folder: Path) -> ToyJob:
        from vlbench.nn import llama
        from vlbench.structure import Structure

        structure = Structure((llama.tower(llama.adopt(self.net)),))
        job = ToyJob(self.net, structure, self.samples, folder)
        job.loss = lambda batch: self.net(batch.x, labels=batch.x, use_cache=False).loss  # type: ignore[method-assign]
        return job

    def perplexity(self) -> float:
        with torch.no_grad():
            return float(self.net(self.read, labels=self.read, use_cache=False).loss.exp())


@pytest.mark.slow
def test_perplexity_of_a_real_language_model(shared: Path, tmp_path: Path) -> None:
    """Every pruner hurts the more the more it takes, and those that look at inputs hurt less than magnitude."""
    weights = there(shared / "data" / "weights_stories260k" / "hf")
    found: dict[str, dict[float, float]] = {}
    for name in NAMES:
        found[name] = {0: Story(weights).perplexity()}
        for sparsity in (0.3, 0.5, 0.7):
            story = Story(weights)
            more = {"calibration_samples": len(story.samples)} if words(name) else {}
            torch.manual_seed(0)
            pruner(name, sparsity=sparsity, **more).apply(story.job(tmp_path / f"{name}{sparsity}"))
            found[name][sparsity] = story.perplexity()
    print({n: {s: round(p, 1) for s, p in one.items()} for n, one in found.items()})
    for one in found.values():
        assert list(one.values()) == sorted(one.values())
    for name in ("wanda", "sparsegpt"):
        assert found[name][0.5] < found["magnitude"][0.5] < found["random"][0.5]
