"""What a folder says of the size of images is counted, timed and exported. Oracle: the model that a run opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vlbench.cell.cell import Cell, open_cell
from vlbench.cell.resolve import resolve
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.cost.counts import stated_macs
from vlbench.cost.report import costs
from vlbench.run.runner import open_model
from vlbench.tensors.locate import locate

# Model -> its task, the part and key of its configuration that say the size, the table of positions.
SIZED = {
    "deit-mini": ("imagenet", ("model_args", "img_size"), "pos_embed"),
    "clip-mini": ("flickr30k_retrieval", ("vision_cfg", "image_size"), "visual.positional_embedding"),
    "blip-vqa-mini": ("vqav2", ("vision_config", "image_size"), "vision_model.embeddings.position_embedding"),
    "segmenter-mini": ("ade20k", ("encoder", "img_size"), "encoder.pos_embed"),
    "llava-mini": (
        "vqav2", ("vision_config", "image_size"), "model.vision_tower.embeddings.position_embedding.weight",
    ),
}  # fmt: skip


def enlarged(name: str, folder: Path) -> int:
    """The mini model's folder with twice the patches down and across; the side of its images."""
    _, (part, key), table = SIZED[name]
    shutil.copytree(locate(f"mini:{name}", "main", {}), folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config[part][key] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    places = tensors[table].view(-1, tensors[table].shape[-1])  # (1 + patches, D), the class token first
    side = round((len(places) - 1) ** 0.5)
    grid = places[1:].T.view(1, -1, side, side)
    wide = F.interpolate(grid, scale_factor=2.0, mode="bilinear").flatten(2)[0].T
    resized = torch.cat([places[:1], wide])
    tensors[table] = resized.view(*tensors[table].shape[:-2], *resized.shape).contiguous()
    save_file(tensors, folder / "model.safetensors")
    return int(config[part][key])


def cell_of(name: str, **words: str) -> Cell:
    return open_cell(resolve({"task": SIZED[name][0], "model": name, **words}))


@pytest.mark.parametrize("name", SIZED)
def test_the_size_is_that_of_the_folder_everywhere(name: str, tmp_path: Path) -> None:
    size = enlarged(name, tmp_path / "folder")
    cell = cell_of(name, checkpoint=str(tmp_path / "folder"))
    assert (cell.image.size, cell.own_preprocessing) == (size, f"size={size}")
    model, capability = open_model(cell)[0], cell.task.capability
    macs = stated_macs(model, capability)
    assert macs > 2 * stated_macs(open_model(cell_of(name))[0], capability)
    (cost,), _ = costs({"model": name, "task": cell.task.name, "checkpoint": str(tmp_path / "folder")})
    assert (cost.macs, cost.parameters) == (macs, sum(p.numel() for p in model.net.parameters()))
    save_model(tmp_path / "saved", model, Compression())
    saved = load_model(tmp_path / "saved")[0]  # what is timed and exported
    assert saved.card.image == cell.image
    assert stated_macs(saved, capability) == macs
