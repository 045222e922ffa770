"""What a checkpoint's folder says of its images, which wins over the card.

Sources, the first that is there: `preprocess_cfg` of open_clip_config.json (open_clip), preprocessor_config.json or
`image_processor` of processor_config.json (transformers), `pretrained_cfg` of config.json (timm), variant.yml
(Segmenter: normalisation, the shorter side, window and stride). The side of the
network's input (image_size of the vision configuration, img_size of timm's arguments) wins over all of them: no other
goes through it. "image_aspect_ratio": "pad" (LLaVA's own config.json) pads what the processor would crop.
Nothing of torch is imported: the identity of a finished cell asks for this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..disk.digests import MANIFEST
from ..errors import UserError
from .spec import ImageSpec

OPEN_CLIP, TRANSFORMERS, PROCESSOR, CONFIG, VARIANT = (
    "open_clip_config.json", "preprocessor_config.json", "processor_config.json", "config.json", "variant.yml",
)  # fmt: skip
# Segmenter's names of normalisations (mean, std): of ViTs that Google trained, and of DeiT's.
NORMALISATIONS = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}  # fmt: skip
PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
COMPUTED = ("bicubic", "bilinear")  # interpolations that the pipeline has
LARGEST = 2**16  # pixels of a side: a picture that is enlarged further, by a share of 10^-9, would fill the memory
# Classes of transformers that crop where their file leaves do_center_crop out.
CROPPING = ("CLIP", "ChineseCLIP", "Llava")
# What the names of those begin with whose files are read as _transformers() does; others crop or scale otherwise.
READ = (*CROPPING, "BLIP", "Blip", "Bit", "Beit", "DeiT", "DINOv3", "Segformer", "Siglip", "ViT")


def folder_image(card: ImageSpec, weights: Path) -> ImageSpec:
    """The card's preprocessing with what the folder of `weights` says in its place; for a file, that of the folder it
    lies in. Of a compressed model, what it was saved with. Raises UserError for words that cannot be followed."""
    if card.resize == "views":
        return card
    home = weights if weights.is_dir() else weights.parent
    if (home / MANIFEST).is_file():
        stated = _read(home / MANIFEST).get("image")
        return card if stated is None else image_of(stated)
    try:
        return _told(card, home)
    except UserError as error:
        raise UserError(f"{home}: {error} Mend it, or write preprocessing=card for the card's own.") from None


def image_of(facts: Mapping[str, Any]) -> ImageSpec:
    """From JSON, or from the literals of a card that was not imported."""
    names = {field.name for field in fields(ImageSpec)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items() if k in names}
    return ImageSpec(**given)


def differences(stated: ImageSpec, card: ImageSpec) -> str:
    """What differs from the card, in words: "size=384 crop_pct=1". Empty where nothing does."""
    names = [field.name for field in fields(ImageSpec) if getattr(stated, field.name) != getattr(card, field.name)]
    return " ".join(f"{name}={_word(getattr(stated, name))}" for name in names)


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{number:.6g}" for number in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _told(card: ImageSpec, home: Path) -> ImageSpec:
    config = _read(home / CONFIG)
    clip = _read(home / OPEN_CLIP)
    processor = _read(home / TRANSFORMERS) or _part(_read(home / PROCESSOR), "image_processor")
    spec = card
    if clip:
        spec = _open_clip(card, _part(clip, "preprocess_cfg"))
    elif processor:
        spec = _transformers(card, processor)
    elif pretrained := _part(config, "pretrained_cfg") or (config if "input_size" in config else {}):
        spec = _timm(card, pretrained)
    elif card.resize == "keep" and (variant := read_variant(home)):
        spec = _segmenter(card, variant)
    if config.get("image_aspect_ratio") == "pad" and spec.resize != "keep":
        spec = replace(spec, resize="pad", crop_pct=1.0)
    size = _network_size(_part(clip, "model_cfg") or config)
    said = not clip and bool(processor.keys() & {"size", "crop_size"}) and spec.resize != "keep"
    if size is not None and said and spec.size != size:
        raise UserError(f"its image processor gives {spec.size} pixels a side, and its network takes {size}.")
    return spec if size is None else replace(spec, size=size)


def _network_size(config: Mapping[str, Any]) -> int | None:
    """The side of the images that the network itself is built for, where its configuration says it."""
    for part, key in (("vision_config", "image_size"), ("vision_cfg", "image_size"), ("model_args", "img_size"),
                      ("encoder", "img_size")):  # fmt: skip
        network = _part(config, part)
        if key in network:
            return _side(network[key], f"{part}.{key}")
    return None


def _transformers(card: ImageSpec, processor: Mapping[str, Any]) -> ImageSpec:
    """An image processor of transformers."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    if kind and not kind.startswith(READ):
        raise UserError(f"its image processor is a {kind}, and what that does is not known here.")
    crops = processor.get("do_center_crop", "crop_size" in processor or kind.startswith(CROPPING))
    if processor.get("do_resize") is False:
        raise UserError("its image processor does not resize, and images of several sizes do not go together.")
    spec = _normalised(card, processor)
    if "resample" in processor:
        spec = replace(spec, interpolation=_interpolation(PILLOW.get(processor["resample"], processor["resample"])))
    if card.resize == "keep":
        return spec
    size = processor.get("size", card.size)
    if isinstance(size, Mapping) and not size.keys() & {"shortest_edge", "height", "width"}:
        raise UserError(f"its size is {dict(size)}, where shortest_edge, or height and width, should be.")
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else (size if crops else None)
    if processor.get("do_pad") and kind.startswith("Llava"):
        return replace(spec, resize="pad", crop_pct=1.0, size=_side(size if shortest is None else shortest, "size"))
    if crops:
        return _cropped(spec, processor.get("crop_size", card.size if shortest is None else shortest), shortest)
    if shortest is not None:
        raise UserError("its image processor keeps the shape of an image and crops nothing, which this family cannot.")
    return replace(spec, resize="squash", crop_pct=1.0, size=_side(size, "size"))


