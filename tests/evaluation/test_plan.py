"""The batch plan: a function of the split and the size alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from vlbench.evaluation.plan import batch_plan
from vlbench.task import Sample


def split(images: int = 40) -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample(f"{i}.{j}", (Path(f"{i}.png"),), text=" ".join(["word"] * draw.randint(1, 12)))
        for i in range(images)
        for j in range(draw.randint(1, 5))
    ]


@pytest.mark.parametrize("size", [1, 4, 16, 1000])
def test_every_sample_once_and_every_image_in_one_batch(size: int) -> None:
    samples = split()
    plan = batch_plan(samples, size)
    assert sorted(s.id for batch in plan for s in batch) == sorted(s.id for s in samples)
    images = [image for batch in plan for image in {s.images for s in batch}]
    assert len(images) == len(set(images))
    for batch in plan:
        assert len(batch) <= size or len({s.images for s in batch}) == 1


def test_it_is_the_same_every_time() -> None:
    assert batch_plan(split(), 16) == batch_plan(split(), 16)


def test_texts_of_a_length_come_together() -> None:
    longest = [max(len(s.text.split()) for s in batch) for batch in batch_plan(split(), 8)]
    assert longest == sorted(longest)


def test_no_samples_no_batches() -> None:
    assert batch_plan([], 8) == []


def test_samples_of_several_images_are_grouped_by_all_of_them() -> None:
    pair = (Path("a.png"), Path("b.png"))
    plan = batch_plan([Sample("1", pair), Sample("2", pair[::-1]), Sample("3", pair)], 2)
    assert [[s.id for s in batch] for batch in plan] == [["1", "3"], ["2"]]
