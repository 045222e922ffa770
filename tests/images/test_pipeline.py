"""The image pipeline: every sort of file that the data sets hold, and the ones that are broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlbench.errors import RunFailed
from vlbench.images.files import Undecodable
from vlbench.images.pipeline import ImageStore, decode, normalise, preprocess
from vlbench.images.spec import ImageSpec


def scene(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture, which every format keeps nearly."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 200, size[1]))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], -1).astype(np.uint8)).convert(mode)


FORMATS: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda p: scene().save(p),
    "alpha.png": lambda p: scene("RGBA").save(p),
    "grey.png": lambda p: scene("L").save(p),
    "palette.png": lambda p: scene("P").save(p),
    "rgb.jpg": lambda p: scene().save(p, quality=95),
    "grey.jpg": lambda p: scene("L").save(p, quality=95),
    "cmyk.jpg": lambda p: scene("CMYK").save(p, quality=95),
    "rgb.gif": lambda p: scene("P").save(p),
    "moving.gif": lambda p: scene("P").save(p, save_all=True, append_images=[scene("P").rotate(180)]),
    "rgb.webp": lambda p: scene().save(p, lossless=True),
    "rgb.bmp": lambda p: scene().save(p),
    "rgb.tif": lambda p: scene().save(p),
    "named a png.png": lambda p: scene().save(p, format="JPEG", quality=95),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_as_pillow_has_it(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    found = decode(tmp_path / name)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 30, 40))
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)
    assert np.abs(found.numpy().astype(int) - expected).max() <= 2


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16)).save(tmp_path / "deep.png")
    found = decode(tmp_path / "deep.png")
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], torch.from_numpy((np.arange(1200).reshape(30, 40) * 50) >> 8).to(torch.uint8))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_scale_are_told(tmp_path: Path, kind: type) -> None:
    """Clipping made photographs of values from 0 to 1 black, and their samples wrong answers."""
    Image.fromarray(np.linspace(0, 1, 1200).reshape(30, 40).astype(kind)).save(tmp_path / "scan.tif")
    with pytest.raises(Undecodable, match="32 bits have no scale"):
        decode(tmp_path / "scan.tif")


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "rgb.gif", "rgb.webp", "rgb.bmp"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.8])
def test_a_truncated_file_is_told(tmp_path: Path, name: str, part: float) -> None:
    FORMATS[name](tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(part * len(data))])
    with pytest.raises(Undecodable) as caught:
        decode(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} does not decode: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RunFailed)


@pytest.mark.parametrize("data", [b"hello", b"<html>404</html>", b"\xff\xd8\xff\xe0", b"RIFF0000WEBPVP8 ", b"GIF89a"])
def test_what_is_no_image_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(data * 3)
    with pytest.raises(Undecodable, match=r"x\.jpg does not decode"):
        decode(tmp_path / "x.jpg")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(Undecodable, match=r"x\.jpg does not exist"):
        decode(tmp_path / "x.jpg")
    with pytest.raises(Undecodable, match="does not decode"):
        decode(tmp_path)


def test_a_bomb_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's error of a huge image is no OSError."""
    scene().save(tmp_path / "x.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Undecodable, match=r"x\.tif does not decode"):
        decode(tmp_path / "x.tif")


def test_the_good_ones_are_given_with_the_bad(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    store = ImageStore(ImageSpec(8))
    good, bad, again = store.try_load([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"])
    assert isinstance(good, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert torch.equal(good, again)
    assert isinstance(bad, OSError)
    assert "b.png" in str(bad)
    with pytest.raises(Undecodable, match=r"b\.png"):
        store.load([tmp_path / "a.png", tmp_path / "b.png"])


@pytest.mark.parametrize("size", [(30, 30), (100, 40), (40, 100), (1, 50), (2000, 3)])
@pytest.mark.parametrize(
    "spec", [ImageSpec(24), ImageSpec(24, resize="crop", crop_pct=0.875), ImageSpec(24, interpolation="bilinear")]
)
def test_any_shape_becomes_the_models_and_holds_no_more_memory(size: tuple[int, int], spec: ImageSpec) -> None:
    image = torch.from_numpy(np.array(scene(size=size)).transpose(2, 0, 1).copy())
    found = preprocess(image, spec)
    assert tuple(found.shape) == (3, 24, 24)
    assert found.untyped_storage().nbytes() == 3 * 24 * 24


@pytest.mark.parametrize("size", [(48, 48), (100, 40), (37, 90)])
def test_resizing_is_within_a_grey_level_of_pillow(size: tuple[int, int]) -> None:
    picture = scene(size=size)
    found = preprocess(torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy()), ImageSpec(24))
    expected = np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1


def test_the_store_keeps_what_fits_and_no_more(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    store = ImageStore(ImageSpec(8), workers=1, keep_bytes=2 * 3 * 8 * 8 + 1)
    first = store.load(paths)
    assert len(store._kept) == 2
    for path in paths[:2]:
        path.unlink()
    assert all(map(torch.equal, store.load(paths), first))
    paths[2].unlink()
    with pytest.raises(Undecodable):
        store.load(paths)


def test_normalising_is_what_torchvision_does() -> None:
    spec = ImageSpec(4, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = images.clone()
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    assert torch.equal(normalise(images, spec), (images.float() / 255 - mean) / std)
    assert torch.equal(images, before)
    assert normalise(images, spec, torch.bfloat16).dtype == torch.bfloat16
