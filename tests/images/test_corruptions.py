"""Corruptions against the formulas of ImageNet-C written down a second time, on an image of known values."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import correlate1d

from vlbench.images.corruptions import CORRUPTIONS, corrupted


def image(height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, height, width), dtype=np.uint8))


def at(name: str, severity: int, pixels: torch.Tensor, seed: int = 0) -> np.ndarray:
    return corrupted(pixels, name, severity, np.random.default_rng(seed)).permute(1, 2, 0).numpy()


def test_brightness_is_added_to_the_value_of_a_colour() -> None:
    """colorsys converts each pixel."""
    pixels = image(6, 7)
    pixels[:, 0, 0] = 0
    by_hand = np.zeros((6, 7, 3))
    for y in range(6):
        for x in range(7):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[:, y, x] / 255).tolist())
            by_hand[y, x] = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
    assert np.abs(at("brightness", 3, pixels) - by_hand * 255).max() <= 1


def test_contrast_and_blur_by_their_formulas() -> None:
    pixels = image()
    x = pixels.permute(1, 2, 0).numpy() / 255
    mean = x.mean((0, 1))
    assert np.array_equal(at("contrast", 2, pixels), (np.clip((x - mean) * 0.3 + mean, 0, 1) * 255).astype(np.uint8))
    weights = np.exp(-np.square(np.arange(-8, 9)) / (2 * 2.0**2))  # sigma 2, cut at four of them
    blurred = x
    for axis in (0, 1):
        blurred = correlate1d(blurred, weights / weights.sum(), axis=axis, mode="nearest")
    assert np.abs(at("gaussian_blur", 2, pixels).astype(int) - (blurred * 255).astype(int)).max() <= 1


def test_a_point_becomes_a_soft_disk() -> None:
    """Severity 2: radius 4, the edge softened by three weights of a Gaussian of half a pixel. Light is kept."""
    pixels = torch.zeros(3, 41, 41, dtype=torch.uint8)
    pixels[:, 20, 20] = 255
    spread = CORRUPTIONS["defocus_blur"](pixels.permute(1, 2, 0).numpy() / 255.0, 2, np.random.default_rng(0))[..., 0]
    side = np.exp(-2.0)
    weights = np.array([side, 1, side]) / (1 + 2 * side)
    inside = {(y, x) for y in range(-4, 5) for x in range(-4, 5) if y * y + x * x <= 16}
    for y, x in ((0, 0), (0, 4), (0, 5), (3, 3), (4, 1), (0, 6)):
        near = [(v, u) for v in (-1, 0, 1) for u in (-1, 0, 1) if (y + v, x + u) in inside]
        assert spread[20 + y, 20 + x] == pytest.approx(sum(weights[v + 1] * weights[u + 1] for v, u in near) / 49)
    assert spread.sum() == pytest.approx(1)


def test_zooms_are_averaged_by_hand() -> None:
    """scipy.ndimage.zoom of order 1 lets first and last pixel stay: a straight slope, whose middle stays and whose ends
    come nearer, as far as each factor says."""
    side = 101
    slope = np.repeat(np.linspace(0, 1, side)[None, :, None], side, 0).repeat(3, 2)
    blurred = CORRUPTIONS["zoom_blur"](slope, 1, np.random.default_rng(0))
    left = [0.0]
    for factor in np.arange(1, 1.11, 0.01):
        shown = int(np.ceil(side / factor))
        large = round(shown * factor)
        first = (large - side) // 2
        left.append(((side - shown) // 2 + first * (shown - 1) / (large - 1)) / (side - 1))
    assert blurred[50, 0, 0] == pytest.approx(np.mean(left), abs=1e-9)


def test_fog_hides_what_is_dark_and_follows_its_rule() -> None:
    """x' = (x + a f) m / (m + a) with f in [0, 1]; the field, place for place, by the rule written with loops."""
    x = image().permute(1, 2, 0).numpy() / 255.0
    foggy = CORRUPTIONS["fog"](x, 2, np.random.default_rng(4))
    field = (foggy * (x.max() + 2) / x.max() - x) / 2
    wanted = by_loops(256, 2, np.random.default_rng(4))[:24, :40, None]
    assert np.abs(field - wanted).max() < 1e-12
    assert CORRUPTIONS["fog"](np.zeros((300, 20, 3)), 2, np.random.default_rng(4)).shape == (300, 20, 3)


def by_loops(side: int, decay: float, random: np.random.Generator) -> np.ndarray:
    field, step, spread = np.zeros((side, side)), side, 100.0
    while step > 1:
        half = step // 2
        for first, second, near in (
            (half, half, [(half, half), (half, -half), (-half, half), (-half, -half)]),
            (0, half, [(half, 0), (-half, 0), (0, half), (0, -half)]),
            (half, 0, [(half, 0), (-half, 0), (0, half), (0, -half)]),
        ):
            places = [(y, x) for y in range(first, side, step) for x in range(second, side, step)]
            noise = random.uniform(-spread, spread, len(places))
            new = [sum(field[(y + v) % side, (x + u) % side] for v, u in near) / 4 for y, x in places]
            for (y, x), value, one in zip(places, new, noise, strict=True):
                field[y, x] = value + spread * one
        step, spread = half, spread / decay
    field -= field.min()
    return field / field.max()


def test_jpeg_is_a_file_of_that_quality() -> None:
    pixels, file = image(), io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=15)
    assert np.array_equal(at("jpeg", 3, pixels), np.asarray(Image.open(file)))


def test_pixels_are_as_large_as_their_fraction_says() -> None:
    """0.25 of 40 x 24: 10 x 6 squares of 4 x 4."""
    squares = at("pixelate", 5, image()).reshape(6, 4, 10, 4, 3)
    assert (squares == squares[:, :1, :, :1]).all()


@pytest.mark.parametrize(("name", "spread"), [("gaussian_noise", 0.08), ("shot_noise", (0.5 / 60) ** 0.5)])
def test_noise_has_its_size(name: str, spread: float) -> None:
    """On grey: N(0, c), and the deviation of a Poisson number of c x photons."""
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    assert at(name, 1, grey).std() / 255 == pytest.approx(spread, rel=0.02)


def test_impulses_are_black_and_white_and_as_many_as_said() -> None:
    grey = torch.full((3, 200, 200), 128, dtype=torch.uint8)
    noisy = at("impulse_noise", 5, grey)
    assert set(np.unique(noisy)) == {0, 128, 255}
    assert (noisy != 128).mean() == pytest.approx(0.27, abs=0.005)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_severity_is_further_away_and_the_same_again(name: str) -> None:
    pixels = image(32, 32).float().mul(0.5).add(50).to(torch.uint8)
    before = pixels.permute(1, 2, 0).numpy().astype(float)
    distances = [np.abs(at(name, severity, pixels) - before).mean() for severity in range(1, 6)]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert np.array_equal(at(name, 3, pixels), at(name, 3, pixels))
