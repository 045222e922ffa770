"""Opening BLIP's checkpoints: hub folders, single files of the original project, compressed ones; and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.blip.configuration_blip import BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionEmbeddings

from tests.oracles import Oracle
from tests.registry.test_blip import close, opened, states, vocabulary
from tests.registry.test_blip_heads import HEADS, loss, tiny
from vlbench.compression.cut import Cut
from vlbench.compression.saved import distinct_tensors, load_model, save_model
from vlbench.compression.shapes import fit_to, narrow
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.images.spec import ImageSpec
from vlbench.model import Card
from vlbench.nn.blip import resized_positions
from vlbench.plugins.table import table

every_head = pytest.mark.parametrize("name", HEADS)
CARDS = ("blip-vqa", "blip-caption", "blip-retrieval-coco", "blip-retrieval-flickr", "blip-nlvr")


def card_of(name: str) -> tuple[Any, Card]:
    cls = table("models").get(name).load()
    return cls, next(c for c in cls.cards if c.name == name)


def card(name: str, size: int = 16) -> Card:
    return Card(name, "", card_of(name)[1].capabilities, "", ImageSpec(size))


def words(folder: Path) -> Path:
    (folder / "vocab.txt").write_text("\n".join(vocabulary()[:-2]) + "\n")
    return folder


def described(folder: Path, model: Any) -> None:
    """Beside a file of the tiny models: their head counts, which 24 and 16 numbers do not tell."""
    (folder / "config.json").write_text(json.dumps(model.config))


# Configuration -------------------------------------------------------------------------------------------------------


def shapes_of(name: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a real size, none of which takes memory."""
    with torch.device("meta"):
        return dict(card_of(name)[0].network(config).state_dict())


