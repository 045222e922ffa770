"""Scenes of the mini world: pinned pixels, the areas of shapes by formula, objects that stay visible."""

import hashlib
from itertools import product

import numpy as np
import pytest

from vlbench.mini.render import label_map, object_map, render
from vlbench.mini.scenes import COLORS, RADII, SHAPES, SPLITS, Draws, Scene, Thing, salient_scene, scene

# Made once and read by eye on a contact sheet; they change only with WORLD_VERSION.
PINNED_PIXELS = {
    "scene": "efb09e7607ff3e06bdbc87f1c553b2f420c86b35186e1ea2bf692b14db85c625",
    "salient": "6565b23902a6f5ac617b885072a01790ff6266197efa4a4d662e6caf4f8594d6",
}


def pixel_digest(scenes: list[Scene]) -> str:
    return hashlib.sha256(b"".join(render(each).tobytes() for each in scenes)).hexdigest()


def test_pixels_are_pinned() -> None:
    assert pixel_digest([scene("val", index) for index in range(40)]) == PINNED_PIXELS["scene"]
    salient = [salient_scene("val", index, *looks) for index, looks in enumerate(product(SHAPES, COLORS))]
    assert pixel_digest(salient) == PINNED_PIXELS["salient"]


def test_scenes_are_independent_of_order() -> None:
    backwards = [scene("train", index) for index in reversed(range(30))]
    assert backwards[::-1] == [scene("train", index) for index in range(30)]
    assert scene("train", 3) != scene("val", 3)


def test_draws_follow_their_weights() -> None:
    draws = Draws(99)
    picks = [draws.weighted("abc", (1, 0, 3)) for _ in range(4000)]
    assert picks.count("b") == 0
    assert picks.count("c") / len(picks) == pytest.approx(0.75, abs=0.03)
    assert {draws.between(-1, 1) for _ in range(100)} == {-1, 0, 1}


def visible_share(picture: Scene, number: int, thing: Thing) -> float:
    """Pixels of an object that no other covers, over those it has when alone."""
    alone = Scene((thing,), picture.ground)
    return float((object_map(picture) == number).sum() / (object_map(alone) == 1).sum())


def test_every_object_stays_visible() -> None:
    for index in range(200):
        picture = scene("train", index)
        assert 2 <= len(picture.objects) <= 5
        for number, thing in enumerate(picture.objects, start=1):
            assert thing.radius in RADII[thing.size]
            assert visible_share(picture, number, thing) > 0.8


def test_salient_object_is_the_only_large_one_and_shows() -> None:
    for index, (shape, color) in enumerate(product(SHAPES, COLORS)):
        picture = salient_scene("train", index, shape, color)
        large = [thing for thing in picture.objects if thing.size == "large"]
        assert [(thing.shape, thing.color) for thing in large] == [(shape, color)]
        assert visible_share(picture, 1, large[0]) > 0.7


@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi), ("square", 4 * 0.86**2), ("cross", 2.2576)])
@pytest.mark.parametrize("tilt", [-1, 0, 1])
def test_stencils_have_the_area_of_their_shape(shape: str, share: float, tilt: int) -> None:
    thing = Thing(shape, "red", "large", 32, 32, 11, tilt, (255, 0, 0))
    pixels = (object_map(Scene((thing,), scene("train", 0).ground)) == 1).sum()
    assert pixels == pytest.approx(share * 11**2, rel=0.04)


def test_label_map_leaves_out_what_is_covered() -> None:
    ground = scene("train", 0).ground
    below = Thing("square", "red", "large", 28, 28, 11, 0, (255, 0, 0))
    above = Thing("circle", "blue", "large", 36, 28, 11, 0, (0, 0, 255))
    labels = label_map(Scene((below, above), ground), 9, (3, 4))
    assert labels[28, 20:24].tolist() == [3] * 4
    assert labels[28, 30:40].tolist() == [4] * 10
    assert labels[0, 0] == 9
    assert 0 in labels[20, 24:36]  # where the rim of the one crosses the other


def test_no_two_worlds_share_a_picture() -> None:
    streams = (0, 4, 5, 6, 7, 10, 11, 12)
    keys = list(product(streams, SPLITS, range(15)))
    assert len({render(scene(split, index, stream)).tobytes() for stream, split, index in keys}) == len(keys)
