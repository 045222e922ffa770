"""Oracle: the pixels that transformers, timm and open_clip make of the words in a checkpoint's folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, LlavaImageProcessorPil

from tests.lab import CONFIG, Lab
from vlbench.compression.saved import load_model
from vlbench.errors import UserError
from vlbench.images.folder import differences, folder_image
from vlbench.images.pipeline import normalise, preprocess
from vlbench.images.spec import ImageSpec
from vlbench.records.record import read_record

CARD = ImageSpec(size=32, resize="crop", crop_pct=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NEAR = 2.5 / 255 / 0.2  # two grey levels of the smallest std: resizing on uint8 is within one of Pillow's


def picture(width: int = 70, height: int = 50) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], -1).astype(np.uint8))


def ours(spec: ImageSpec, image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    return normalise(preprocess(pixels, spec), spec)


def write(folder: Path, name: str, told: Any) -> Path:
    (folder / name).write_text(json.dumps(told))
    return folder


PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 36, "width": 36}),
    "blip": BlipImageProcessorPil(size={"height": 44, "width": 44}, resample=2),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, do_pad=True),
    "scaled": BlipImageProcessorPil(
        size={"height": 24, "width": 24}, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_of_transformers(tmp_path: Path, name: str, file: str) -> None:
    processor = PROCESSORS[name]
    told = processor.to_dict()
    write(tmp_path, file, told if file.startswith("pre") else {"image_processor": told})
    spec = folder_image(CARD, tmp_path)
    for size in ((70, 50), (50, 70), (60, 60)):
        wanted = processor(picture(*size), return_tensors="pt").pixel_values[0]
        found = ours(spec, picture(*size))
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) <= NEAR


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("change", [{}, {"crop_pct": 0.8}, {"crop_mode": "squash", "crop_pct": 0.75}])
def test_timms_pretrained_cfg(tmp_path: Path, change: dict[str, Any], nested: bool) -> None:
    cfg = {
        "input_size": [3, 48, 48], "interpolation": "bilinear", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
        "crop_pct": 1.0, **change,
    }  # fmt: skip
    write(tmp_path, "config.json", {"pretrained_cfg": cfg} if nested else cfg)
    resolved = timm.data.resolve_data_config({}, pretrained_cfg={**cfg, "input_size": (3, 48, 48)})
    wanted = timm.data.create_transform(**resolved)(picture())
    assert float((ours(folder_image(CARD, tmp_path), picture()) - wanted).abs().max()) <= NEAR


VARIANT = """dataset_kwargs: {normalization: deit, image_size: 640, crop_size: 640, dataset: ade20k}
inference_kwargs: {im_size: 640, window_size: 640, window_stride: 320}
net_kwargs: {backbone: deit_base_distilled_patch16_384, n_heads: 12, normalization: deit}
"""
KEPT = ImageSpec(size=512, resize="keep", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)


def test_segmenters_variant(tmp_path: Path) -> None:
    """The right value is Segmenter's own (segm/data/utils.py: "deit" is ImageNet's mean and deviation)."""
    (tmp_path / "variant.yml").write_text(VARIANT)
    image = folder_image(KEPT, tmp_path / "checkpoint.pth")
    assert (image.mean, image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (image.size, image.stride, image.resize) == (640, 320, "keep")
    (tmp_path / "variant.yml").write_text("inference_kwargs: {im_size: 512, window_size: 512, window_stride: 512}")
    assert folder_image(KEPT, tmp_path) == KEPT
    assert folder_image(replace(KEPT, stride=480), tmp_path).stride == 512


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dataset_kwargs: {normalization: own}", "names the normalization 'own'"),
        ("inference_kwargs: {im_size: 640, window_size: 512}", "images of 640 pixels and windows of 512"),
        ("inference_kwargs: {window_size: [512, 640]}", "only squares"),
        ("- 1", "says nothing of a Segmenter"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.system [echo]", "cannot be read"),
    ],
)
def test_a_variant_that_cannot_be_followed_is_told(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "variant.yml").write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        folder_image(KEPT, tmp_path)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clips_preprocess_cfg(tmp_path: Path, mode: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = {"size": 40, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    write(tmp_path, "open_clip_config.json", {"model_cfg": {}, "preprocess_cfg": {**cfg, "resize_mode": mode}})
    wanted = image_transform_v2(PreprocessCfg(**cfg, resize_mode=mode), is_train=False)(picture())
    assert float((ours(folder_image(CARD, tmp_path), picture()) - wanted).abs().max()) <= NEAR


def test_llavas_own_configuration_pads_what_the_processor_would_crop(tmp_path: Path) -> None:
    """A picture of 900 x 300 with content in its left third: 9.2 % of a padded input is not the border's colour and
    not the picture's empty part; a crop shows none of it (the public bug report)."""
    wide = np.zeros((300, 900, 3), np.uint8)
    wide[:, :300] = 255
    image = Image.fromarray(wide)
    processor = {**PROCESSORS["clip"].to_dict(), "size": {"shortest_edge": 336}, "crop_size": 336}
    write(tmp_path, "preprocessor_config.json", processor)
    spec = folder_image(ImageSpec(size=336, resize="crop"), tmp_path)
    assert spec.resize == "crop"
    assert float((ours(spec, image) > 1).float().mean()) == 0
    write(tmp_path, "config.json", {"image_aspect_ratio": "pad"})
    spec = folder_image(ImageSpec(size=336, resize="crop"), tmp_path)
    assert spec.resize == "pad"
    assert 0.08 < float((ours(spec, image) > 1).float().mean()) < 0.13


