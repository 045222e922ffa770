"""Oracle: the library's own whole forward of SigLIP and of DINO's classifiers, on tiny random folders that it wrote."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.nn.test_kinds import close_gates, random_keep
from tests.registry.folders import VISION, byte_tokenizer
from tests.registry.test_families import picture, raw
from vlbench.calibration.capture import capture_all, replay
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.export import export
from vlbench.compression.saved import load_model, open_checkpoint, save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.images.folder import folder_image
from vlbench.images.pipeline import preprocess
from vlbench.plugins.table import table
from vlbench.structure import check_structure
from vlbench.task import Sample

DINO2 = {**VISION, "image_size": 28, "patch_size": 7, "mlp_ratio": 2, "num_labels": 5}
DINO3 = {**VISION, "image_size": 28, "patch_size": 7, "num_register_tokens": 2}
NAMES = {str(i): f"class {i}" for i in range(5)}


def _random(net: Any) -> Any:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            wide = parameter.dim() > 1
            parameter.copy_(noise * parameter[0].numel() ** -0.5 if wide else 0.1 * noise + name.endswith("weight"))
    return net.eval()


def _dino2(folder: Path, model: str = "Dinov2", **more: Any) -> Callable[[Tensor], Tensor]:
    config = getattr(hf, f"{model}Config")(**{**DINO2, "id2label": NAMES, **more})
    net = _random(getattr(hf, f"{model}ForImageClassification")(config))
    net.save_pretrained(folder)
    return lambda images: net(images).logits


def _registers(folder: Path) -> Callable[[Tensor], Tensor]:
    """The library's classifier takes registers for patches; DINO's own linear head does not."""
    _dino2(folder, "Dinov2WithRegisters", num_register_tokens=2)
    net = hf.Dinov2WithRegistersForImageClassification.from_pretrained(folder).eval()

    def logits(images: Tensor) -> Tensor:
        states = net.dinov2_with_registers(images).last_hidden_state
        return net.classifier(torch.cat([states[:, 0], states[:, 3:].mean(1)], 1))

    return logits


def _dino3(folder: Path) -> Callable[[Tensor], Tensor]:
    """The backbone's file, and a head beside it."""
    config = hf.DINOv3ViTConfig(**DINO3, use_gated_mlp=True, id2label=NAMES)
    net = _random(hf.DINOv3ViTModel(config))
    head = _random(torch.nn.Linear(48, 5))
    net.save_pretrained(folder)
    save_file(dict(head.state_dict()), folder / "linear_head.safetensors")

    def logits(images: Tensor) -> Tensor:
        states = net(images).last_hidden_state
        return head(torch.cat([states[:, 0], states[:, 3:].mean(1)], 1))

    return logits


def _siglip(folder: Path) -> Callable[[Tensor], Tensor]:
    tokenizer = byte_tokenizer({})
    text = {**VISION, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 24}
    config = hf.SiglipConfig(text_config=text, vision_config={**VISION, "image_size": 28, "patch_size": 7})
    net = _random(hf.SiglipModel(config))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ids = tokenizer(
        [t.lower() for t in TEXTS], padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    ).input_ids
    return lambda images: net(input_ids=ids, pixel_values=images).logits_per_image


TEXTS = ("A red Dog", "two", "what is it, and where does it stand in the picture?")
KINDS = {
    "siglip2-base-224": _siglip, "dinov2-small": _dino2, "dinov2-base": _registers,
    "dinov2-giant": lambda folder: _dino2(folder, use_swiglu_ffn=True), "dinov3-vits16": _dino3,
}  # fmt: skip


@dataclass
class Opened:
    folder: Path
    model: Any
    logits: Callable[[Tensor], Tensor]  # the library's, of images by texts or classes


@pytest.fixture(scope="module", params=KINDS)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    logits = KINDS[request.param](folder)
    cls = table("models").get(request.param).load()
    card = next(c for c in cls.cards if c.name == request.param)
    return Opened(folder, open_checkpoint(cls, card, folder)[0], logits)


