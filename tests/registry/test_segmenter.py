"""Segmenter against the original code's outputs (float64) and against mmsegmentation's own model."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.oracles import Oracle
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.cost.counts import flop_counter
from vlbench.errors import UserError
from vlbench.evaluation.windows import Sliding, anchors, averaged, sliding_logits
from vlbench.images.maps import LabelMap, unpack_map
from vlbench.images.pipeline import ImageStore
from vlbench.model import Card
from vlbench.nn import mmseg_shim
from vlbench.structure import check_structure
from vlbench.task import Sample
from vlbench.training.batches import Batches
from vlbench.training.loop import Loop, Schedule

segmenter = importlib.import_module("vlbench.registry.segmenter")
keys = importlib.import_module("vlbench.registry._segmenter_keys")
MINI = Path(segmenter.__file__).parent / "mini" / "segmenter-mini"
STORED32 = 1e-6  # tolerance of arrays that were stored in float32


def card(name: str) -> Card:
    found: Card = next(c for c in segmenter.MaskSegmenter.cards if c.name == name)
    return found


# Against the original code -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "models" / "segm_eval_a.npz")


def recorded(oracle: Oracle, prefix: str) -> Any:
    """Our model with recorded weights, in float64."""
    c = oracle.facts["config"]
    encoder = {"img_size": c["win"], "patch_size": c["patch"], "embed_dim": c["d"], "depth": c["L"],
               "num_heads": c["heads"]}  # fmt: skip
    config = {"classes": c["ncls"], "encoder": encoder, "decoder": {"depth": c["Ld"], "heads": c["heads"]}}
    model = segmenter.MaskSegmenter.build(card("segmenter-small"), config, Path())
    model.load({k: v for k, v in oracle.tensors(prefix).items() if not keys.DROPPED.search(k)})
    model.net.double()
    return model


@pytest.fixture(scope="module")
def dense(oracle: Oracle) -> Any:
    return recorded(oracle, "sd/")


def image(oracle: Oracle, ratio: float = 1.0) -> Tensor:
    return oracle[f"in/r{ratio:.2f}"].double()


def sliding(oracle: Oracle) -> Sliding:
    return Sliding(oracle.facts["config"]["win"], oracle.facts["config"]["stride"])


@torch.no_grad()
def probabilities(model: Any, oracle: Oracle, views: Sequence[Tensor], mirrored: Sequence[bool]) -> Tensor:
    size = oracle.facts["config"]["H"], oracle.facts["config"]["W"]
    return averaged(sliding_logits(model.net, views, sliding(oracle)), mirrored, size)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    tolerance = 1e-9 if wanted.dtype == torch.float64 else STORED32
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance


def test_logits_of_a_whole_image_equal_the_original(oracle: Oracle, dense: Any) -> None:
    """Padded to whole patches, with position embeddings resized; and the first window, where neither is needed."""
    window = oracle.facts["config"]["win"]
    with torch.no_grad():
        assert_near(dense.net(image(oracle)), oracle["out/forward_full_image"])
        first = oracle["out/forward_first_window"]
        found = dense.net(image(oracle)[:, :, :window, :window]).float()
        assert float((found - first).abs().max()) <= 1e-5


def test_anchors_equal_the_originals(oracle: Oracle) -> None:
    how, wanted = sliding(oracle), oracle["out/anchors_r1"].tolist()
    assert [list(a) for a in anchors(tuple(image(oracle).shape[2:]), how.window, how.stride)] == wanted


def test_one_scale_equals_the_original(oracle: Oracle, dense: Any) -> None:
    found = probabilities(dense, oracle, [image(oracle)[0]], [False])
    assert_near(found, oracle["out/ss/prob"])
    assert torch.equal(found.argmax(0), oracle["out/ss/argmax"].long())


def test_the_mirrored_image_equals_the_original(oracle: Oracle, dense: Any) -> None:
    found = probabilities(dense, oracle, [image(oracle)[0].flip(2)], [True])
    assert_near(found, oracle["out/flip_only/prob"])
    assert torch.equal(found.argmax(0), oracle["out/flip_only/argmax"].long())


def test_several_scales_equal_the_original(oracle: Oracle, dense: Any) -> None:
    views = [image(oracle, ratio)[0] for ratio in oracle.facts["config"]["ratios"]]
    both = [view for one in views for view in (one, one.flip(2))]
    found = probabilities(dense, oracle, both, [False, True] * len(views))
    assert_near(found, oracle["out/ms/prob"])
    assert torch.equal(found.argmax(0), oracle["out/ms/argmax"].long())


@pytest.mark.parametrize("name", ["ss", "ms"])
def test_predictions_equal_the_originals(oracle: Oracle, dense: Any, name: str) -> None:
    """From the resized image to the packed map. Our scales are made from the resized image, the recorded ones were
    rounded to 1/256 once more: a pixel in a thousand may be undecided."""
    c = oracle.facts["config"]
    options = {"window": c["win"], "stride": c["stride"], "scales": c["ratios"] if name == "ms" else [1.0]}
    pixels = [image(oracle)[0], image(oracle)[0]]
    batch = Batch(
        [Sample(str(i), ()) for i in range(3)], pixels, torch.tensor([[0], [0], [1]]),
        {**options, "flip": name == "ms"}, [(c["H"], c["W"])] * 2,
    )  # fmt: skip
    found = dense.segment(dense.encode(batch.images), batch)
    assert len(found) == 3
    for prediction in found:
        same = torch.tensor(unpack_map(prediction["map"])).long() == oracle[f"out/{name}/argmax"].long()
        assert float((~same).float().mean()) <= (1e-3 if name == "ms" else 0)


def test_a_checkpoint_cut_by_upop_equals_the_original(oracle: Oracle) -> None:
    model = recorded(oracle, "ckpt/")
    with torch.no_grad():
        assert_near(model.net(image(oracle)), oracle["out/compressed/forward_full_image"])
    assert_near(probabilities(model, oracle, [image(oracle)[0]], [False]), oracle["out/compressed/ss/prob"])
    left = {site.name: site.units for site in model.structure().sites}
    assert left == {site_of(k): count for k, count in oracle.facts["kept"].items()}


def test_our_cut_equals_the_masked_original(oracle: Oracle) -> None:
    model = recorded(oracle, "sd/")
    masks = {site_of(k): v.flatten() for k, v in oracle.tensors("mask/").items()}
    cut(model.net, model.structure(), {name: mask.nonzero().flatten() for name, mask in masks.items()})
    with torch.no_grad():
        assert_near(model.net(image(oracle)), oracle["out/masked/forward_full_image"])


def site_of(key: str) -> str:
    """UPop's name of a mask -> our site."""
    part, _, index, kind, _ = key.split(".")
    return f"{part}.{index}.{'attention' if kind == 'attn' else 'ffn'}"