def _cropped(spec: ImageSpec, crop: Any, shortest: Any) -> ImageSpec:
    side = _side(crop, "crop_size")
    before = _side(shortest, "size.shortest_edge") if shortest is not None else side
    share = side / before
    while math.floor(side / share) > before:
        share = math.nextafter(share, 2.0)
    while math.floor(side / share) < before:
        share = math.nextafter(share, 0.0)
    if share > 1:
        raise UserError(f"it crops {side} pixels out of {before}.")
    return replace(spec, resize="crop", crop_pct=share, size=side)


def _normalised(card: ImageSpec, processor: Mapping[str, Any]) -> ImageSpec:
    """(value * rescale_factor - mean) / std as mean and std of values in [0, 1]."""
    mean, std = _three(processor.get("image_mean", card.mean)), _three(processor.get("image_std", card.std))
    if processor.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = processor.get("rescale_factor", 1 / 255)
    if processor.get("do_rescale") is False:
        factor = 1.0
    if not _number(factor) or factor <= 0:
        raise UserError(f"its rescale_factor is {factor!r}.")
    unit = 1.0 if math.isclose(factor * 255, 1.0, rel_tol=1e-6) else factor * 255
    return _with(card, tuple(m / unit for m in mean), tuple(s / unit for s in std))


def _timm(card: ImageSpec, pretrained: Mapping[str, Any]) -> ImageSpec:
    """timm's pretrained_cfg. What its own tests evaluate with (test_input_size, test_crop_pct) is not its default."""
    spec = _with(card, _three(pretrained.get("mean", card.mean)), _three(pretrained.get("std", card.std)))
    if "interpolation" in pretrained:
        spec = replace(spec, interpolation=_interpolation(pretrained["interpolation"]))
    if "input_size" in pretrained:
        sides = pretrained["input_size"]
        if not isinstance(sides, list) or len(sides) != 3:
            raise UserError(f"its input_size is {sides!r}, where three numbers should be.")
        spec = replace(spec, size=_side(sides[1:], "input_size"))
    if "crop_pct" in pretrained or "crop_mode" in pretrained:
        share = pretrained.get("crop_pct", card.crop_pct)
        if not _number(share) or not 0 < share <= 1 or spec.size / share > LARGEST:
            raise UserError(f"its crop_pct is {share!r}, where a share from 0 to 1 should be.")
        modes: dict[Any, Any] = {"center": "crop", None: "crop", "": "crop", "squash": "squash"}
        mode = pretrained.get("crop_mode", "center")
        if mode not in modes:
            raise UserError(f"its crop_mode is {mode!r}, which is not computed here.")
        spec = replace(spec, crop_pct=float(share), resize=modes[mode])
    return spec


