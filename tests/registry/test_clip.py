"""CLIP against the original code's outputs (float32, by its LayerNorm), cut checkpoints, tokenizers, the loss."""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.oracles import Oracle
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.cost.counts import flop_counter
from vlbench.errors import UserError
from vlbench.images.pipeline import ImageStore
from vlbench.model import Card
from vlbench.restoring.momentum import Momentum, MomentumOptions, Queue
from vlbench.structure import Structure, check_structure
from vlbench.task import Sample
from vlbench.training.batches import Batches
from vlbench.training.loop import Loop, Schedule

clip = importlib.import_module("vlbench.registry.clip")
clip_keys = importlib.import_module("vlbench.registry._clip_keys")
MINI = Path(clip.__file__).parent / "mini" / "clip-mini"
FEATURES, SIMS = 2e-5, 2e-6  # tolerances in float32


def card(name: str) -> Card:
    found: Card = next(c for c in clip.CLIP.cards if c.name == name)
    return found


def opened(folder: Path, tensors: dict[str, Tensor], name: str = "clip-vit-l14-336") -> Any:
    """A model from one file in the original's format, which has the image size beside the weights."""
    torch.save({"model": {"input_resolution": torch.tensor(32), **tensors}, "epoch": 3}, folder / "checkpoint.pth")
    return clip.CLIP.open(card(name), folder / "checkpoint.pth")


@torch.no_grad()
def assert_as_recorded(model: Any, oracle: Oracle, prefix: str) -> None:
    images = model.image_features(model.encode(oracle["in/images"]))
    texts = model.text_features(oracle["in/text_ids"])
    assert worst(images, oracle[f"{prefix}/image_features"]) <= FEATURES
    assert worst(texts, oracle[f"{prefix}/text_features"]) <= FEATURES
    sims = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    assert worst(sims, oracle[f"{prefix}/sims_i2t"]) <= SIMS
    assert worst(sims.T, oracle[f"{prefix}/sims_t2i"]) <= SIMS