def test_a_cut_checkpoint_is_cut_again_saved_and_loaded(oracle: Oracle, tmp_path: Path) -> None:
    model = recorded(oracle, "ckpt/")
    keep = {s.name: torch.arange(0, s.units, 2) for s in model.structure().sites}
    state = Compression(cuts=[Cut.of(model.structure(), keep)], pattern="structured")
    cut(model.net, model.structure(), keep)
    save_model(tmp_path / "twice", model, state)
    model.net.float()
    assert_same(load_model(tmp_path / "twice")[0], model)


def test_a_cut_checkpoint_opens_from_our_folder(oracle: Oracle, tmp_path: Path) -> None:
    """The configuration says how wide its sites are."""
    model = recorded(oracle, "ckpt/")
    save_model(tmp_path / "saved", model, Compression())
    model.net.float()
    assert_same(load_model(tmp_path / "saved")[0], model)
    assert_same(segmenter.MaskSegmenter.open(model.card, tmp_path / "saved"), model)


# Files and folders ---------------------------------------------------------------------------------------------------

TINY = {
    "classes": 7,
    "encoder": {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2},
    "decoder": {"depth": 1, "heads": 2, "width": 128},
}


def tiny(name: str = "segmenter-small", **changes: Any) -> Any:
    torch.manual_seed(0)
    return segmenter.MaskSegmenter.build(card(name), {**deepcopy(TINY), **changes}, Path())


@torch.no_grad()
def assert_same(one: Any, other: Any) -> None:
    pixels = torch.randn(1, 3, 40, 56)
    assert torch.equal(one.net(pixels), other.net(pixels))


@pytest.mark.parametrize("name", ["checkpoint.pth", "best.pth"])
def test_rstrudels_checkpoint_opens_without_its_variant(tmp_path: Path, name: str) -> None:
    """Its encoder has a classifier that is not used; a cut one opens the same way. The folder itself may be named."""
    for model in (tiny(), tiny()):
        if name == "best.pth":
            cut(model.net, model.structure(), {s.name: torch.arange(s.units)[1::3] for s in model.structure().sites})
        head = {"encoder.head.weight": torch.ones(1000, 128), "encoder.head.bias": torch.ones(1000)}
        torch.save({"model": {**model.net.state_dict(), **head}, "n_cls": 7, "epoch": 63}, tmp_path / name)
        source = tmp_path if name == "checkpoint.pth" else tmp_path / name
        assert_same(segmenter.MaskSegmenter.open(card("segmenter-small"), source), model)


