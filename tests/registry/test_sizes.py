"""Oracle: sizes of the published models, counted from their configurations: billions, as their cards say."""

from __future__ import annotations

from typing import Any

import pytest

from vlbench.cost.architecture import with_blank
from vlbench.plugins.table import table

# name -> parameters in all, and in the prunable set of the vision tower and of the language model
SIZES = {
    "qwen2.5-vl-3b": (3.755, 0.630, 2.775),
    "qwen2.5-vl-7b": (8.292, 0.630, 6.525),
    "qwen3-vl-2b": (2.128, 0.302, 1.409),
    "qwen3-vl-4b": (4.438, 0.302, 3.633),
    "qwen3-vl-8b": (8.767, 0.411, 6.946),
    "internvl3-1b": (0.938, 0.302, 0.358),
    "internvl3-2b": (2.089, 0.302, 1.310),
    "internvl3-8b": (7.944, 0.302, 6.525),
    "llava-onevision-0.5b": (0.894, 0.396, 0.358),
    "llava-onevision-7b": (8.031, 0.396, 6.525),
    "llave-0.5b": (0.894, 0.396, 0.358),
    "llave-7b": (8.031, 0.396, 6.525),
    "llava-1.6-mistral-7b": (7.567, 0.289, 6.979),
    "gemma-3-4b": (4.300, 0.411, 3.209),
    "gemma-3-12b": (12.187, 0.411, 10.758),
    "paligemma2-3b": (3.032, 0.411, 2.024),
    "paligemma2-10b": (9.663, 0.411, 8.324),
    "smolvlm2-256m": (0.2565, 0.085, 0.1062),
    "smolvlm2-500m": (0.507, 0.085, 0.3146),
    "smolvlm2-2.2b": (2.247, 0.411, 1.611),
    "idefics3-8b": (8.462, 0.411, 6.979),
}


# name -> millions of parameters in all, without DINO's linear head
TOWERS = {
    "siglip2-base-224": 375, "siglip2-so400m-384": 1136, "dinov2-small": 22, "dinov2-base": 87, "dinov2-large": 304,
    "dinov2-giant": 1136, "dinov3-vits16": 22, "dinov3-vitb16": 86, "dinov3-vitl16": 303, "dinov3-vith16plus": 841,
}  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_encoders_have_the_published_size(name: str) -> None:
    """Published as whole millions."""

    def count(model: Any) -> float:
        return sum(p.numel() for p in getattr(model.net, "backbone", model.net).parameters()) / 1e6

    assert round(with_blank(table("models").get(name), count)) == TOWERS[name]


@pytest.mark.parametrize("name", SIZES)
def test_an_architecture_without_weights_has_the_published_size(name: str) -> None:
    def count(model: Any) -> tuple[float, dict[str, int]]:
        return sum(p.numel() for p in model.net.parameters()) / 1e9, model.structure().tower_sizes()

    total, towers = with_blank(table("models").get(name), count)
    want, vision, language = SIZES[name]
    assert total == pytest.approx(want, rel=1e-3)
    assert towers["vision"] / 1e9 == pytest.approx(vision, rel=2e-3)
    assert towers["language"] / 1e9 == pytest.approx(language, rel=1e-3)