def worst(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


def test_features_and_similarities_equal_the_original(shared: Path, tmp_path: Path) -> None:
    oracle = Oracle(shared / "oracles" / "models" / "clip_retrieval_eval_a.npz")
    queues = {"image_queue": torch.ones(24, 18), "ptr_queue": torch.zeros(1), "visual_m.proj": torch.ones(2)}
    model = opened(tmp_path, {**oracle.tensors("sd/"), **queues})
    assert_as_recorded(model, oracle, "out")
    check_structure(model.net, model.structure())
    assert "widths" not in model.config


@pytest.fixture(scope="module")
def compressed(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "models" / "clip_compressed_a.npz")


def test_a_checkpoint_cut_by_upop_equals_the_original(compressed: Oracle, tmp_path: Path) -> None:
    """Its softmax divides by the root of what is left of a head, and the momentum twin is passed over."""
    model = opened(tmp_path, compressed.tensors("ckpt/"))
    assert_as_recorded(model, compressed, "out")
    left = {site.name: site.units for site in model.structure().sites}
    assert left == {site_of(key): count for key, count in compressed.facts["kept"].items()}


def test_a_cut_checkpoint_is_saved_and_cut_again(compressed: Oracle, tmp_path: Path) -> None:
    model = opened(tmp_path, compressed.tensors("ckpt/"))
    state = Compression(cuts=[halves(model)], pattern="structured")
    cut(model.net, model.structure(), {n: torch.tensor(kept) for n, (_, kept) in state.cuts[0].sites.items()})
    save_model(tmp_path / "saved", model, state)
    assert_same_outputs(load_model(tmp_path / "saved")[0], model, compressed)
    with pytest.raises(UserError, match="another architecture"):  # which units are left stands in vlbench.json
        clip.CLIP.open(model.card, tmp_path / "saved")


def test_a_cut_checkpoint_opens_from_our_folder(compressed: Oracle, tmp_path: Path) -> None:
    """The configuration says how wide its sites are, and which scale they were trained with."""
    model = opened(tmp_path, compressed.tensors("ckpt/"))
    save_model(tmp_path / "saved", model, Compression())
    assert_same_outputs(clip.CLIP.open(model.card, tmp_path / "saved"), model, compressed)


@torch.no_grad()
def assert_same_outputs(one: Any, other: Any, oracle: Oracle) -> None:
    ids, images = oracle["in/text_ids"], oracle["in/images"]
    assert torch.equal(one.text_features(ids), other.text_features(ids))
    assert torch.equal(one.encode(images), other.encode(images))


def halves(model: Any) -> Cut:
    """Every second unit of every site that has two."""
    sites = model.structure().sites
    return Cut({s.name: (s.unit, list(range(0, s.units, 2))) for s in sites if s.units > 1})


def test_our_cut_equals_the_masked_original(compressed: Oracle, tmp_path: Path) -> None:
    """The scale of the whole head stays, so that a cut changes nothing but what it takes."""
    model = opened(tmp_path, compressed.tensors("dense/"))
    masks = {site_of(k): v.flatten() for k, v in compressed.tensors("mask/").items()}
    cut(model.net, model.structure(), {name: mask.nonzero().flatten() for name, mask in masks.items()})
    assert_as_recorded(model, compressed, "out_masked")


def site_of(key: str) -> str:
    """UPop's name of a mask -> our site."""
    tower = "vision" if key.startswith("visual.") else "text"
    index = key.split("resblocks.")[1].split(".")[0]
    return f"{tower}.{index}.{'attention' if '.attn.' in key else 'ffn'}"


# Folders and files ---------------------------------------------------------------------------------------------------

TINY = {
    "embed_dim": 12, "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 30, "width": 16, "heads": 2, "layers": 2},
}  # fmt: skip


def stock(config: dict[str, Any] = TINY) -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(**deepcopy(config)).eval()


@torch.no_grad()
def assert_same(model: Any, net: Any) -> None:
    images, ids = torch.randn(2, 3, 16, 16), torch.randint(1, 30, (3, 8))
    assert worst(model.image_features(model.encode(images)), net.encode_image(images)) <= 1e-5
    assert worst(model.text_features(ids), net.encode_text(ids)) <= 1e-5


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "model.safetensors"])
def test_open_clips_folder(tmp_path: Path, name: str) -> None:
    """timm's folders hold a second file of weights and a second configuration, of the image encoder alone."""
    net = stock()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    save_file(net.state_dict(), tmp_path / name)
    if name != "model.safetensors":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_large_patch14_clip_336"}))
        save_file({"norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    assert_same(clip.CLIP.open(card("clip-vit-b16"), tmp_path), net)


def test_a_folder_without_a_configuration_tells_its_architecture_by_its_shapes(tmp_path: Path) -> None:
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "width": 128, "head_width": 64},
              "text_cfg": {**TINY["text_cfg"], "width": 64, "heads": 1}}  # fmt: skip
    net = stock(config)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="QuickGELU or the plain GELU"):  # shapes do not tell the activation
        clip.CLIP.open(card("clip-vit-b16"), tmp_path)
    for told in (True, False):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": told}}))
        model = clip.CLIP.open(card("clip-vit-b16"), tmp_path)
        other = stock({**config, "quick_gelu": told})
        other.load_state_dict(net.state_dict())
        assert_same(model, other)
        assert model.card.image.size == 16