@pytest.mark.parametrize(("heads", "fine"), [(4, True), (3, False), (0, False), ("4", False)])
def test_the_variant_says_how_many_heads_there_are(tmp_path: Path, heads: Any, fine: bool) -> None:
    model = tiny(encoder={**TINY["encoder"], "num_heads": 4})
    torch.save({"model": model.net.state_dict()}, tmp_path / "checkpoint.pth")
    (tmp_path / "variant.yml").write_text(json.dumps({"net_kwargs": {"n_heads": heads}}))
    if fine:
        assert_same(segmenter.MaskSegmenter.open(card("segmenter-small"), tmp_path), model)
    else:
        with pytest.raises(UserError, match="n_heads is"):
            segmenter.MaskSegmenter.open(card("segmenter-small"), tmp_path)


def test_a_file_of_the_cards_own_size_has_the_cards_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes do not tell how many there are, and where the card does not tell they are 64 wide."""
    own = {
        **TINY,
        "encoder": {**TINY["encoder"], "num_heads": 4},
        "decoder": {"depth": 1, "heads": 8},
        "norm_eps": 1e-2,
    }
    monkeypatch.setattr(segmenter.MaskSegmenter, "architecture", classmethod(lambda cls, card: own))
    model = tiny(encoder=own["encoder"], decoder=own["decoder"])
    torch.save(model.net.state_dict(), tmp_path / "weights.pth")
    assert_same(segmenter.MaskSegmenter.open(card("segmenter-small"), tmp_path / "weights.pth"), model)


def test_our_folder_opens(tmp_path: Path) -> None:
    model = tiny(encoder={**TINY["encoder"], "num_heads": 4}, norm_eps=1e-2)
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    save_file(model.net.state_dict(), tmp_path / "model.safetensors")
    assert_same(segmenter.MaskSegmenter.open(card("segmenter-mini"), tmp_path), model)


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    linear = {k: v for k, v in tiny().net.state_dict().items() if not k.startswith("decoder")}
    torch.save({"model": {**linear, "decoder.head.weight": torch.ones(7, 128)}}, tmp_path / "linear.pth")
    with pytest.raises(UserError, match="no weights of a Segmenter with a mask transformer"):
        segmenter.MaskSegmenter.open(card("segmenter-small"), tmp_path / "linear.pth")
    distilled = {**tiny().net.state_dict(), "encoder.dist_token": torch.ones(1, 1, 128)}
    torch.save({"model": distilled}, tmp_path / "distilled.pth")
    with pytest.raises(UserError, match=r"encoder\.dist_token is unknown"):
        segmenter.MaskSegmenter.open(card("segmenter-small"), tmp_path / "distilled.pth")


# Our own -------------------------------------------------------------------------------------------------------------


def mini() -> Any:
    torch.manual_seed(1)
    return segmenter.MaskSegmenter.build(card("segmenter-mini"), json.loads((MINI / "config.json").read_text()), MINI)


def crops(count: int = 2) -> Batch:
    random = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 64, 64, generator=random)
    maps = torch.randint(0, 41, (count, 64, 64), generator=random)
    maps[:, :20] = 255
    samples = [Sample(str(i), ()) for i in range(count)]
    return Batch(samples, images, torch.arange(count)[:, None], {}, [(100, 120)] * count, maps)


@torch.no_grad()
def test_crops_are_encoded_and_predicted_at_their_size() -> None:
    model, batch = mini(), crops()
    states = model.encode(batch.images)
    assert states.shape == (2, 1 + 64, 64)
    found = [torch.tensor(unpack_map(p["map"])).long() for p in model.segment(states, batch)]
    assert torch.equal(torch.stack(found), model.net(batch.images).argmax(1))


def test_images_that_keep_their_shapes_are_predicted_at_their_files_size() -> None:
    """The window is the card's where the task names none."""
    model = mini()
    images = [torch.randn(3, 64, 90), torch.randn(3, 100, 64)]
    sizes = [(128, 180), (99, 63)]
    batch = Batch([Sample("b", ()), Sample("a", ())], images, torch.tensor([[1], [0]]), {"window": None}, sizes)
    assert model.encode(images) is images
    found = [unpack_map(p["map"]).shape for p in model.segment(model.encode(images), batch)]
    assert found == [(99, 63), (128, 180)]
    assert model.sliding({"window": None, "stride": None, "scales": [1.0], "flip": False}) == Sliding(
        64, 64, at_once=1024
    )
    assert model.sliding({"window": 32, "stride": 8}) == Sliding(32, 8, at_once=4096)
    model.card = replace(model.card, image=replace(model.card.image, stride=48))
    told = [model.sliding(words) for words in ({}, {"window": 32}, {"stride": 16})]
    assert [(how.window, how.stride) for how in told] == [(64, 48), (32, 32), (64, 16)]


