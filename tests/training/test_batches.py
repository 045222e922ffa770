"""Training batches: a function of (seed, step), images of a batch together."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlbench.errors import RunFailed
from vlbench.images.maps import IGNORED, LabelMap
from vlbench.images.pipeline import ImageStore
from vlbench.images.spec import ImageSpec
from vlbench.task import Sample
from vlbench.training.batches import Batches, collate, crops, divided


class Numbered:
    """An image store in which the image of file N is grey N."""

    spec = ImageSpec(2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def load(self, paths: list[Path]) -> list[Tensor]:
        self.sizes = dict.fromkeys(paths, (2, 2))
        return [torch.full((3, 2, 2), int(p.name), dtype=torch.uint8) for p in paths]


STORE = cast(ImageStore, Numbered())


def samples(per_image: list[int]) -> list[Sample]:
    return [Sample(f"{i}.{j}", (Path(str(i)),)) for i, count in enumerate(per_image) for j in range(count)]


def stream(size: int = 6, seed: int = 0, per_image: int = 4, counts: list[int] | None = None) -> Batches:
    return Batches(samples(counts or [3, 1, 6, 2, 5, 4, 1]), STORE, size=size, seed=seed, per_image=per_image)


def ids(batches: Batches, steps: range) -> list[list[str]]:
    return [[s.id for s in batches.at(step).samples] for step in steps]


def test_a_step_is_the_same_whatever_came_before() -> None:
    expected = ids(stream(), range(20))
    assert [ids(stream(), range(t, t + 1))[0] for t in range(19, -1, -1)] == expected[::-1]
    torch.manual_seed(5)
    assert ids(stream(), range(20)) == expected
    assert ids(stream(seed=1), range(20)) != expected


def test_epochs_differ_and_hold_no_sample_twice() -> None:
    batches = stream()
    n = batches.batches_per_epoch
    first, second = ([i for batch in ids(batches, range(e * n, (e + 1) * n)) for i in batch] for e in (0, 1))
    assert first != second
    assert len(set(first)) == len(first)


def test_a_batch_has_whole_images_up_to_its_size() -> None:
    batches = stream()
    for step in range(30):
        batch = batches.at(step)
        assert 0 < len(batch.samples) <= 6
        owners = batch.owner[:, 0].tolist()
        assert owners == sorted(owners)
        assert max(owners.count(o) for o in owners) <= 4
        grey = [round(float(batch.images[o, 0, 0, 0]) * 255) for o in owners]
        assert grey == [int(s.images[0].name) for s in batch.samples]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_batch_is_larger_than_asked(size: int) -> None:
    assert max(len(b) for b in ids(stream(size=size), range(30))) == size


def test_few_samples_are_one_batch_again_and_again() -> None:
    batches = stream(size=64)
    assert batches.batches_per_epoch == 1
    assert sorted(ids(batches, range(1))[0])[:1] == sorted(ids(batches, range(9, 10))[0])[:1]


@pytest.mark.parametrize("size", [1, 5, 6, 64])
def test_samples_that_were_seen_are_counted_one_by_one(size: int) -> None:
    """Batches that are not full, and epochs of other numbers of samples."""
    steps = range(23)
    assert stream(size=size).seen(len(steps)) == sum(len(batch) for batch in ids(stream(size=size), steps))
    assert stream(size=64).seen(3) < 3 * 64


def test_an_image_of_two_samples_is_decoded_once() -> None:
    paths = [Path("4"), Path("7")]
    pairs = [Sample("a", (paths[0], paths[1])), Sample("b", (paths[1], paths[0])), Sample("c", (paths[1], paths[1]))]
    batch = collate(pairs, STORE, torch.device("cpu"), {"k": 1})
    assert batch.owner.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert len(batch.images) == 2
    assert batch.options == {"k": 1}


def test_a_training_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    """Training cannot leave it out, so that the run ends with a sentence."""
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    rows = [Sample(n, (tmp_path / n,)) for n in ("good.png", "bad.png")]
    with pytest.raises(RunFailed, match=r"bad\.png does not decode"):
        Batches(rows, ImageStore(ImageSpec(8)), size=2, seed=0).at(0)


def test_a_crop_and_its_map_are_of_one_place_and_what_lies_outside_has_no_class(tmp_path: Path) -> None:
    """An image of 6 x 12 whose map is its red; crops of 8 x 8 leave two rows outside."""
    red = np.arange(72, dtype=np.uint8).reshape(6, 12)
    Image.fromarray(red, mode="L").save(tmp_path / "map.png")
    image = torch.zeros(3, 6, 12, dtype=torch.uint8)
    image[0] = torch.from_numpy(red)
    path, spec = tmp_path / "image.png", ImageSpec(8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    rows = [Sample("a", (path,), target=LabelMap(tmp_path / "map.png"))]
    lefts = set()
    for seed in range(9):
        pixels, maps = crops(rows, {path: image}, spec, np.random.default_rng(seed))
        assert maps is not None
        assert torch.equal((pixels[0, 0, :6] * 255).round().long(), maps[0, :6])
        assert bool((maps[0, 6:] == IGNORED).all())
        assert not bool(pixels[0, :, 6:].any())
        lefts.add(int(maps[0, 0, 0]))
    assert len(lefts) > 1


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("listed", [False, True])
def test_parts_of_a_batch_have_its_samples_once_and_their_own_images(parts: int, listed: bool) -> None:
    rows = samples([2, 1, 2])
    batch = collate([rows[i] for i in (0, 1, 2, 4, 3)], STORE, torch.device("cpu"))
    batch.maps = torch.arange(5 * 4).view(5, 2, 2)
    if listed:
        batch.images = list(batch.images)
    found = divided(batch, parts)
    assert len(found) == min(parts, 5)
    assert [s.id for part in found for s in part.samples] == [s.id for s in batch.samples]
    assert max(len(p.samples) for p in found) - min(len(p.samples) for p in found) <= 1
    assert torch.equal(torch.cat([p.maps for p in found if p.maps is not None]), batch.maps)
    for part in found:
        assert len(part.images) == len(part.sizes) == len({s.images[0] for s in part.samples})
        for sample, (row,) in zip(part.samples, part.owner.tolist(), strict=True):
            assert round(float(part.images[row][0, 0, 0]) * 255) == int(sample.images[0].name)
