"""One-shot pruners on real weights and real photos: a table of top-1 accuracies. It asserts nothing.

    python tests/benchmarks/pruners.py [photos] [method,method,...]

ViT-Ti/16 of ../shared/data/weights_vit_tiny, calibrated on 128 photos of imagenet_calib, on the photos of
imagenet1k_samples (1,000; 81.1 / 95.6 dense). Needs ../shared, or VLBENCH_SHARED.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from vlbench.images.pipeline import ImageStore, on_device
from vlbench.job import Job, Surroundings
from vlbench.plugins.table import table

METHODS = ("magnitude", "wanda", "sparsegpt", "obd")
TARGETS = ("0.3", "0.5", "0.6", "0.7", "2:4", "4:8")
SHARED = Path(os.environ.get("VLBENCH_SHARED") or Path(__file__).resolve().parents[3] / "shared")
NEEDED = (
    "weights_vit_tiny/vit_tiny_patch16_224.safetensors",
    "imagenet_calib/labels.json",
    "imagenet1k_samples/labels.json",
)


def lay_out(root: Path, photos: int) -> None:
    """ImageNet's folders, as links: every n-th photo to evaluate, all of imagenet_calib to calibrate on."""
    names = timm.data.ImageNetInfo().label_names()
    for split, source, count in (("val", "imagenet1k_samples", photos), ("train", "imagenet_calib", 300)):
        labels = sorted(json.loads((SHARED / "data" / source / "labels.json").read_text()).items())
        for file, index in labels[:: max(1, len(labels) // count)][:count]:
            folder = root / split / names[index]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(SHARED / "data" / source / "images" / file)


def top(model: Any, pixels: Tensor, targets: list[str]) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    wanted = torch.tensor([model.classes.index(t) for t in targets])
    hits = torch.zeros(2)
    model.net.eval()
    with torch.inference_mode():
        for at in range(0, len(pixels), 50):
            images = on_device(pixels[at : at + 50], model.card.image, model.device, torch.float32)
            best = model.logits(model.encode(images)).topk(5).indices.cpu()
            right = best == wanted[at : at + 50, None]
            hits += torch.tensor([int(right[:, 0].sum()), int(right.any(1).sum())])
    return tuple((100 * hits / len(pixels)).tolist())  # type: ignore[return-value]


def main(photos: int, methods: list[str]) -> None:
    missing = [name for name in NEEDED if not (SHARED / "data" / name).is_file()]
    if missing:
        print(f"skipped: {SHARED / 'data'} lacks {', '.join(missing)}")
        return
    deit = importlib.import_module("vlbench.registry.deit").DeiT
    imagenet = importlib.import_module("vlbench.tasks.imagenet").ImageNet
    card = next(c for c in deit.cards if c.name == "vit-tiny")
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder) / "data", photos)
        task = imagenet(Path(folder) / "data", imagenet.Options())
        store, samples = ImageStore(card.image), task.samples("val")
        pixels = store.load([s.images[0] for s in samples])
        targets = [s.target for s in samples]

        def open_model() -> Any:
            model = deit.open(card, SHARED / "data" / NEEDED[0])
            model.net.to("cuda" if torch.cuda.is_available() else "cpu")
            return model

        print("{:<10} {:>5} {:>6} {:>6}".format("method", "", "top-1", "top-5"))
        print("{:<10} {:>5} {:>6.1f} {:>6.1f}".format("dense", "", *top(open_model(), pixels, targets)), flush=True)
        for name in methods:
            method = table("methods").get(name).load()
            own = {"calibration_samples": 128} if "calibration_samples" in method.Options.model_fields else {}
            for number, target in enumerate(TARGETS):
                model = open_model()
                torch.manual_seed(0)
                job = Job(model, task, store, Surroundings(0, Path(folder) / f"{name}-{number}"))
                method(method.Options.model_validate({"sparsity": target, **own})).apply(job)
                print("{:<10} {:>5} {:>6.1f} {:>6.1f}".format(name, target, *top(model, pixels, targets)), flush=True)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 1000, sys.argv[2].split(",") if len(sys.argv) > 2 else list(METHODS)
    )