def test_the_loss_is_the_cross_entropy_of_the_pixels_that_have_a_class() -> None:
    model, batch = mini(), crops()
    with torch.no_grad():
        log = model.net(batch.images).log_softmax(1)
    right = log.gather(1, batch.maps[:, None].clamp(max=40))[:, 0]
    wanted = -right[:, 20:].mean()
    loss = model.segment_loss(batch)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    loss.backward()
    for name in (*model.structure().matrices, "decoder.cls_emb", "decoder.proj_classes", "encoder.pos_embed"):
        assert float(model.net.get_parameter(name).grad.abs().max()) > 0, name


def test_the_loop_trains_it(tmp_path: Path) -> None:
    """From pictures and their label maps on disk, of two sizes, to a falling loss."""
    samples = []
    for i, (height, width) in enumerate([(64, 64), (64, 100), (130, 70), (64, 64)]):
        shown = np.zeros((height, width, 3), np.uint8)
        shown[: height // 2] = (250, 20, 20)
        label = np.where(np.arange(height) < height // 2, 5, 9)[:, None].repeat(width, 1).astype(np.uint8)
        Image.fromarray(shown).save(tmp_path / f"{i}.jpg")
        Image.fromarray(label).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), (tmp_path / f"{i}.jpg",), target=LabelMap(tmp_path / f"{i}.png", True)))
    model = mini()
    batches = Batches(samples, ImageStore(model.card.image), size=4, seed=0)
    losses = Loop(model.net, model.segment_loss, batches, Schedule(steps=6, lr=1e-3), seed=0).run()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_gated_equals_cut_in_the_whole_model() -> None:
    model = mini()
    model.net.double()
    small = deepcopy(model)
    check_structure(model.net, model.structure())
    assert [t.name for t in model.structure().towers] == ["encoder", "decoder"]
    keep = {s.name: torch.arange(s.units)[1::2] for s in model.structure().sites}
    for site in model.structure().sites:
        for part in site.slices:
            if part.gated:
                model.net.get_parameter(part.param).index_fill_(part.dim, part.index[::2].flatten(), 0.0)
    cut(small.net, small.structure(), keep)
    pixels = torch.randn(1, 3, 70, 64, dtype=torch.float64)
    assert float((small.net(pixels) - model.net(pixels)).abs().max()) <= 1e-12


def test_full_size_counts_without_weights(tmp_path: Path) -> None:
    """26.0 M parameters and 38.4 GMACs for a window of 512 (UPop counts 26.4 M with the unused classifier)."""
    name = "segmenter-small"
    with torch.device("meta"):
        architecture = segmenter.MaskSegmenter.architecture(card(name))
        model = segmenter.MaskSegmenter.build(card(name), architecture, tmp_path)
        pixels = torch.empty(1, 3, 512, 512)
    assert sum(p.numel() for p in model.net.parameters()) / 1e6 == pytest.approx(26.03, abs=0.005)
    with torch.no_grad(), flop_counter() as counter:
        model.net(pixels)
    assert counter.get_total_flops() / 2e9 == pytest.approx(38.40, abs=0.01)


# mmsegmentation ------------------------------------------------------------------------------------------------------


