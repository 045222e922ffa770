"""Oracle: a checkpoint or a configuration of another model is one UserError, of weights with five keys that differ."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.minis import MINI, names
from vlbench.compression.saved import open_checkpoint
from vlbench.errors import UserError
from vlbench.plugins.table import table

FAMILIES = ("blip-vqa-mini", "blip2-mini", "clip-mini", "deit-mini", "llava-mini", "segmenter-mini")
KEY = re.compile(r"[\w.]+ (?:is missing|is unknown|has shape )")


def refused(name: str, checkpoint: Path) -> str:
    cls = table("models").get(name).load()
    with pytest.raises(UserError) as error:
        open_checkpoint(cls, next(card for card in cls.cards if card.name == name), checkpoint)
    return str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layout", ["folder", "file"])
def test_weights_of_another_family_name_five_keys(name: str, layout: str, tmp_path: Path) -> None:
    """Not a vocabulary or a configuration that would not help, and no traceback."""
    for other in FAMILIES:
        if other != name:
            shutil.copytree(MINI / other, tmp_path / other)
            told = refused(name, tmp_path / other / ("model.safetensors" if layout == "file" else ""))
            assert len(KEY.findall(told)) == 5, (other, told)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("content", ["[]", "null", "{", '{"a": '])
def test_a_damaged_configuration_is_named(name: str, content: str, tmp_path: Path) -> None:
    shutil.copytree(MINI / name, tmp_path / name)
    (tmp_path / name / "config.json").write_text(content)
    assert f"{tmp_path / name / 'config.json'} " in refused(name, tmp_path / name)


@pytest.mark.parametrize("name", ["blip2-mini", "deit-mini", "llava-mini"])
def test_a_missing_configuration_is_named(name: str, tmp_path: Path) -> None:
    shutil.copytree(MINI / name, tmp_path / name)
    (tmp_path / name / "config.json").unlink()
    assert f"{tmp_path / name} has no config.json" in refused(name, tmp_path / name)


@pytest.mark.parametrize("content", ["[]", "{}", '{"model_cfg": 3}'])
def test_open_clips_configuration_without_a_model(content: str, tmp_path: Path) -> None:
    shutil.copytree(MINI / "clip-mini", tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text(content)
    assert "open_clip_config.json is no configuration of open_clip's" in refused("clip-mini", tmp_path / "clip")


@pytest.mark.parametrize("name", ["blip-vqa-mini", "blip2-mini", "llava-mini"])
def test_values_that_transformers_refuses_are_told(name: str, tmp_path: Path) -> None:
    shutil.copytree(MINI / name, tmp_path / name)
    config = json.loads((MINI / name / "config.json").read_text())
    config["vision_config"]["hidden_size"] = "wide"
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    told = refused(name, tmp_path / name)
    assert "config" in told
    assert "hidden_size" in told