@pytest.mark.parametrize("name", CARDS)
def test_configuration_is_read_off_the_tensors(name: str, tmp_path: Path) -> None:
    """BLIP-base, and with a ViT-L: every width, depth, patch and head count, at the card's image size."""
    cls, real = card_of(name)
    base = cls.architecture(real)
    found = cls.config_of(real, shapes_of(name, base), words(tmp_path))
    ids = {"sep_token_id": 3, "pad_token_id": 0}  # of the vocabulary that lies there
    assert found["text_config"] == {**base["text_config"], **ids}
    assert found["vision_config"] == base["vision_config"]
    assert found["vision_config"]["image_size"] == real.image.size
    large = {**base["vision_config"], "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4100}
    large |= {"num_hidden_layers": 24, "patch_size": 14}
    text = {**base["text_config"], "encoder_hidden_size": 1024, "vocab_size": 100, "bos_token_id": 98}
    text |= {"num_hidden_layers": 7, "max_position_embeddings": 77, "intermediate_size": 3100}
    changed = {**base, "vision_config": large, "text_config": text, "image_text_hidden_size": 99, "merge_from": 3}
    found = cls.config_of(real, shapes_of(name, changed), tmp_path)
    assert found["vision_config"] == large
    assert found["text_config"] == {**text, **ids}
    told = {"blip-nlvr": {"merge_from": 3}, "blip-retrieval-coco": {"image_text_hidden_size": 99}}
    assert found.items() >= told.get(name, {}).items()


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_architecture_is_blip_base(name: str) -> None:
    """Parameters as counted in research/deps.md (5), the ViT's positions as the card's image size has them."""
    millions = {"blip-vqa": 361.48, "blip-caption": 223.97, "blip-nlvr": 259.37}.get(name, 223.74)
    cls, real = card_of(name)
    with torch.device("meta"):
        net = cls.network(cls.architecture(real))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert net.vision_model.embeddings.position_embedding.shape[1] == (real.image.size // 16) ** 2 + 1


@pytest.mark.parametrize("name", [n for n in table("models").entries if n.startswith("blip-") and n.endswith("-mini")])
def test_mini_configurations_build(name: str) -> None:
    """From the config.json and the tokenizer in the package, with one vocabulary."""
    cls, real = card_of(name)
    config = cls.architecture(real)
    folder = Path(table("models").get(name).file).parent / "mini" / name
    model = cls.build(real, config, folder)
    assert model.net.config.text_config.vocab_size == model.enc + 1
    assert model.net.config.vision_config.image_size == real.image.size
    if name == "blip-nlvr-mini":  # one layer averages, the other merges
        merging = [hasattr(x.crossattention.output, "merge_layer") for x in model.net.text_encoder.encoder.layer]
        assert merging == [False, True]


def test_the_nlvr2_card_says_that_its_file_must_be_given() -> None:
    from vlbench.tensors.locate import locate

    with pytest.raises(UserError, match=r"checkpoint model_base_nlvr\.pth does not exist: give the path"):
        locate(card_of("blip-nlvr")[1].checkpoint, "main", {})


# Formats -------------------------------------------------------------------------------------------------------------


@every_head
def test_every_format_gives_the_same_model(name: str, tmp_path: Path) -> None:
    """A hub folder, with the buffers old ones hold; one file of safetensors; and a saved state dict."""
    model = tiny(name, tmp_path)
    model.net.float()
    tensors = distinct_tensors(model.net)
    wanted = loss(model)
    hub, single = tmp_path / "hub", tmp_path / "single"
    for folder in (hub, single):
        folder.mkdir()
        described(words(folder), model)
    position_ids = {f"{p}.embeddings.position_ids": torch.arange(24)[None] for p in ("text_encoder", "x.bert")}
    without = {k: v for k, v in tensors.items() if k != "temp"}  # transformers has none
    save_file({**without, **position_ids}, hub / "model.safetensors")
    save_file(tensors, single / "model.safetensors")
    torch.save({"model": tensors}, single / "model.pth")
    for source in (hub, single / "model.safetensors", single / "model.pth"):
        found = card_of(name)[0].open(card(name), source)
        if name == "blip-retrieval-coco" and source == hub:
            assert found.net.temp.item() == pytest.approx(0.07)
            found.net.temp.data.copy_(model.net.temp.data)
        assert torch.equal(loss(found), wanted)
        assert found.net.training is False


@pytest.mark.parametrize("source", ["hub", "file"])
def test_positions_are_resized_to_the_cards_image(tmp_path: Path, source: str) -> None:
    """Bicubic, as transformers' own interpolation of a running model is."""
    model = tiny("blip-caption", tmp_path)
    model.net.float()
    described(tmp_path, model)
    save_file(distinct_tensors(model.net), tmp_path / "model.safetensors")
    path = tmp_path if source == "hub" else tmp_path / "model.safetensors"
    found = card_of("blip-caption")[0].open(card("blip-caption", 40), path)
    assert found.net.vision_model.embeddings.position_embedding.shape == (1, 26, 24)
    assert found.config["vision_config"]["image_size"] == 40
    stock = BlipVisionEmbeddings(BlipVisionConfig(hidden_size=24, image_size=16, patch_size=8))
    stock.load_state_dict(model.net.vision_model.embeddings.state_dict())
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        wanted = stock(images, interpolate_pos_encoding=True)
        assert torch.allclose(found.net.vision_model.embeddings(images), wanted, rtol=0, atol=1e-6)
        assert found.encode(images).shape == (2, 26, 24)
    positions = torch.rand(1, 26, 24)
    assert resized_positions(positions, 26) is positions


# Refusals ------------------------------------------------------------------------------------------------------------


def file_of(name: str, folder: Path) -> Path:
    model = tiny(name, folder)
    described(folder, model)
    torch.save(distinct_tensors(model.net), folder / "model.pth")
    return folder / "model.pth"


def test_a_file_without_vocabulary_says_what_goes_beside_it(tmp_path: Path) -> None:
    file = file_of("blip-caption", tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"has no vocabulary .* put bert-base-uncased's vocab\.txt"):
        card_of("blip-caption")[0].open(card("blip-caption"), file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w[:-1], r"has 57 words, and the model needs 58"),
        (lambda w: [*w, "zebra", "yak", "xylophone"], r"has 61 words, and the model needs 58"),
    ],
)
def test_another_vocabulary_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    file = file_of("blip-caption", tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(change(vocabulary()[:-2])) + "\n")
    with pytest.raises(UserError, match=told):
        card_of("blip-caption")[0].open(card("blip-caption"), file)