def mmseg_model(*, patch_bias: bool, window: int = 32) -> Any:
    """mmsegmentation's own EncoderDecoder, tiny, with random weights."""
    pytest.importorskip("mmseg", exc_type=ImportError)
    models = mmseg_shim.require()
    config_dict = importlib.import_module("mmengine").ConfigDict
    norm = {"type": "LN", "eps": 1e-6, "requires_grad": True}
    backbone = {
        "type": "VisionTransformer", "img_size": (window, window), "patch_size": 8, "in_channels": 3,
        "embed_dims": 128, "num_layers": 2, "num_heads": 2, "final_norm": True, "norm_cfg": norm,
        "with_cls_token": True, "interpolate_mode": "bicubic", "drop_path_rate": 0.1, "patch_bias": patch_bias,
    }  # fmt: skip
    head = {
        "type": "SegmenterMaskTransformerHead", "in_channels": 128, "channels": 128, "num_classes": 7,
        "num_layers": 1, "num_heads": 2, "embed_dims": 128, "dropout_ratio": 0.0,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
    }  # fmt: skip
    slide = {"mode": "slide", "crop_size": (window, window), "stride": (20, 20)}
    net = models.EncoderDecoder(config_dict(backbone), config_dict(head), test_cfg=config_dict(slide)).eval()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.copy_(noise * scale + (1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0))
    return net.double()


@pytest.mark.parametrize("patch_bias", [False, True])
@torch.no_grad()
def test_mmsegmentations_checkpoint_gives_what_its_own_model_gives(tmp_path: Path, patch_bias: bool) -> None:
    theirs = mmseg_model(patch_bias=patch_bias)
    state = {k: v.float() for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "segmenter.pth")
    ours = segmenter.MaskSegmenter.open(card("segmenter-mmseg"), tmp_path / "segmenter.pth")
    ours.net.double()
    check_structure(ours.net, ours.structure())
    pixels = torch.randn(1, 3, 56, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    whole = F.interpolate(theirs.decode_head.forward(theirs.extract_feat(pixels)), size=(56, 72), mode="bilinear")
    assert float((ours.net(pixels) - whole).abs().max()) <= 1e-9
    slide = theirs.slide_inference(pixels, [{"img_shape": (56, 72), "ori_shape": (56, 72)}])
    found = next(sliding_logits(ours.net, pixels, Sliding(32, 20)))
    assert float((found - slide[0]).abs().max()) <= 1e-9


def test_mmsegmentations_card_is_told_what_no_shape_tells() -> None:
    architecture = segmenter.MaskSegmenter.architecture(card("segmenter-mmseg"))
    assert architecture["norm_eps"] == 1e-6
    assert architecture["pos_embed"] == "bicubic"
    assert card("segmenter-mmseg").image.stride == 480


def test_mmsegmentations_card_is_built_as_its_configuration_says() -> None:
    """The file that mmsegmentation's wheel brings: everything in it that no checkpoint's shapes tell."""
    package = Path(pytest.importorskip("mmseg", exc_type=ImportError).__file__).parent
    file = package / ".mim/configs/segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512.py"
    told = importlib.import_module("mmengine").Config.fromfile(file).model
    own, image = segmenter.MaskSegmenter.architecture(card("segmenter-mmseg")), card("segmenter-mmseg").image
    backbone, head = told.backbone, told.decode_head
    assert own["norm_eps"] == backbone.norm_cfg.eps
    assert own["pos_embed"] == backbone.interpolate_mode
    assert own["encoder"]["num_heads"] == backbone.num_heads
    assert own["decoder"]["heads"] == head.num_heads
    assert own["decoder"]["depth"] == head.num_layers
    assert own["encoder"]["depth"] == backbone.num_layers
    assert own["classes"] == head.num_classes
    assert [255 * x for x in image.mean] == told.data_preprocessor.mean
    assert [255 * x for x in image.std] == told.data_preprocessor.std
    assert own["encoder"]["img_size"] == image.size == told.test_cfg.crop_size[0]
    assert image.stride == told.test_cfg.stride[0]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModuleNotFoundError("No module named 'mmseg'", name="mmseg"),
         r'mmseg is not installed: pip install "vlbench\[segmentation\]"\.'),
        (ImportError("libGL.so.1: cannot open shared object file: No such file or directory"),
         "opencv needs libGL.so.1, which this machine lacks: apt-get install libgl1"),
    ],
)  # fmt: skip
def test_what_mmsegmentation_lacks_is_told(error: ImportError, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(mmseg_shim, "install", lambda: None)
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError, match=sentence):
        mmseg_shim.require()


def test_operators_that_are_missing_say_so_when_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv", ModuleType("mmcv"))
    monkeypatch.delitem(sys.modules, "mmcv._ext", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    mmseg_shim.install()
    operators = sys.modules.pop("mmcv._ext")
    assert not hasattr(operators, "__path__")
    with pytest.raises(NotImplementedError, match="operator nms is compiled code"):
        operators.nms(1)