def test_a_file_of_the_cards_own_size_has_the_cards_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes do not tell how many there are, and where the card does not tell they are 64 wide."""
    monkeypatch.setattr(clip.CLIP, "architecture", classmethod(lambda cls, card: TINY))
    assert_same(opened(tmp_path, stock().state_dict()), stock())


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights of a CLIP with a ViT: visual\.conv1\.weight is missing"):
        opened(tmp_path, {"a": torch.ones(2)})
    tensors = stock({**TINY, "text_cfg": {**TINY["text_cfg"], "width": 64}, "embed_dim": 7}).state_dict()
    with pytest.raises(UserError, match=r"another architecture: .*alpha is unknown"):
        opened(tmp_path, {**widened(tensors), "visual.transformer.resblocks.0.alpha": torch.ones(1, 1, 8)})


def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same text tower beside an image tower of one 64-wide head."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "width": 64}, "embed_dim": 7}
    return {**tensors, **{k: v for k, v in stock(config).state_dict().items() if k.startswith("visual.")}}


@pytest.mark.parametrize(
    "change",
    [{"custom_text": True}, {"vision_cfg": {"timm_model_name": "resnet50"}}, {"text_cfg": {"qk_norm": True}},
     {"vision_cfg": {"layers": [3, 4, 6, 3]}}],
)  # fmt: skip
def test_other_kinds_of_clip_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    config = {k: {**v, **change.get(k, {})} if isinstance(v, dict) else v for k, v in {**change, **TINY}.items()}
    with pytest.raises(UserError, match="built otherwise"):
        clip.CLIP.build(card("clip-vit-b16"), config, tmp_path)


# Texts ----------------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "small", "circle", "square", "and"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer of ten words, as the mini model's."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def mini(words: Path) -> Any:
    """The mini model's architecture with random weights and ten words."""
    torch.manual_seed(1)
    return clip.CLIP.build(card("clip-mini"), json.loads((MINI / "config.json").read_text()), words)


TEXTS = ["a red circle", "a small red square and a circle", "circle " * 60]


@torch.no_grad()
def test_a_text_is_the_state_at_its_end_and_does_not_depend_on_what_stands_beside_it(words: Path) -> None:
    model = mini(words)
    model.net.double()
    length = model.config["text_cfg"]["context_length"]
    together = model.text_features(model.tokens(TEXTS))
    assert model.tokens(TEXTS).shape == (3, length)
    for row, text in zip(together, TEXTS, strict=True):
        ids = model.tokens([text])
        assert int(ids[0, -1]) == 3, "[SEP] stays where a text is cut"
        padded = F.pad(ids, (0, length - ids.shape[1]))
        assert worst(model.text_features(ids)[0], row) <= 1e-12
        whole = model.net.encode_text(padded)  # open_clip's own, at full length
        assert worst(whole[0], row) <= 1e-12
        state = model.net.ln_final(hidden(model, ids))[0, -1] @ model.net.text_projection
        assert worst(state, row) <= 1e-12


def hidden(model: Any, ids: Tensor) -> Tensor:
    found: list[Tensor] = []
    hook = model.net.transformer.register_forward_hook(lambda *call: found.append(call[2]))
    model.text_features(ids)
    hook.remove()
    return found[0]


def test_openais_tokens_are_cut_at_the_longest_text(tmp_path: Path) -> None:
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "vocab_size": 49408, "context_length": 77}}
    model = clip.CLIP.build(card("clip-vit-b16"), config, tmp_path)
    texts = ["a diagram", "a photo of a cat on a mat", "word " * 99]
    for several, length in ((texts[:2], 10), (texts, 77)):
        ids = model.tokens(several)
        assert ids.shape == (len(several), length)
        assert torch.equal(F.pad(ids, (0, 77 - length)), open_clip.tokenize(several))


def test_a_vocabulary_without_its_tokenizer_is_told(tmp_path: Path, words: Path) -> None:
    text = {**TINY["text_cfg"], "vocab_size": 9, "hf_tokenizer_name": "words"}
    with pytest.raises(UserError, match="has 10 words, and the model 9"):
        clip.CLIP.build(card("clip-vit-b16"), {**TINY, "text_cfg": text}, words)
    model = clip.CLIP.build(card("clip-vit-b16"), TINY, tmp_path)
    with pytest.raises(UserError, match="vocabulary of 30 and no tokenizer"):
        model.tokens(["a cat"])


