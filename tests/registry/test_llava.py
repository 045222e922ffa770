"""What is LLaVA's own: the vision block that is never read, published names of weights, and prompt templates.

(tests/registry/test_blip2.py holds it against transformers' own module, with the other prompted families.)
"""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.registry import prompted
from vlbench.capability import Batch
from vlbench.compression.saved import distinct_tensors
from vlbench.errors import UserError
from vlbench.task import Sample

llava = importlib.import_module("vlbench.registry.llava")
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': '}}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' '}}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return prompted.build("llava-llama", tmp_path)


def test_the_last_vision_block_is_never_read(model: Any) -> None:
    """vision_feature_layer=-2: of three blocks two are read; what comes after may be anything."""
    vision = model.net.model.vision_tower
    with torch.no_grad():
        before = model.encode(prompted.images())
        for part in (*vision.encoder.layers[2].parameters(), *vision.post_layernorm.parameters()):
            part.fill_(float("nan"))
        assert torch.equal(model.encode(prompted.images()), before)
    names = list(model.structure().matrices)
    assert any("vision_tower.encoder.layers.1." in name for name in names)
    assert not any("vision_tower.encoder.layers.2." in name for name in names)
    assert len(model.structure().towers[0].blocks) == 2
    for layer, blocks in ((-1, 3), (-3, 1), (1, 1), (0, 0)):
        model.net.config.vision_feature_layer = layer
        assert model.blocks == blocks


def test_several_layers_are_refused(tmp_path: Path) -> None:
    config = {**prompted.configuration("llava-llama"), "vision_feature_layer": [-2, -1]}
    with pytest.raises(UserError, match="vision_feature_layer should be one layer"):
        llava.Llava.build(llava.Llava.cards[0], config, prompted.tokenizer_into(tmp_path))


def test_an_image_and_the_words_before_it_are_read_once(model: Any) -> None:
    """Three questions about one image: the language model sees its tokens once, and each question's own."""
    lengths: list[tuple[int, int]] = []
    stack = model.net.model.language_model
    stack.layers[0].register_forward_hook(
        lambda _, args, kwargs, out: lengths.append(tuple(kwargs.get("hidden_states", args[0]).shape[:2])),
        with_kwargs=True,
    )
    samples = [Sample(str(i), (), text) for i, text in enumerate(("a", "b", "c d"))]
    options = {"decoding": "rank", "candidates": ["red", "two"], "k_test": 2}
    batch = Batch(samples, prompted.images(1), torch.zeros(3, 1, dtype=torch.long), options)
    with torch.no_grad():
        model.answer(model.encode(batch.images), batch)
    words = len(model.prompt_ids(model.template("answer").replace("{}", "a")))
    assert lengths[0] == (1, 5)  # [CLS] and four image tokens
    assert sorted(lengths[1:]) == sorted([(2, words), (1, words + 1), (4, 1), (2, 1)])  # then each answer's first token


