"""Files that UPop's own extraction wrote (oracles/upop), and files in its format of every head of BLIP: they open by
their path, as wide as they are, and are evaluated by checkpoint=. The other recordings of extracted models (oracles/
models) are followed in this folder's files of each family."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import minis
from tests.oracles import Oracle
from tests.registry.test_blip import vocabulary
from vlbench.compression.saved import save_model
from vlbench.images.spec import ImageSpec
from vlbench.machine.ui import Screen
from vlbench.model import Card
from vlbench.nn.attend import Shared
from vlbench.plugins.table import table
from vlbench.records.record import Record
from vlbench.run.runner import Runner

pytestmark = pytest.mark.slow

keys = importlib.import_module("vlbench.registry._blip_keys")


def extracted(shared: Path, name: str) -> tuple[Oracle, dict[str, Tensor]]:
    oracle = Oracle(shared / "oracles" / "upop" / f"{name}.npz")
    return oracle, oracle.tensors("compressed/")


def widths(oracle: Oracle) -> list[int]:
    return sorted(kept[0] if isinstance(kept, list) else int(kept) for kept in oracle.facts["kept"].values())


def units(model: Any) -> list[int]:
    return sorted(site.units for site in model.structure().sites)


@pytest.mark.parametrize("bias", ["original", "fixed"])
@torch.no_grad()
def test_deit(shared: Path, bias: str) -> None:
    """Extracted with the original's random bias of qkv, and with the one that was trained."""
    oracle, weights = extracted(shared, "deit_p50_f64")
    cls = table("models").get("deit-small").load()
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    names = [f"class {number}" for number in range(10)]
    config = {
        "architecture": "deit_small_patch16_224", "num_classes": 10, "model_args": size, "label_names": names,
    }  # fmt: skip
    model = cls.build(cls.cards[0], config, Path())
    model.net.double()
    model.load(weights)
    assert units(model) == widths(oracle)
    key = "out/compressed_original"
    if bias == "fixed":
        key = "out/compressed_qkvbias_fixed"
        for index, block in enumerate(model.net.blocks):
            gate = oracle[f"alpha/0019/blocks.{index}.attn.alpha"].flatten().bool()
            trained = oracle[f"final/blocks.{index}.attn.qkv.bias"].view(6, -1)[:, gate]
            block.attn.qkv.bias.copy_(trained.flatten())
    assert torch.allclose(model.net(oracle["batch/0/x"].double()), oracle[key], rtol=0, atol=1e-9)


@torch.no_grad()
def test_nlvr2(shared: Path, tmp_path: Path) -> None:
    oracle, weights = extracted(shared, "nlvr_p50_f64")
    cls = table("models").get("blip-nlvr").load()
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()[: words_of(weights) - 2]) + "\n")
    (tmp_path / "config.json").write_text(
        '{"vision_config": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},'
        ' "text_config": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}}'
    )
    torch.save({"model": weights}, tmp_path / "model.pth")
    model = cls.open(Card("blip-nlvr", "", ("judge",), "", ImageSpec(size=16)), tmp_path / "model.pth")
    model.net.double().load_state_dict(keys.converted(weights))  # opening rounds to float32
    assert units(model) == widths(oracle)
    at = oracle.tensors("batch/0/")
    states = model.encode(torch.cat([at["im0"], at["im1"]]).double())
    sides = tuple(Shared(states, torch.arange(len(at["y"])) + i * len(at["y"])) for i in (0, 1))
    ids = torch.cat([torch.full_like(at["ids"][:, :1], model.enc), at["ids"][:, 1:]], 1)
    out = model.net.text_encoder(
        input_ids=ids, attention_mask=(at["ids"] != 0).long(), encoder_hidden_states=sides, use_cache=False
    )
    found = model.net.cls_head(out.last_hidden_state[:, 0])
    assert torch.allclose(found, oracle["out/original compress()"], rtol=0, atol=1e-9)


def words_of(weights: Mapping[str, Tensor]) -> int:
    return len(weights["text_encoder.embeddings.word_embeddings.weight"])


def test_clip(shared: Path, tmp_path: Path) -> None:
    """No outputs were recorded of this one: the widths, and the softmax scale of what is left."""
    oracle, weights = extracted(shared, "clip_p50_f32")
    torch.save(weights, tmp_path / "model.pth")
    cls = table("models").get("clip-vit-b16").load()
    model = cls.open(next(c for c in cls.cards if c.name == "clip-vit-b16"), tmp_path / "model.pth")
    assert units(model) == widths(oracle)
    for block in (*model.net.visual.transformer.resblocks, *model.net.transformer.resblocks):
        rows = block.attn.qkv.weight.shape[0] // (3 * block.attn.num_heads)
        assert block.attn.scale == pytest.approx(rows**-0.5)