def batch(texts: list[str], owner: list[int], images: int) -> Batch:
    torch.manual_seed(2)
    samples = [Sample(str(i), (), texts=(t,)) for i, t in enumerate(texts)]
    return Batch(samples, torch.randn(images, 3, 64, 64), torch.tensor(owner)[:, None])


@torch.no_grad()
def test_embeddings_have_length_one_and_stand_with_their_samples(words: Path) -> None:
    model = mini(words)
    one = batch(["a red circle"] * 3, [0, 1, 1], 2)
    many = [*one.samples[:2], Sample("x", (), texts=tuple(TEXTS))]
    found = model.embed(model.encode(one.images), Batch(many, one.images, one.owner))
    assert [f["texts"].shape[0] for f in found] == [1, 1, 3]
    assert torch.equal(found[1]["image"], found[2]["image"])
    assert not torch.equal(found[0]["image"], found[1]["image"])
    assert worst(found[0]["texts"][0], found[2]["texts"][0]) <= 1e-6
    for part in found:
        assert torch.allclose(part["texts"].norm(dim=-1), torch.ones(len(part["texts"])))
        assert float(part["image"].norm()) == pytest.approx(1, abs=1e-6)
    textless = model.embed(model.encode(one.images), Batch([Sample("x", ())], one.images, one.owner[:1]))
    assert textless[0]["texts"].shape == (0, model.config["embed_dim"])


@pytest.mark.parametrize("owner", [[0, 1, 2], [0, 0, 1]])
@torch.no_grad()
def test_the_loss_is_the_papers_but_for_texts_of_one_image(words: Path, owner: list[int]) -> None:
    """Whose two rows, and two columns, share their weight."""
    model = mini(words)
    three = batch(["a red circle", "a small square", "circle and circle"], owner, max(owner) + 1)
    images = F.normalize(model.image_features(model.encode(three.images)), dim=-1)[owner]
    texts = F.normalize(model.text_features(model.tokens([s.texts[0] for s in three.samples])), dim=-1)
    logits = model.net.logit_scale.exp() * images @ texts.T
    total = 0.0
    for i, image in enumerate(owner):
        right = [k for k, other in enumerate(owner) if other == image]
        total -= (logits.log_softmax(1)[i, right].mean() + logits.log_softmax(0)[right, i].mean()).item() / 6
    assert model.match_loss(three).item() == pytest.approx(total, abs=1e-5)