def test_special_tokens_elsewhere_are_refused(tmp_path: Path) -> None:
    model = tiny("blip-caption", tmp_path)
    model.config["text_config"]["sep_token_id"] = 4
    with pytest.raises(UserError, match=r"has \[SEP\] at 3, and the model at 4"):
        type(model).build(model.card, model.config, tmp_path)


def test_heads_that_no_tensor_tells_are_asked_for(tmp_path: Path) -> None:
    file = file_of("blip-caption", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"24 wide, which does not tell .* config\.json .*vision_config"):
        card_of("blip-caption")[0].open(card("blip-caption"), file)


def test_weights_of_another_head_name_five_keys(tmp_path: Path) -> None:
    file = file_of("blip-caption", tmp_path)
    with pytest.raises(UserError, match="another architecture") as error:
        card_of("blip-nlvr")[0].open(card("blip-nlvr"), file)
    assert str(error.value).count(" is missing") == 5


# Compressed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["blip_vqa", "blip_nlvr"])
def compressed(request: pytest.FixtureRequest, shared: Path, tmp_path: Path) -> tuple[Oracle, Any]:
    oracle = Oracle(shared / "oracles" / "models" / f"{request.param}_compressed_a.npz")
    return oracle, opened(request.param.replace("_", "-"), oracle, "ckpt/", tmp_path)


def scales(model: Any) -> dict[str, float]:
    return {name: layer.scale for name, layer in model.net.named_modules() if hasattr(layer, "scale")}