@torch.no_grad()
def test_segmenter(shared: Path) -> None:
    """No outputs were recorded of this one either: it is the final search model without what its masks hide."""
    oracle, weights = extracted(shared, "segmenter_p30_f64")
    family = importlib.import_module("vlbench.registry.segmenter")
    dropped = importlib.import_module("vlbench.registry._segmenter_keys").DROPPED
    config = {
        "classes": oracle["init/decoder.cls_emb"].shape[1],
        "encoder": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "decoder": {"depth": 2, "heads": 2},
    }

    def opened(tensors: Mapping[str, Tensor]) -> Any:
        model = family.MaskSegmenter.build(family.MaskSegmenter.cards[0], config, Path())
        model.net.double()
        model.load({k: v.double() for k, v in tensors.items() if not dropped.search(k) and not k.endswith("alpha")})
        return model

    whole, cut = opened(oracle.tensors("final/")), opened(weights)
    assert units(cut) == widths(oracle)
    for tower in whole.structure().towers:
        for block in tower.blocks:
            for site in block.sites:
                name = f"{block.path}.{'attn' if site.kind == 'attention' else 'mlp'}.alpha"
                gone = (oracle[f"alpha/0023/{name}"].flatten() == 0).nonzero().flatten()
                for part in site.slices:
                    if part.gated:
                        whole.net.get_parameter(part.param)[part.index[gone].flatten()] = 0
    images = oracle["batch/0/im"].double()
    assert torch.allclose(cut.net(images), whole.net(images), rtol=0, atol=1e-9)


# A head's file in UPop's format, evaluated by its path --------------------------------------------------------------

ORIGINAL = (
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv", r"visual_encoder.blocks.\1.attn.qkv"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection", r"visual_encoder.blocks.\1.attn.proj"),
    (r"^vision_model\.encoder\.layers\.(\d+)\.layer_norm(\d)", r"visual_encoder.blocks.\1.norm\2"),
    (r"^vision_model\.encoder\.layers", r"visual_encoder.blocks"),
    (r"^vision_model\.post_layernorm", r"visual_encoder.norm"),
    (r"^vision_model\.embeddings\.patch_embedding", r"visual_encoder.patch_embed.proj"),
    (r"^vision_model\.embeddings\.position_embedding", r"visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.class_embedding", r"visual_encoder.cls_token"),
)


def original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of the original project, with a mask that UPop leaves beside them."""
    named = {"visual_encoder.blocks.0.attn.alpha": torch.ones(1, 1, 3)}
    for key, value in tensors.items():
        for pattern, name in ORIGINAL:
            key = re.sub(pattern, name, key)
        named[key] = value
    assert keys.converted(named).keys() == tensors.keys()
    return named


def scored(runs: Path, **words: str) -> Record:
    return Runner(runs, Screen(quiet=True)).run({"limit": "12", "evaluation.batch_size": "12", **words})


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("blip-vqa-mini", "vqav2"),
        ("blip-caption-mini", "coco_caption"),
        ("blip-retrieval-mini", "coco_retrieval"),
        ("blip-nlvr-mini", "nlvr2"),
    ],
)
def test_a_cut_file_of_every_head_is_evaluated_as_the_model_it_was_written_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, task: str
) -> None:
    """Text attention is trained with the scale of its kept width, which the file does not say."""
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java: SPICE alone takes a minute
    model, state = minis.compressed(name, "kept_scale")
    save_model(tmp_path / "saved", model, state)
    model.save_assets(tmp_path / "file")
    (tmp_path / "file" / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    torch.save({"model": original(model.net.state_dict())}, tmp_path / "file" / "model.pth")
    found, wanted = (
        scored(tmp_path / "runs", task=task, checkpoint=str(tmp_path / where)) for where in ("file/model.pth", "saved")
    )
    assert found.scores == wanted.scores
    assert found.parameters == wanted.parameters
    assert found.weights_digest != wanted.weights_digest
    dense = scored(tmp_path / "runs", task=task)
    assert dense.parameters.total > found.parameters.total
    assert dense.scores != found.scores