def published(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names of llava-hf's files, which are older than the library's."""
    found = {}
    for key, value in distinct_tensors(model.net).items():
        name = key.replace("model.language_model.", "language_model.model.").replace(
            "model.vision_tower.", "vision_tower.vision_model."
        )
        name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
        found["language_model.lm_head.weight" if name == "lm_head.weight" else name] = value.float()
    found["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return found


def folder_of(model: Any, folder: Path, **config: Any) -> Path:
    save_file(published(model), folder / "model.safetensors")
    told = {k: v for k, v in {**model.config, **config}.items() if k != "prompts"}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def card() -> Any:
    found = deepcopy(llava.Llava.cards[0])
    object.__setattr__(found, "image", type(found.image)(size=16))
    return found


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_published_files_open_with_their_template(model: Any, tmp_path: Path, name: str) -> None:
    folder_of(model, tmp_path)
    if name.endswith(".jinja"):
        (tmp_path / name).write_text(VICUNA)
    else:
        kept = json.loads((tmp_path / name).read_text()) if (tmp_path / name).is_file() else {}
        (tmp_path / name).write_text(json.dumps({**kept, "chat_template": VICUNA}))
    other = llava.Llava.open(card(), tmp_path)
    for key, value in model.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[key], value.float())
    assert other.template("answer") == llava.PROMPTS["answer"]
    assert other.template("caption") == llava.PROMPTS["caption"]
    assert other.template("caption", "a photo of ") == f"{llava.PROMPTS['caption']} a photo of"


def test_a_missing_template_is_told(model: Any, tmp_path: Path) -> None:
    folder_of(model, tmp_path)
    with pytest.raises(UserError, match="has no prompt template"):
        llava.Llava.open(card(), tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{% for m in messages %}", "cannot be filled in"),
        ("{{ messages[0]['content'][1]['text'] }}", "has no place for <image> and the question"),
        ("<image> ASSISTANT:", "has no place for <image> and the question"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}<image>", "cannot be filled in"),
    ],
)
def test_a_wrong_template_is_told(model: Any, tmp_path: Path, text: str, sentence: str) -> None:
    folder_of(model, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(text)
    with pytest.raises(UserError, match=sentence):
        llava.Llava.open(card(), tmp_path)


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json"])
def test_a_damaged_template_file_is_named(model: Any, tmp_path: Path, name: str) -> None:
    folder_of(model, tmp_path)
    (tmp_path / name).write_text('{"chat_template": ')
    with pytest.raises(UserError, match=rf"{name} cannot be read .*: put the one of its checkpoint there"):
        llava.Llava.open(card(), tmp_path)


@pytest.mark.parametrize(
    ("prompts", "capability"),
    [
        ({"answer": "<image> {}"}, "caption"),
        ({"answer": "{}", "caption": "<image>"}, "answer"),
        ({"answer": "<image> say", "caption": "<image>"}, "answer"),
        ({"answer": "<image> <image> {}", "caption": "<image>"}, "answer"),
        ({"answer": 3, "caption": "<image>"}, "answer"),
        ("<image> {}", "answer"),
        (None, "answer"),
    ],
)
def test_prompts_of_a_configuration_are_checked_before_anything_is_read(
    tmp_path: Path, prompts: Any, capability: str
) -> None:
    """Each capability's has an image and, for answers, a question, once."""
    config = {**prompted.configuration("llava-llama"), "prompts": prompts}
    with pytest.raises(
        UserError, match=rf"llava-1.5-7b has no prompt for capability {capability}: .prompts. in config"
    ):
        llava.Llava.build(llava.Llava.cards[0], config, prompted.tokenizer_into(tmp_path))


def test_the_architecture_has_the_published_size() -> None:
    """LLaVA-1.5-7B has 7.063 B parameters."""
    from vlbench.cost.architecture import with_blank
    from vlbench.plugins.table import table

    def count(found: Any) -> int:
        return sum(p.numel() for p in found.net.parameters())

    assert with_blank(table("models").get("llava-1.5-7b"), count) == pytest.approx(7.063e9, rel=1e-3)


@pytest.mark.parametrize("own", ["{}\nAnswer with the option's letter from the given choices directly.", "{}"])
def test_a_tasks_words_take_the_place_of_the_models_request(model: Any, own: str) -> None:
    short = "\nAnswer the question using a single word or phrase."
    model.config = {**model.config, "prompts": {"answer": f"USER: <image>\n{{}}{short} ASSISTANT:"}}
    assert model.template("answer") == f"USER: <image>\n{{}}{short} ASSISTANT:"
    assert model.template("answer", own) == f"USER: <image>\n{own} ASSISTANT:"


@pytest.mark.parametrize(
    ("layer", "sentence"), [(99, "is 99, and the vision tower has"), ([-2, -1], "should be one layer")]
)
def test_a_layer_that_the_vision_tower_does_not_have_is_refused(tmp_path: Path, layer: Any, sentence: str) -> None:
    """It was taken for the last one."""
    config = {**prompted.configuration("llava-llama"), "vision_feature_layer": layer}
    with pytest.raises(UserError, match=f"vision_feature_layer {sentence}"):
        llava.Llava.build(llava.Llava.cards[0], config, prompted.tokenizer_into(tmp_path))