def test_widths_and_scales_are_the_files(compressed: tuple[Oracle, Any]) -> None:
    """Text attention divides by the root of the kept head size, the ViT by that of the original."""
    oracle, model = compressed
    c = oracle.facts["config"]
    kept = oracle.facts["kept"]
    assert sorted(site.units for site in model.structure().sites) == sorted(kept.values())
    for name, scale in scales(model).items():
        if name.startswith("vision"):
            assert scale == pytest.approx((c["vw"] // c["vh"]) ** -0.5)
        else:
            width = model.net.get_submodule(name).query.weight.shape[0] // c["heads"]
            assert scale == pytest.approx(width**-0.5)
    assert model.config["softmax_scale"] == "kept"


def test_a_compressed_model_is_cut_on_saved_and_opened_again(compressed: tuple[Oracle, Any], tmp_path: Path) -> None:
    """Its widths and its scales survive, with another cut on top."""
    _, model = compressed
    keep = {s.name: torch.arange(s.units)[s.units // 2 :] for s in model.structure().sites}
    made = Cut.of(model.structure(), keep)
    before = scales(model)
    made.repeat(model.net, model.structure())
    model.net.float()
    save_model(tmp_path / "saved", model, Compression(cuts=[made]))
    again, state = load_model(tmp_path / "saved")
    assert state.cuts == [made]
    assert scales(again) == scales(model) == before
    assert again.config == model.config
    for key, value in model.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[key], value), key
    image = torch.rand(2, 3, *[model.card.image.size] * 2)
    with torch.no_grad():
        assert torch.equal(again.encode(image), model.encode(image))
        assert float(abs(run(again) - run(model)).max()) == 0.0
        model.net.text_encoder.encoder.layer[0].attention.self.scale *= 2  # what a lost scale would do
        assert float(abs(run(again) - run(model)).max()) > 0


def run(model: Any) -> Tensor:
    """States of two texts with two images in view."""
    size = model.config["vision_config"]["image_size"]
    images = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([[0, 1], [1, 0]])
    texts = ["two dogs", "a red bus is on the table"]
    encode = model.question_states if hasattr(model, "question_states") else model.text_states
    found: Tensor = encode(model.encode(images), texts, owner[:, 0] if encode.__name__[0] == "q" else owner)[0]
    return found


def test_a_dense_file_stays_dense(shared: Path, tmp_path: Path) -> None:
    oracle = Oracle(shared / "oracles" / "models" / "blip_vqa_eval_a.npz")
    model = opened("blip-vqa", oracle, "sd/", tmp_path)
    assert "widths" not in model.config
    assert "softmax_scale" not in model.config


def test_a_dense_file_that_another_model_compressed_keeps_its_scale(shared: Path, tmp_path: Path) -> None:
    """The dense twin of the compressed recording differs from it: the fixture's oracles can see a wrong scale."""
    oracle = Oracle(shared / "oracles" / "models" / "blip_vqa_compressed_a.npz")
    model = opened("blip-vqa", oracle, "ckpt/", tmp_path)
    for layer in model.net.modules():
        if hasattr(layer, "scale") and hasattr(layer, "query"):
            layer.scale = layer.attention_head_size**-0.5
    questions, mask = states(oracle, model)
    assert not close(questions[mask.bool()], oracle["out/question_states"][mask.bool()], 1e-6)


def test_tensors_that_fit_no_cut_are_refused(tmp_path: Path) -> None:
    model = tiny("blip-caption", tmp_path)
    whole = dict(model.net.state_dict())
    at = "text_decoder.bert.encoder.layer.0.attention"

    def cut_to(rows: dict[str, int]) -> dict[str, Tensor]:
        return {k: v[: rows[k]] if k in rows else v for k, v in whole.items()}

    three = dict.fromkeys((f"{at}.self.{p}.{q}" for p in ("query", "key", "value") for q in ("weight", "bias")), 3)
    out = {f"{at}.output.dense.weight": torch.empty(16, 3)}
    with pytest.raises(UserError, match=r"query\.weight keeps no whole number of units \(dim\) of caption\.0\.self"):
        fit_to(model.net, model.structure(), cut_to(three) | out)
    with pytest.raises(UserError, match=r"query\.weight and .*key\.weight keep different widths"):
        fit_to(model.net, model.structure(), cut_to(dict.fromkeys(three, 4) | {f"{at}.self.key.weight": 6}))
    with pytest.raises(UserError, match=r"query\.weight and .*output\.dense\.weight keep different widths"):
        fit_to(model.net, model.structure(), cut_to(dict.fromkeys(three, 4)))
    none = dict.fromkeys(three, 0)
    with pytest.raises(UserError, match="keeps no whole number"):
        fit_to(model.net, model.structure(), cut_to(none) | {f"{at}.output.dense.weight": torch.empty(16, 0)})
    with pytest.raises(UserError, match=r"cuts caption\.0\.self to 9 units, and this model has 8"):
        narrow(model.net, model.structure(), {"caption.0.self": 9})
    with pytest.raises(UserError, match=r"cuts text\.0\.self to 1 units, and this model has 0"):
        narrow(model.net, model.structure(), {"text.0.self": 1})
    assert all(torch.equal(v, whole[k]) for k, v in model.net.state_dict().items())


def test_a_fit_is_told_and_repeated(tmp_path: Path) -> None:
    """Missing and wider tensors are left to load_into, which names them."""
    model, other, third = (tiny("blip-caption", tmp_path) for _ in range(3))
    keep = {"vision.1.attention": torch.tensor([0, 3]), "caption.1.ffn": torch.arange(5)}
    Cut.of(model.structure(), keep).repeat(model.net, model.structure())
    tensors = dict(model.net.state_dict())
    widths = fit_to(other.net, other.structure(), tensors)
    assert widths == {"vision.1.attention": 2, "caption.1.ffn": 5}
    narrow(third.net, third.structure(), widths)
    for net in (other.net, third.net):
        assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in tensors.items()}
    wider = {k: torch.cat([v, v]) for k, v in tensors.items()}
    assert fit_to(model.net, model.structure(), wider) == {}
    assert fit_to(model.net, model.structure(), {}) == {}
