"""Grid search: its candidates, its choice on the select split, what it counts, and its resume."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.methods.killed import killed_and_resumed, same_weights
from tests.pruning.toy import random_blocks
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.images.pipeline import on_device
from vlbench.job import Job
from vlbench.machine.ui import Screen
from vlbench.plugins.table import forget, table

grids = importlib.import_module("vlbench.methods.grid")
SIZES = {"vision": 3 * 2 * 8 * 40, "language": 2 * 8 * 60}  # entries of the two towers below


def options(**words: Any) -> Any:
    return grids.GridOptions.model_validate(words)


def two_towers() -> Any:
    """Three blocks of 40 neurons in vision, one of 60 in language, width 8."""
    return random_blocks((8, 40), (8, 40), (8, 40), (8, 60), towers={"vision": 3, "text": 1})[1]


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75, 0.9])
def test_every_candidate_meets_the_target(target: float) -> None:
    found = grids.grid(two_towers(), options(sparsity=target, points=7))
    total = sum(SIZES.values())
    for one in found:
        assert sum(one[name] * SIZES[name] for name in SIZES) == pytest.approx(target * total)
        assert all(-1e-12 <= ratio <= most for ratio, most in zip(one.values(), (1 - 1 / 40, 1 - 1 / 60), strict=True))
        assert abs(one["vision"] - target) <= 0.3 + 1e-12
    gaps = {round(b["vision"] - a["vision"], 9) for a, b in pairwise(found)}
    assert len(gaps) == 1
    assert min(gaps) > 0


def test_the_ends_are_as_far_as_the_target_allows() -> None:
    found = grids.grid(two_towers(), options(sparsity=0.5, width=0.9))
    # Vision is twice language: with all but one of the 60 neurons of language gone, vision has to lose the rest.
    assert found[0] == pytest.approx({"vision": (0.5 * 2880 - (59 / 60) * 960) / 1920, "language": 59 / 60})
    assert found[-1] == pytest.approx({"vision": 0.75, "language": 0.0})


def test_a_part_is_cut_evenly_and_whole_units_meet_the_target() -> None:
    structure = two_towers()
    score = {s.name: torch.arange(s.units, dtype=torch.float32) for s in structure.sites}
    for number, one in enumerate(grids.grid(structure, options(sparsity=0.55))):
        keep = grids.spread(structure, score, one, options(sparsity=0.55))
        assert len({len(keep[s.name]) for s in structure.sites if s.modality == "vision"}) == 1
        left = sum(s.entries_per_unit * len(keep[s.name]) for s in structure.sites)
        # Half a neuron of the second part; at the ends, where it has nothing to give, of every site of the first.
        assert abs(left - 0.45 * 2880) <= (8 if 0 < number < 4 else 3 * 8)
        assert all(kept.tolist() == list(range(len(score[n]) - len(kept), len(score[n]))) for n, kept in keep.items())


def test_a_model_of_one_modality_is_told_the_other_parts() -> None:
    structure = random_blocks((8, 40), towers={"vision": 1})[1]
    with pytest.raises(UserError, match="by=modality only vision: write by=kind"):
        grids.grid(structure, options())


# Whole runs ----------------------------------------------------------------------------------------------------------

WORDS = {"grid_search.points": "3", "grid_search.steps": "2", "grid_search.lr": "1e-3"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    forget()
    return Workshop(table("methods").get("grid_search"), tmp_path_factory.mktemp("work"), Screen(quiet=True))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, Job]]:
    """Who was judged, and the values they are given: 1, 3, 2 and so on."""
    seen: list[tuple[float, Job]] = []

    def judge(job: Job) -> float:
        seen.append(((1.0, 3.0, 2.0)[len(seen) % 3], job))
        return seen[-1][0]

    monkeypatch.setattr(Job, "evaluate_select", judge)
    return seen


def kept_of(outcome: Outcome) -> dict[str, int]:
    return {s.name: s.units for s in outcome.model.structure().sites}


def test_the_best_on_select_goes_on_and_all_are_counted(workshop: Workshop, judged: list[tuple[float, Job]]) -> None:
    outcome = workshop.run(WORDS)
    structure = workshop.model().structure()
    chosen = grids.grid(structure, options(points=3, by="kind"))[1]
    for site in structure.sites:
        left = kept_of(outcome)[site.name]
        assert left == pytest.approx(site.units * (1 - chosen[site.kind]), abs=1), site.name
    best = judged[1][1].model.net.state_dict()
    assert all(torch.equal(value, best[key]) for key, value in outcome.model.net.state_dict().items())
    log = outcome.state.log["grid_search"]
    assert (outcome.state.steps, outcome.state.samples_seen, outcome.state.trained) == (6, 48, True)
    assert (log["chosen"], [one["top1"] for one in log["candidates"]]) == (1, [1.0, 3.0, 2.0])
    assert log["evaluated_on_select"] == 3 * len(judged[0][1].data.samples("select"))
    assert not any(job.here.folder.exists() for _, job in judged)


def test_candidates_start_from_the_dense_weights(workshop: Workshop, judged: list[tuple[float, Job]]) -> None:
    """Untrained, the chosen one is the dense model cut: no candidate has left anything behind."""
    outcome = workshop.run({**WORDS, "grid_search.steps": "0"})
    dense = workshop.model()
    job = workshop.job(Outcome(dense, Compression(), 0), 0)
    job.changes.cut({n: torch.tensor(kept) for n, (_, kept) in outcome.state.cuts[0].sites.items()})
    assert all(torch.equal(v, dense.net.state_dict()[k]) for k, v in outcome.model.net.state_dict().items())
    assert (outcome.state.steps, outcome.state.trained) == (0, False)


def test_lower_may_be_better(
    workshop: Workshop, judged: list[tuple[float, Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(workshop.task), "metrics", {workshop.task.metric: "lower"})
    assert workshop.run(WORDS).state.log["grid_search"]["chosen"] == 0


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_killed_grid_goes_on_where_it_was(
    workshop: Workshop, judged: list[tuple[float, Job]], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = workshop.run(WORDS)
    judged.clear()
    again = killed_and_resumed(workshop, WORDS, monkeypatch, after=after)
    assert same_weights(whole, again)
    assert whole.state == again.state
    assert len(judged) == 3, "a finished candidate is not judged again"


def test_the_value_is_the_primary_metric_of_the_select_split(workshop: Workshop) -> None:
    model = workshop.model()
    job = workshop.job(Outcome(model, Compression(), 0), 0)
    samples = job.data.samples("select")
    assert {s.id for s in samples}.isdisjoint(s.id for s in job.data.samples("train"))
    right = 0
    with torch.inference_mode():
        for sample in samples:
            images = on_device(
                job.data.images.load(list(sample.images)), job.data.images.spec, model.device, torch.float32
            )
            logits = model.logits(model.encode(images))  # type: ignore[attr-defined]
            right += model.classes[int(logits.argmax())] == sample.target  # type: ignore[attr-defined]
    assert job.evaluate_select() == pytest.approx(100 * right / len(samples))