IMAGES = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(5))


def batch(model: Any, dtype: torch.dtype = torch.float32) -> Batch:
    samples = [
        Sample(str(i), (Path(str(i)),), texts=(text,), target=f"class {i}" if hasattr(model, "classes") else None)
        for i, text in enumerate(TEXTS)
    ]
    return Batch(samples, IMAGES.to(dtype), torch.tensor([[0], [1], [2]]), {})


def outputs(model: Any, net: Any) -> Tensor:
    other = copy(model)
    other.net = net
    capability = model.card.capabilities[0]
    with torch.no_grad():
        found = getattr(other, f"{capability}_outputs")(batch(other, next(net.parameters()).dtype))
    return torch.cat([part for part, _ in found.logits])


def test_logits_are_the_librarys(opened: Opened) -> None:
    with torch.no_grad():
        want = opened.logits(IMAGES)
    got = outputs(opened.model, opened.model.net)[:3]
    assert float((got - want).abs().max()) <= 1e-6 * max(1.0, float(want.abs().max()))


def test_the_loss_and_vectors_of_siglip_are_the_librarys(tmp_path: Path) -> None:
    _siglip(tmp_path)
    cls = table("models").get("siglip-base-224").load()
    model = cls.open(cls.cards[0], tmp_path)
    net = hf.SiglipModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = net(input_ids=model.tokens(TEXTS), pixel_values=IMAGES, return_loss=True)
        assert float(model.match_loss(batch(model))) == pytest.approx(float(want.loss), rel=1e-6)
        found = list(model.embed(model.encode(IMAGES), batch(model)))
    for i, line in enumerate(found):
        assert torch.allclose(line["image"], want.image_embeds[i], atol=1e-6)
        assert torch.allclose(line["texts"][0], want.text_embeds[i], atol=1e-6)


