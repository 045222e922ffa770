"""Oracle: inputs of public bug reports with their right values, which timm gives on real weights and photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed

from tests.lab import Lab

MEAN = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
MODEL = ("suite=full", "task=imagenet", "model=vit-tiny")
CLASS = "n01440764"


class Photos:
    """Every tenth of the thousand photographs, and the real ViT-Ti."""

    def __init__(self, shared: Path, lab: Lab) -> None:
        self.lab = lab
        self.weights = shared / "data" / "weights_vit_tiny" / "vit_tiny_patch16_224.safetensors"
        self.index: dict[str, int] = dict(json.loads((shared / "data/imagenet1k_samples/labels.json").read_text()))
        self.files = sorted((shared / "data" / "imagenet1k_samples" / "images").iterdir())[::10]
        assert self.weights.stat().st_size > 10**7
        shutil.rmtree(lab.data)

    def laid_out(self, name: Callable[[Path], str], files: list[Path]) -> None:
        for file in files:
            folder = self.lab.data / "val" / name(file)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file.name).symlink_to(file)

    def run(self, *words: str) -> Any:
        told = self.lab("run", *MODEL, *words, "--json")
        assert told.code == 0, told.err
        return json.loads(told.out)


@pytest.fixture
def photos(shared: Path, lab: Lab) -> Photos:
    return Photos(shared, lab)


@pytest.mark.slow
def test_folders_that_are_named_by_the_class_index(photos: Photos) -> None:
    """0.0 top-1 with exit 0, once; 86.0 is timm's accuracy on these 100."""
    photos.laid_out(lambda file: str(photos.index[file.name]), photos.files)
    told = photos.lab("run", *MODEL, f"checkpoint={photos.weights}")
    assert told.code == 2
    assert (
        "100 of the 100 classes of the data are no classes of the model (the first: 0, 10, 100, 110, 120;" in told.err
    )
    assert photos.run(f"checkpoint={photos.weights}", "classes=index")["metrics"]["top1"] == pytest.approx(86.0)


@pytest.mark.slow
def test_a_folder_that_says_384(photos: Photos, tmp_path: Path) -> None:
    """The model's own number of parameters and MACs at 384, in a run and in `vlbench cost`."""
    photos.laid_out(lambda file: file.name.split("_")[0], photos.files[:4])
    folder = tmp_path / "at384"
    folder.mkdir()
    tensors = load_file(photos.weights)
    tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], (24, 24), num_prefix_tokens=1).contiguous()
    save_file(tensors, folder / "model.safetensors")
    told = {**MEAN, "crop_pct": 1.0, "input_size": [3, 384, 384]}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 1000, "pretrained_cfg": told}
    (folder / "config.json").write_text(json.dumps(config))
    record = photos.run(f"checkpoint={folder}")
    net = timm.create_model("vit_tiny_patch16_384")
    assert record["parameters"]["total"] == sum(p.numel() for p in net.parameters())
    assert "size=384" in record["evaluation"]["preprocessing"]
    counted = photos.lab("cost", "model=vit-tiny", f"checkpoint={folder}", "--json")
    (cost,) = json.loads(counted.out)["costs"]
    assert (cost["parameters"], cost["macs"]) == (record["parameters"]["total"], record["macs"])


def odd_files(folder: Path, photo: Path) -> None:
    """24 files that a camera, a scraper or a designer made of one photograph."""
    image = Image.open(photo).convert("RGB")
    jpeg, rotated = photo.read_bytes(), Image.Exif()
    rotated[0x0112] = 6
    alpha = image.copy()
    alpha.putalpha(200)
    palette = image.quantize(64)
    palette.info["transparency"] = 3
    made: dict[str, Callable[[Path], Any]] = {
        "plain.JPEG": lambda p: p.write_bytes(jpeg),
        "cmyk.JPEG": lambda p: image.convert("CMYK").save(p, format="JPEG"),
        "png.JPEG": lambda p: image.save(p, format="PNG"),
        "gif.JPEG": lambda p: palette.save(p, format="GIF"),
        "palette.png": lambda p: palette.save(p),
        "la.png": lambda p: alpha.convert("LA").save(p),
        "rgba.png": lambda p: alpha.save(p),
        "grey.JPEG": lambda p: image.convert("L").save(p, format="JPEG"),
        "turned.JPEG": lambda p: image.save(p, format="JPEG", exif=rotated),
        "exif.JPEG": lambda p: p.write_bytes(jpeg[:2] + b"\xff\xe1\x00\x10Exif\x00\x00garbage!" + jpeg[2:]),
        "trailing.JPEG": lambda p: p.write_bytes(jpeg + b"\x00" * 999),
        "one.png": lambda p: image.resize((1, 1)).save(p),
        "long.png": lambda p: image.resize((10, 2000)).save(p),
        "moving.png": lambda p: image.save(p, format="PNG", save_all=True, append_images=[image.rotate(90)]),
        "deep.png": lambda p: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8).save(p),
        "progressive.JPEG": lambda p: image.save(p, format="JPEG", progressive=True),
        "capital.JPG": lambda p: p.write_bytes(jpeg),
        "bits.png": lambda p: image.convert("1").save(p),
        "photo.webp": lambda p: image.save(p, lossless=True),
        "photo.bmp": lambda p: image.save(p),
        "photo.tif": lambda p: image.save(p),
        "photo.gif": lambda p: palette.save(p),
        "cut.JPEG": lambda p: p.write_bytes(jpeg[: len(jpeg) // 3]),
        "empty.JPEG": lambda p: p.write_bytes(b""),
    }
    for name, write in made.items():
        write(folder / name)


@pytest.mark.slow
def test_every_file_of_a_class_folder_is_a_sample_an_error_or_named(photos: Photos) -> None:
    """22 predictions, timm's own top-5 on all but 16-bit grey, 2 errors, and what is no image is named."""
    folder = photos.lab.data / "val" / CLASS
    folder.mkdir(parents=True)
    odd_files(folder, photos.files[0])
    (folder / "notes.txt").write_text("no image")
    told = photos.lab("run", *MODEL, f"checkpoint={photos.weights}")
    assert told.code == 1, told.err
    assert f"{CLASS}/notes.txt" in told.err
    (cell,) = (photos.lab.folder / "runs").glob("*/predictions.jsonl")
    lines = [json.loads(line) for line in cell.read_text().splitlines() if '"id"' in line]
    assert {line["id"].rpartition("/")[2] for line in lines if line["status"] != "ok"} == {"cut.JPEG", "empty.JPEG"}
    right = {line["id"].rpartition("/")[2]: line["prediction"]["top5"] for line in lines if line["status"] == "ok"}
    assert len(right) == 22
    net = timm.create_model("vit_tiny_patch16_224").eval()
    net.load_state_dict(load_file(photos.weights))
    pixels = timm.data.create_transform(224, crop_pct=0.9, **MEAN)
    names = timm.data.ImageNetInfo().label_names()
    for name in sorted(right.keys() - {"deep.png"}):
        with torch.no_grad(), Image.open(folder / name) as image:
            logits = net(pixels(image.convert("RGB"))[None])[0]
        assert right[name] == [names[i] for i in logits.topk(5).indices.tolist()], name
    verified = photos.lab("data", "verify", "task=imagenet", "suite=full", "--images")
    assert "notes.txt" in verified.out + verified.err
    assert all(name in verified.out + verified.err for name in ("cut.JPEG", "empty.JPEG"))