def _open_clip(card: ImageSpec, preprocess: Mapping[str, Any]) -> ImageSpec:
    """open_clip's preprocess_cfg, whose default is to crop."""
    spec = _with(card, _three(preprocess.get("mean", card.mean)), _three(preprocess.get("std", card.std)))
    if "interpolation" in preprocess:
        spec = replace(spec, interpolation=_interpolation(preprocess["interpolation"]))
    if "size" in preprocess:
        spec = replace(spec, size=_side(preprocess["size"], "size"))
    if "resize_mode" in preprocess:
        modes: dict[Any, Any] = {"shortest": "crop", "squash": "squash"}
        if preprocess["resize_mode"] not in modes:
            raise UserError(f"its resize_mode is {preprocess['resize_mode']!r}, which is not computed here.")
        spec = replace(spec, resize=modes[preprocess["resize_mode"]], crop_pct=1.0)
    return spec


def read_variant(home: Path) -> dict[str, Any]:
    """Segmenter's variant.yml, which it writes beside its weights. Empty where there is none."""
    file = home / VARIANT
    if not file.is_file():
        return {}
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} cannot be read ({reason}): put that of the checkpoint there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} says nothing of a Segmenter: put that of the checkpoint there.")
    return content


def _segmenter(card: ImageSpec, variant: Mapping[str, Any]) -> ImageSpec:
    """Segmenter's variant.yml. Its image's shorter side is the window's."""
    data, inference = _part(variant, "dataset_kwargs"), _part(variant, "inference_kwargs")
    name = data.get("normalization", _part(variant, "net_kwargs").get("normalization", "vit"))
    if name not in NORMALISATIONS:
        raise UserError(f"its {VARIANT} names the normalization {name!r}, and {', '.join(NORMALISATIONS)} are known.")
    spec = _with(card, *NORMALISATIONS[name])
    window = _side(inference.get("window_size", data.get("crop_size", card.size)), "window_size")
    stride = _side(inference.get("window_stride", window), "window_stride")
    shorter = _side(inference.get("im_size", data.get("image_size", window)), "im_size")
    if shorter != window:
        raise UserError(f"its {VARIANT} has images of {shorter} pixels and windows of {window}, which are one here.")
    return replace(spec, size=window, stride=0 if stride == window and not card.stride else stride)


def _with(card: ImageSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageSpec:
    """Numbers that are the card's but for rounding stay the card's: 0.48145466 and float32's 0.48145467."""
    if any(s <= 0 for s in std):
        raise UserError(f"its std is {_word(std)}, and images cannot be divided by that.")
    close = [math.isclose(a, b, abs_tol=1e-6) for a, b in zip((*mean, *std), (*card.mean, *card.std), strict=True)]
    return card if all(close) else replace(card, mean=mean, std=std)  # type: ignore[arg-type]


def _interpolation(word: Any) -> Any:
    if word not in COMPUTED:
        raise UserError(f"its interpolation is {word!r}, and images are resized by {' or '.join(COMPUTED)} here.")
    return word


def _three(value: Any) -> tuple[float, ...]:
    if _number(value):
        return (float(value),) * 3
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_number, value)):
        raise UserError(f"it has {value!r} where a number for each of three colours should be.")
    return tuple(float(number) for number in value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _side(value: Any, name: str) -> int:
    """Of a square: 384, [384, 384], {"height": 384, "width": 384} or {"shortest_edge": 384}."""
    sides = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    if not sides or any(not isinstance(n, int) or isinstance(n, bool) or not 0 < n <= LARGEST for n in sides):
        raise UserError(f"its {name} is {value!r}, where a number of pixels should be.")
    if len(set(sides)) > 1:
        raise UserError(f"its {name} is {value!r}, and only squares are computed here.")
    return int(sides[0])


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, Mapping) else {}


def _read(file: Path) -> dict[str, Any]:
    """Empty where it is not there. Raises UserError where it is no JSON object."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}): put that of the checkpoint there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no JSON object: put that of the checkpoint there.")
    return content
