"""Sliding windows: which pixels each sees, what is averaged, and how much is computed at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlbench.errors import UserError
from vlbench.evaluation import windows
from vlbench.evaluation.windows import Sliding, anchors, at_least, averaged, best, class_maps, sliding_logits, views

CLASSES = 5


class Colours:
    """A model whose logits are a function of each pixel's colour, coarse by a factor, and of its place."""

    def __init__(self, coarse: int = 1, *, local: bool = False) -> None:
        self.coarse, self.local = coarse, local
        self.batches: list[int] = []
        self.weight = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(0))

    def masks(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        logits = torch.einsum("cd,ndhw->nchw", self.weight.to(images.dtype), images)
        if self.local:
            logits = logits + torch.linspace(-1, 1, images.shape[2], dtype=images.dtype)[None, None, :, None]
        return F.avg_pool2d(logits, self.coarse)

    def spread(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(masks, size=size, mode="bilinear")


def picture(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("size", "window", "stride", "tops", "lefts"),
    [
        ((70, 90), 32, 24, [0, 24, 38], [0, 24, 48, 58]),
        ((32, 64), 32, 32, [0], [0, 32]),  # no window twice where the stride fits
        ((33, 65), 32, 32, [0, 1], [0, 32, 33]),
        ((32, 32), 32, 7, [0], [0]),
    ],
)
def test_anchors(size: tuple[int, int], window: int, stride: int, tops: list[int], lefts: list[int]) -> None:
    assert anchors(size, window, stride) == [(top, left) for top in tops for left in lefts]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((61, 47), (62, 48)), ((47, 61), (48, 62)), ((20, 20), (48, 48)), ((48, 90), (48, 90)), ((90, 47), (91, 48))],
)
def test_images_smaller_than_a_window_are_enlarged(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert at_least(picture(*size), 48).shape[1:] == wanted


@pytest.mark.parametrize("coarse", [1, 4])
def test_a_pixelwise_model_gives_the_same_in_every_window(coarse: int) -> None:
    image = picture(32, 44)
    found = next(sliding_logits(Colours(1), [image], Sliding(16, 12)))
    assert torch.allclose(found, Colours(1).masks(image[None])[0])
    assert next(sliding_logits(Colours(coarse), [image], Sliding(16, 12))).shape == (CLASSES, 32, 44)


def test_overlapping_windows_are_averaged() -> None:
    """Rows 8 to 11 are seen by two windows, at different places of each."""
    model, image = Colours(local=True), picture(20, 12)
    found = next(sliding_logits(model, [image], Sliding(12, 8)))
    top, bottom = (model.masks(image[None, :, i : i + 12])[0] for i in (0, 8))
    assert torch.allclose(found[:, :8], top[:, :8])
    assert torch.allclose(found[:, 8:12], (top[:, 8:] + bottom[:, :4]) / 2)
    assert torch.allclose(found[:, 12:], bottom[:, 4:])


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_windows_of_several_images_go_together(at_once: int) -> None:
    images = [picture(20, 12, 1), picture(12, 30, 2), picture(9, 7, 3), picture(12, 12, 4)]
    model = Colours(2, local=True)
    apart = [next(sliding_logits(Colours(2, local=True), [image], Sliding(12, 8))) for image in images]
    together = list(sliding_logits(model, iter(images), Sliding(12, 8, at_once=at_once)))
    assert len(together) == len(apart)
    for one, other in zip(together, apart, strict=True):
        assert torch.allclose(one, other)
    total = 2 + 4 + 2 + 1  # 9 x 7 becomes 15 x 12
    full, rest = divmod(total, at_once)
    assert model.batches == [at_once] * full + ([rest] if rest else [])


def test_one_view_needs_no_softmax() -> None:
    image, how = picture(24, 30), Sliding(16, 8)
    found = next(class_maps(Colours(2), [image], [(50, 61)], how))
    logits = next(sliding_logits(Colours(2), [image], how))
    assert found.dtype == torch.uint8
    assert torch.equal(found, F.interpolate(logits[None], size=(50, 61), mode="bilinear")[0].argmax(0).byte())
    assert torch.equal(found, averaged([logits], [False], (50, 61)).argmax(0).byte())


def test_classes_are_compared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the parts; the first of equal classes is the one."""
    logits = torch.randn(7, 6, 8, generator=torch.Generator().manual_seed(5))
    logits[5] = logits[2] = logits.amax(0)
    whole = best(logits, (9, 11))
    for classes in (1, 2, 3, 6):
        monkeypatch.setattr(windows, "NUMBERS", classes * 99)
        assert torch.equal(best(logits, (9, 11)), whole)
    assert 5 not in whole.unique()


def test_views_and_their_average() -> None:
    image, how, model = picture(24, 31), Sliding(16, 16, (0.5, 1.0), flip=True), Colours(local=True)
    shown = list(views(image, how))
    assert [tuple(v.shape[1:]) for v in shown] == [(12, 16), (12, 16), (24, 31), (24, 31)]
    assert torch.equal(shown[2], image)
    assert torch.equal(shown[3].flip(2), image)
    # Every second pixel's neighbours, no wider (15.5 rounds to 16): cv2's rule, without antialiasing.
    assert torch.allclose(shown[0][:, 0, 0], F.interpolate(image[None], size=(12, 16), mode="bilinear")[0, :, 0, 0])
    mirrored = [False, True, False, True]
    total = torch.zeros(CLASSES, 20, 33, dtype=torch.float64)
    for view, back in zip(shown, mirrored, strict=True):
        logits = next(sliding_logits(model, [view], how))
        found = F.interpolate(logits[None], size=(20, 33), mode="bilinear")[0]
        total += (found.flip(2) if back else found).softmax(0) / 4
    found = averaged(sliding_logits(model, shown, how), mirrored, (20, 33))
    assert torch.allclose(found, total)
    maps = list(class_maps(model, [image, image.flip(1)], [(20, 33), (24, 31)], how))
    assert torch.equal(maps[0], total.argmax(0).byte())
    assert maps[1].shape == (24, 31)


def test_a_half_precision_models_logits_are_summed_in_float32() -> None:
    found = next(sliding_logits(Colours(), [picture(20, 12).bfloat16()], Sliding(12, 8)))
    assert found.dtype == torch.float32


def test_gaps_are_refused() -> None:
    with pytest.raises(UserError, match="stride=9 leaves gaps between windows of 8"):
        Sliding(8, 9)
