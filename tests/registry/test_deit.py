"""DeiT and ViT on timm: real weights on real photos, hub folders, single files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlbench.data.images import ImageStore
from vlbench.errors import UserError
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.job import Job
from vlbench.model import Card
from vlbench.structure import check_structure

deit = importlib.import_module("vlbench.registry.deit")
imagenet = importlib.import_module("vlbench.tasks.imagenet")
magnitude = importlib.import_module("vlbench.methods.magnitude")
PHOTOS = 100  # every tenth of the thousand: a minute for all of them is too long for a test


def card(name: str) -> Card:
    found: Card = next(c for c in deit.DeiT.cards if c.name == name)
    return found


@pytest.fixture(scope="module")
def photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ImageNet task over real photos, in the official layout (a folder a synset)."""
    root = tmp_path_factory.mktemp("imagenet")
    names = timm.data.ImageNetInfo().label_names()
    source = shared / "data" / "imagenet1k_samples"
    labels = json.loads((source / "labels.json").read_text())
    for file, index in sorted(labels.items())[:: len(labels) // PHOTOS]:
        folder = root / "val" / names[index]
        folder.mkdir(parents=True)
        (folder / file).symlink_to(source / "images" / file)
    return imagenet.ImageNet(root, imagenet.ImageNet.Options())


def accuracy(model: Any, task: Any, folder: Path) -> dict[str, float]:
    samples = task.samples("val")
    store = ImageStore(model.card.image)
    lines = Evaluator(model, task, store, settings={}, batch_size=50).run(samples, Predictions(folder / "p.jsonl"))
    found: dict[str, float] = task.aggregate(samples, [line["score"] for line in lines])
    return found


@pytest.mark.slow
def test_real_weights_on_real_photos(shared: Path, photos: Any, tmp_path: Path) -> None:
    """81.1 / 95.6 on the thousand photos (measured once); here on every tenth, dense and at 50 % magnitude."""
    weights = shared / "data" / "weights_vit_tiny" / "vit_tiny_patch16_224.safetensors"
    model = deit.DeiT.open(card("vit-tiny"), weights)
    dense = accuracy(model, photos, tmp_path)
    assert dense["top1"] == pytest.approx(81.1, abs=6)
    assert dense["top5"] == pytest.approx(95.6, abs=4)
    job = Job(model, photos, seed=0, folder=tmp_path, store=ImageStore(model.card.image))
    magnitude.Magnitude(magnitude.Magnitude.Options(sparsity=0.5)).apply(job)
    pruned = accuracy(model, photos, tmp_path / "pruned")
    assert 20 < pruned["top1"] < 55, "36.0 on every second photo"


def test_hub_folder_and_single_file_give_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("deit_tiny_patch16_224", depth=1)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    one = deit.DeiT.open(card("deit-tiny"), _folder(tmp_path, {"depth": 1}))
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(one.logits(one.encode(images)), net.eval()(images), atol=1e-5)
    check_structure(one.net, one.structure())
    assert len(one.classes) == 1000
    assert one.classes[0] == "n01440764"
    with pytest.raises(UserError, match="another architecture"):
        deit.DeiT.open(card("deit-small"), tmp_path / "model.safetensors")


def _folder(folder: Path, arguments: dict[str, Any]) -> Path:
    config = {"architecture": "deit_tiny_patch16_224", "num_classes": 1000, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_full_size_counts_without_weights() -> None:
    """DeiT-S: 22.05 M parameters; its prunable set is the 12 blocks' matrices (12 x 12 x 384 x 384)."""
    with torch.device("meta"):
        net = timm.create_model("deit_small_patch16_224")
    assert sum(p.numel() for p in net.parameters()) == 22_050_664
    model = deit.DeiT(card("deit-small"), {}, deit.adopted.adopt(net))
    assert model.structure().size == 12 * 12 * 384 * 384