def test_the_side_of_the_network_wins_and_rounding_is_no_difference(tmp_path: Path) -> None:
    clip = ImageSpec(size=224, resize="crop")
    told = {"size": 224, "mean": [0.48145467042922974, 0.4578275, 0.40821073], "std": list(clip.std)}
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"image_size": 224}}, "preprocess_cfg": told})
    assert differences(folder_image(clip, tmp_path), clip) == ""
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"vision_cfg": {"image_size": 336}}, "preprocess_cfg": told})
    assert folder_image(clip, tmp_path) == replace(clip, size=336)
    assert differences(folder_image(clip, tmp_path), clip) == "size=336"


def test_a_processor_and_a_network_of_two_sizes_are_told(tmp_path: Path) -> None:
    """The library refuses the picture; resizing it to what the network takes is another preprocessing."""
    write(tmp_path, "config.json", {"vision_config": {"image_size": 32}})
    write(tmp_path, "preprocessor_config.json", {"size": {"height": 48, "width": 48}})
    with pytest.raises(UserError, match="its image processor gives 48 pixels a side, and its network takes 32"):
        folder_image(CARD, tmp_path)
    write(tmp_path, "preprocessor_config.json", {"size": {"height": 32, "width": 32}})
    assert folder_image(CARD, tmp_path).size == 32
    write(tmp_path, "preprocessor_config.json", {"image_mean": [0.4, 0.4, 0.4]})
    assert folder_image(CARD, tmp_path).size == 32


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"size": {"height": 20, "width": 30}}, "only squares"),
        ({"size": {"shortest_edge": 30}, "do_center_crop": False}, "keeps the shape"),
        ({"size": 0}, "a number of pixels"),
        ({"size": True}, "a number of pixels"),
        ({"size": "big"}, "a number of pixels"),
        ({"size": 2 * 10**9, "crop_size": 64}, "a number of pixels"),
        ({"resample": 1}, "interpolation is 'lanczos'"),
        ({"image_std": [0.1, 0.0, 0.1]}, "std is"),
        ({"image_std": [0.1, 0.2]}, "each of three colours"),
        ({"rescale_factor": "a"}, "rescale_factor"),
        ({"do_resize": False}, "does not resize"),
        ({"size": {"longest_edge": 32}}, "where shortest_edge, or height and width, should be"),
        ({"size": {"max_pixels": 99}}, "where shortest_edge, or height and width, should be"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "is a ConvNextImageProcessor, and what that does"),
    ],
)
def test_words_that_cannot_be_followed_are_told(tmp_path: Path, told: dict[str, Any], sentence: str) -> None:
    write(tmp_path, "preprocessor_config.json", told)
    with pytest.raises(UserError, match=sentence) as caught:
        folder_image(CARD, tmp_path)
    assert "preprocessing=card" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_share_that_would_fill_the_memory_is_no_share(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"pretrained_cfg": {"crop_pct": 1e-9}})
    with pytest.raises(UserError, match="crop_pct is 1e-09"):
        folder_image(CARD, tmp_path)


