"""Oracle: cuts and masks made by hand, of which the fractions are known, and the published heat map's own numbers."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plots.finished import finished, mini_model
from vlbench.leaderboard.published import load_heat_map
from vlbench.plots.kept import measured, published
from vlbench.plots.retained import by_component, by_layer, retained
from vlbench.plots.runs import open_run, series


def quarter_of_attention(site):
    return site.units // 4 if site.kind == "attention" else site.units


def test_a_cut_keeps_its_units(tmp_path):
    finished(tmp_path / "run", keep=quarter_of_attention)
    sites = retained(tmp_path / "run" / "model")
    assert len(sites) == len(mini_model().structure().sites)
    for site in sites:
        assert site.fraction == (0.25 if "attention" in site.component else 1.0)
    assert by_component(sites) == {
        "vision attention": 0.25, "vision FFN": 1.0, "text attention": 0.25, "cross-attention": 0.25, "text FFN": 1.0,
    }  # fmt: skip


def test_rows_and_layers_are_those_of_the_structure(tmp_path):
    finished(tmp_path / "run", keep=lambda site: site.units // 2 if site.name == "text.1.cross0" else site.units)
    field = by_layer([retained(tmp_path / "run" / "model")])
    assert {place for place, value in field.items() if value < 1} == {("text.cross0", 1)}
    assert field["text.cross0", 1] == 0.5
    assert {row for row, _ in field} == {cell.row for cell in load_heat_map()}  # so that they can be set side by side


def test_masks_of_a_cut_model_count_too(tmp_path):
    sites = {site.name: site for site in mini_model().structure().sites}
    matrix = next(shape for param, shape in sites["vision.0.ffn"].matrices.items() if param.endswith("fc1.weight"))
    name = next(param for param in sites["vision.0.ffn"].matrices if param.endswith("fc1.weight"))
    mask = torch.ones(matrix[0] // 2, matrix[1], dtype=torch.bool)
    mask[::4] = False  # a quarter of what the cut leaves
    finished(tmp_path / "run", keep=lambda site: site.units // 2, masks={name: mask})
    site = next(s for s in retained(tmp_path / "run" / "model") if (s.row, s.layer) == ("vision.ffn", 0))
    whole = sum(math.prod(shape) for shape in sites["vision.0.ffn"].matrices.values())
    assert site.entries == whole
    assert site.kept == whole // 2 - matrix[0] // 2 * matrix[1] // 4


def test_seeds_are_averaged_and_targets_kept_apart(tmp_path):
    finished(tmp_path / "a", keep=lambda site: site.units // 2, seed=0)
    finished(tmp_path / "b", keep=lambda site: site.units // 4, seed=1)
    finished(tmp_path / "c", sparsity=0.75, keep=lambda site: site.units // 4)
    finished(tmp_path / "other", keep=lambda site: site.units, evaluation={"order": "x"})
    found = series(open_run(tmp_path / name) for name in ["c", "a", "b", "other"])
    assert [[run.folder.name for run in one.runs] for one in found] == [["a", "b", "c"], ["other"]]
    first, second = measured(found[0]).targets
    assert (first.target, first.components["vision FFN"]) == ("0.5", 0.375)
    assert (second.target, second.components["vision FFN"]) == ("0.75", 0.25)


def test_two_sets_of_options_get_two_names(tmp_path):
    finished(tmp_path / "a")
    finished(tmp_path / "b", evaluation={"order": "other"})
    names = [one.name for one in series([open_run(tmp_path / "a"), open_run(tmp_path / "b")])]
    assert len(set(names)) == 2
    assert all(name.startswith("mini-nlvr2-blip-nlvr-mini-upop-") for name in names)


def test_the_published_heat_map_is_the_figures():
    """The recorded figure says: at 2x the first layer of the ViT keeps 77 % of its attention, the second 9 %."""
    (panel,) = published("nlvr2")
    assert [one.target for one in panel.targets] == ["2x", "3x", "4x", "5x", "10x"]
    assert panel.targets[0].layers["vision.attention", 0] == 0.77
    assert panel.targets[0].layers["vision.attention", 1] == 0.09
    assert panel.targets[2].gone == pytest.approx(0.75)
    assert all(len(one.layers) == 72 for one in panel.targets)
    assert published("imagenet") == []