@pytest.mark.parametrize("size", [(60, 20), (1, 1), (300, 4)])
def test_squashed_pixels_are_the_librarys(tmp_path: Path, size: tuple[int, int]) -> None:
    """Within one grey level, of the processor that lies in the folder."""
    processor = hf.SiglipImageProcessor(size={"height": 28, "width": 28}, resample=2)
    processor.save_pretrained(tmp_path)
    spec = folder_image(table("models").get("siglip2-base-224").load().cards[2].image, tmp_path)
    assert (spec.size, spec.interpolation, spec.resize) == (28, "bilinear", "squash")
    want = processor(images=[picture(*size)], do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    assert float((preprocess(raw(picture(*size)), spec).float() - want[0].float()).abs().max()) <= 1


def test_a_cut_model_equals_the_gated_one(opened: Opened) -> None:
    model = deepcopy(opened.model)
    model.net = model.net.double()
    dense = outputs(model, model.net)
    for pick in (lambda site: site.unit, lambda site: (site, *site.variants)[-1].unit):
        gated, small = deepcopy(model.net), deepcopy(model.net)
        structures = []
        for net in (gated, small):
            other = copy(model)
            other.net = net
            structures.append(other.structure().with_units(pick))
        keep = random_keep(structures[0], 0)
        check_structure(gated, structures[0])
        with torch.no_grad():
            close_gates(gated, structures[0], keep)
        cut(small, structures[1], keep)
        want = outputs(model, gated)
        assert float((outputs(model, small) - want).abs().max()) <= 1e-6
        assert float((want - dense).abs().max()) > 1e-3


def test_blocks_replay_to_what_they_gave(opened: Opened) -> None:
    model = opened.model
    loss = getattr(model, f"{model.card.capabilities[0]}_loss")
    for tower in model.structure().towers:
        calls = capture_all(model.net, tower.blocks, lambda: loss(batch(model)))
        for block, made in zip(tower.blocks, calls, strict=True):
            for call in made:
                assert torch.equal(replay(model.net, block, call, call.hidden), call.output), block.path


def test_a_cut_model_is_saved_and_opened_again_to_the_bit(opened: Opened, tmp_path: Path) -> None:
    model = copy(opened.model)
    model.net = deepcopy(opened.model.net)
    structure = model.structure()
    keep = random_keep(structure, 1)
    cut(model.net, structure, keep)
    save_model(tmp_path / "saved", model, Compression(cuts=[Cut.of(structure, keep)]))
    other, _ = load_model(tmp_path / "saved")
    assert torch.equal(outputs(other, other.net), outputs(model, model.net))
    if model.stock() is None:
        return
    export(str(tmp_path / "saved"), tmp_path / "out", tmp_path)
    net = run_path(str(tmp_path / "out" / "load.py"))["load"](tmp_path / "out")
    with torch.no_grad():
        got = net(input_ids=model.tokens(TEXTS), pixel_values=IMAGES).logits_per_image
    assert float((got - outputs(model, model.net)[:3]).abs().max()) <= 1e-5 * float(got.abs().max())


def test_old_names_of_dinov2_are_read(tmp_path: Path) -> None:
    """attention.attention.query and, of the giant, gate over up in one matrix."""
    want = _dino2(tmp_path, use_swiglu_ffn=True)(IMAGES)
    tensors = load_file(tmp_path / "model.safetensors")
    old: dict[str, Tensor] = {}
    for key, value in tensors.items():
        for new, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            key = key.replace(f"attention.{new}.", f"attention.attention.{name}.")
        old[key.replace("attention.o_proj.", "attention.output.dense.").replace("down_proj", "weights_out")] = value
    for key in [k for k in old if ".gate_proj." in k]:
        up = old.pop(key.replace("gate_proj", "up_proj"))
        old[key.replace("gate_proj", "weights_in")] = torch.cat([old.pop(key), up])
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    cls = table("models").get("dinov2-giant").load()
    model = cls.open(cls.cards[3], tmp_path)
    assert torch.allclose(model.encode(IMAGES), want, atol=1e-6)
    assert model.classes == list(NAMES.values())


def test_what_a_folder_lacks_is_told(tmp_path: Path) -> None:
    cls = table("models").get("dinov3-vits16").load()
    card = next(c for c in cls.cards if c.name == "dinov3-vits16")
    (tmp_path / "dino").mkdir()
    _dino3(tmp_path / "dino")
    (tmp_path / "dino" / "linear_head.safetensors").unlink()
    with pytest.raises(UserError, match="has no linear head, which turns features into classes"):
        cls.open(card, tmp_path / "dino")
    save_file({"weight": torch.zeros(7, 48), "bias": torch.zeros(7)}, tmp_path / "dino" / "linear_head.safetensors")
    with pytest.raises(UserError, match="does not name each of the head's 7 classes once"):
        cls.open(card, tmp_path / "dino")
    cls = table("models").get("siglip-base-224").load()
    (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(UserError, match="keeps the shape of an image"):
        cls.open(cls.cards[0], tmp_path)


def test_sigmoid_loss_takes_texts_of_one_image_for_right(tmp_path: Path) -> None:
    _siglip(tmp_path)
    cls = table("models").get("siglip-base-224").load()
    model = cls.open(cls.cards[0], tmp_path)
    two = batch(model)
    two = Batch(two.samples, IMAGES[:2], torch.tensor([[0], [0], [1]]), {})
    with torch.no_grad():
        images = F.normalize(model.image_features(model.encode(IMAGES[:2])), dim=-1)[[0, 0, 1]]
        texts = F.normalize(model.text_features(model.tokens(TEXTS)), dim=-1)
        logits = images @ texts.T * model.net.logit_scale.exp() + model.net.logit_bias
        sign = torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
        want = -torch.log(torch.sigmoid(sign * logits)).sum(1).mean()
        assert float(model.match_loss(two)) == pytest.approx(float(want), rel=1e-5)