# In a run ------------------------------------------------------------------------------------------------------------


def larger(lab: Lab) -> None:
    """The lab's ViT at 128 instead of 64, as a folder of timm's says it: in pretrained_cfg alone."""
    arguments = {k: v for k, v in CONFIG["model_args"].items() if k != "img_size"}  # type: ignore[attr-defined]
    cfg = {"input_size": [3, 128, 128], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    told = {**CONFIG, "model_args": arguments, "pretrained_cfg": cfg}
    (lab.weights / "config.json").write_text(json.dumps(told))
    file = lab.weights / "model.safetensors"
    tensors = load_file(file)
    tensors["pos_embed"] = torch.randn(1, 1 + (128 // 32) ** 2, 16)
    save_file(tensors, file)


def test_the_folders_word_is_run_recorded_saved_timed_and_exported(lab: Lab) -> None:
    larger(lab)
    told = lab.run("method=magnitude", "sparsity=0.5")
    assert told.code == 0, told.err
    lines = [line for line in told.err.splitlines() if "says of its images" in line]
    assert len(lines) == 1
    assert "size=128 resize=crop mean=0.5/0.5/0.5 std=0.5/0.5/0.5" in lines[0]
    runs = {read_record(p).method: p.parent for p in (lab.folder / "runs").glob("*/result.json")}
    record = read_record(runs["magnitude"] / "result.json")
    assert record.evaluation["preprocessing"] == "size=128 resize=crop mean=0.5/0.5/0.5 std=0.5/0.5/0.5"
    assert record.macs_dense is not None
    model, _ = load_model(runs["magnitude"] / "model")
    assert model.card.image.size == 128
    assert model.config["model_args"]["img_size"] == 128
    assert lab("export", runs["magnitude"].name, str(lab.folder / "out")).code == 0
    assert json.loads((lab.folder / "out" / "preprocessing.json").read_text())["size"] == 128


def test_the_users_word_wins(lab: Lab) -> None:
    """preprocessing=card: the card's, for a folder whose network takes it."""
    file = lab.weights / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "pretrained_cfg": {"mean": [0.1] * 3, "std": [1.0] * 3}})
    )
    one, other = (lab.run(f"preprocessing={word}") for word in ("folder", "card"))
    assert one.code == other.code == 0
    assert "says of its images mean=0.1/0.1/0.1 std=1/1/1" in one.err
    assert "says of its images" not in other.err
    told = [read_record(p).evaluation.get("preprocessing") for p in (lab.folder / "runs").glob("*/result.json")]
    assert sorted(map(str, told)) == ["None", "mean=0.1/0.1/0.1 std=1/1/1"]


@pytest.mark.parametrize("names", [["a", "b", 3], ["a", "b"], ["a", "b", "b"], "abc", None])
def test_label_names_that_name_no_classes_are_refused(lab: Lab, names: Any) -> None:
    """A head of three classes; without names it never borrows ImageNet's."""
    file = lab.weights / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label_names": names}))
    told = lab.run()
    assert told.code == 2
    assert "names" in told.err
    assert len(told.err.splitlines()) == 1
