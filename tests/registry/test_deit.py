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

from tests.oracles import Oracle
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.cost.counts import flop_counter
from vlbench.errors import UserError
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.model import Card
from vlbench.structure import check_structure
from vlbench.task import Sample

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
    job = Job(model, photos, ImageStore(model.card.image), Surroundings(0, tmp_path))
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


# Against the original code (float64) ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "models" / "deit_eval_a.npz")


def tiny(oracle: Oracle) -> Any:
    """The recorded architecture with random weights, in float64."""
    c = oracle.facts["config"]
    arguments = {
        "img_size": c["img"], "patch_size": c["patch"], "embed_dim": c["embed"], "depth": c["depth"],
        "num_heads": c["heads"], "mlp_ratio": c["mlp"],
    }  # fmt: skip
    config = {"architecture": "deit_small_patch16_224", "num_classes": c["ncls"], "model_args": arguments,
              "label_names": [str(i) for i in range(c["ncls"])]}  # fmt: skip
    model = deit.DeiT.build(card("deit-small"), config, Path())
    model.net.double()
    return model


def assert_gives(model: Any, oracle: Oracle, key: str) -> None:
    with torch.no_grad():
        found = model.logits(model.encode(oracle["in/images"].double()))
    assert torch.allclose(found, oracle[key], rtol=0, atol=1e-9)


def test_logits_and_loss_equal_the_original(oracle: Oracle) -> None:
    model = tiny(oracle)
    model.load(oracle.tensors("sd/"))
    assert_gives(model, oracle, "out/dense")
    targets = oracle["in/targets"].tolist()
    samples = [Sample(str(i), (), target=str(t)) for i, t in enumerate(targets)]
    batch = Batch(samples, oracle["in/images"].double(), torch.arange(len(samples))[:, None])
    with torch.no_grad():  # the loss is computed in float32
        assert float(model.classify_loss(batch)) == pytest.approx(float(oracle["out/dense_loss"]), abs=1e-6)


def test_our_cut_equals_the_masked_original(oracle: Oracle) -> None:
    model = tiny(oracle)
    model.load(oracle.tensors("sd/"))
    masks = {site_of(k): v.flatten() for k, v in oracle.tensors("mask/").items()}
    cut(model.net, model.structure(), {name: mask.nonzero().flatten() for name, mask in masks.items()})
    assert_gives(model, oracle, "out/masked_search_model")


def site_of(key: str) -> str:
    """UPop's name of a mask -> our site."""
    _, index, part, _ = key.split(".")
    return f"vision.{index}.{'attention' if part == 'attn' else 'ffn'}"


@pytest.mark.parametrize(("bias", "key"), [(False, "out/compressed_original"), (True, "out/compressed_bias_copied")])
def test_a_checkpoint_cut_by_upop_equals_the_original(oracle: Oracle, bias: bool, key: str) -> None:
    """The original's random qkv bias is part of the weights; the scale stays that of the whole head."""
    model = tiny(oracle)
    model.load({**oracle.tensors("ckpt/"), **(oracle.tensors("ckpt_fixed_bias/") if bias else {})})
    assert_gives(model, oracle, key)
    left = {site.name: site.units for site in model.structure().sites}
    assert left == {site_of(k): count for k, count in oracle.facts["kept"].items()}


def test_a_cut_checkpoint_is_cut_again_saved_and_loaded(oracle: Oracle, tmp_path: Path) -> None:
    model = tiny(oracle)
    model.load(oracle.tensors("ckpt/"))
    sites = model.structure().sites
    again = {s.name: torch.arange(0, s.units, 2) for s in sites}
    state = Compression(cuts=[Cut.of(model.structure(), again)], pattern="structured")
    cut(model.net, model.structure(), again)
    save_model(tmp_path / "twice", model, state)
    assert_same(load_model(tmp_path / "twice")[0], model, oracle)


def test_a_cut_checkpoint_opens_from_our_folder(oracle: Oracle, tmp_path: Path) -> None:
    """The configuration says how wide its sites are."""
    model = tiny(oracle)
    model.load(oracle.tensors("ckpt/"))
    save_model(tmp_path / "saved", model, Compression())
    assert_same(load_model(tmp_path / "saved")[0], model, oracle)
    assert_same(deit.DeiT.open(model.card, tmp_path / "saved"), model, oracle)


@torch.no_grad()
def assert_same(one: Any, other: Any, oracle: Oracle) -> None:
    assert torch.equal(one.net.float()(oracle["in/images"]), other.net.float()(oracle["in/images"]))


def test_upops_file_opens_by_its_path(tmp_path: Path) -> None:
    net = timm.create_model("deit_tiny_patch16_224")
    model = deit.DeiT(card("deit-tiny"), {}, deit.adopted.adopt(net).eval())
    keep = {s.name: torch.arange(s.units)[:: 3 + i % 2] for i, s in enumerate(model.structure().sites)}
    cut(model.net, model.structure(), keep)
    torch.save({"model": model.net.state_dict()}, tmp_path / "deit_small_compressed.pth")
    opened = deit.DeiT.open(card("deit-tiny"), tmp_path / "deit_small_compressed.pth")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(opened.encode(images), model.encode(images))
    assert opened.config["widths"]["vision.0.attention"] == 22


# Counts ---------------------------------------------------------------------------------------------------------------


def test_full_size_counts_without_weights(tmp_path: Path) -> None:
    """DeiT-S: 22.05 M parameters, 4.60 GMACs; its prunable set is the 12 blocks' matrices (12 x 12 x 384 x 384)."""
    with torch.device("meta"):
        model = deit.DeiT.build(card("deit-small"), deit.DeiT.architecture(card("deit-small")), tmp_path)
        images = torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.net.parameters()) == 22_050_664
    assert model.structure().size == 12 * 12 * 384 * 384
    with torch.no_grad(), flop_counter() as counter:
        model.logits(model.encode(images))
    assert counter.get_total_flops() / 2e9 == pytest.approx(4.599, abs=1e-3)