def test_the_momentum_loss_equals_the_original(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue takes the model's features, which the twin's equal here."""
    oracle = Oracle(shared / "oracles" / "models" / "clip_retrieval_eval_a.npz")
    model = opened(tmp_path, oracle.tensors("sd/"))
    momentum, one = following(oracle, model)
    monkeypatch.setattr(model, "tokens", lambda texts: oracle["in/text_ids"][: len(texts)])
    with torch.no_grad():
        assert momentum(one).item() == pytest.approx(float(oracle["out/train_loss"]), abs=1e-5)
    assert momentum.queue is not None
    assert worst(momentum.queue.images, oracle["out/image_queue_after"].T) <= FEATURES


def following(oracle: Oracle, model: Any) -> tuple[Momentum, Batch]:
    """The recorded queue and batch, after the first epoch. Images are named by their numbers."""
    numbers = oracle["in/train_idx"].tolist()
    train = [Sample(str(n), (Path(str(n)),)) for n in range(30)]
    options = MomentumOptions(steps=1, lr=1.0, loss="momentum")
    momentum = Momentum(model, "match", options, train, epoch=1, seed=0)
    queued = {k: oracle[f"in/{k}_queue"] for k in ("image", "text", "idx")}
    momentum.queue = Queue(queued["image"].T.clone(), queued["text"].T.clone(), queued["idx"][0].clone())
    momentum.seen = 1
    samples = [Sample(str(i), (Path(str(n)),), texts=("",)) for i, n in enumerate(numbers)]
    return momentum, Batch(samples, oracle["in/images"], torch.arange(len(numbers))[:, None])


@torch.no_grad()
def test_the_momentum_loss_queues_what_the_model_sees_and_norms_the_twins_texts_with_the_models(words: Path) -> None:
    """As the original, whose twin has a norm of its own that it does not use."""
    model, one = mini(words), batch(["a red circle", "a small square"], [0, 1], 2)
    momentum = Momentum(model, "match", MomentumOptions(steps=1, lr=1.0, loss="momentum"), one.samples, epoch=1, seed=0)
    momentum.twin.net.ln_final.weight.mul_(-1)
    momentum.twin.net.visual.proj.mul_(-1)
    views = model.match_momentum(one, momentum.twin)
    assert worst(views.twin.texts, views.own.texts) == 0
    assert worst(views.twin.images, -views.own.images) <= 1e-6
    assert views.queued == views.own


def test_images_and_texts_get_gradients(words: Path) -> None:
    model = mini(words)
    model.match_loss(batch(["a red circle", "a small square"], [0, 1], 2)).backward()
    for name in (*model.structure().matrices, "logit_scale", "visual.proj", "text_projection"):
        assert float(model.net.get_parameter(name).grad.abs().max()) > 0, name


def test_the_loop_trains_it(words: Path, tmp_path: Path) -> None:
    """From pictures on disk and their captions, two a picture, to a falling loss."""
    samples = []
    for i, text in enumerate(["a red circle", "a small red square", "circle and circle", "small"]):
        shown = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(shown).save(tmp_path / f"{i}.png")
        samples += [Sample(f"{i}{k}", (tmp_path / f"{i}.png",), texts=(f"{text}{k * ' a'}",)) for k in range(2)]
    model = mini(words)
    batches = Batches(samples, ImageStore(model.card.image), size=8, seed=0)
    losses = Loop(model.net, model.match_loss, batches, Schedule(steps=6, lr=1e-3), seed=0).run()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_gated_equals_cut_in_the_whole_model(words: Path) -> None:
    model = mini(words)
    model.net.double()
    small = deepcopy(model)
    keep = {s.name: torch.arange(s.units)[1::2] for s in model.structure().sites}
    close(model.net, model.structure(), keep)
    cut(small.net, small.structure(), keep)
    images, ids = torch.randn(2, 3, 64, 64, dtype=torch.float64), model.tokens(TEXTS)
    assert worst(small.encode(images), model.encode(images)) <= 1e-12
    assert worst(small.text_features(ids), model.text_features(ids)) <= 1e-12


def close(net: torch.nn.Module, structure: Structure, keep: dict[str, Tensor]) -> None:
    for site in structure.sites:
        gone = torch.ones(site.units, dtype=torch.bool)
        gone[keep[site.name]] = False
        for part in site.slices:
            if part.gated:
                net.get_parameter(part.param).index_fill_(part.dim, part.index[gone].flatten(), 0.0)


@pytest.mark.parametrize(
    ("name", "millions", "image", "text"),
    [("clip-vit-l14-336", 427.94, 190.96, 6.65), ("clip-vit-b16", 149.62, 17.56, 2.98)],
)
def test_full_size_counts_without_weights(
    name: str, millions: float, image: float, text: float, tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = clip.CLIP.build(card(name), clip.CLIP.architecture(card(name)), tmp_path)
        size = card(name).image.size
        pixels, ids = torch.empty(1, 3, size, size), torch.zeros(1, 77, dtype=torch.long)
    assert sum(p.numel() for p in model.net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert giga_macs(lambda: model.image_features(model.encode(pixels))) == pytest.approx(image, abs=0.01)
    assert giga_macs(lambda: model.text_features(ids)) == pytest.approx(text, abs=0.01)


@torch.no_grad()
def giga_macs(run: Any) -> float:
    with flop_counter() as counter:
        run()
    return counter.get_total_flops() / 2e9
