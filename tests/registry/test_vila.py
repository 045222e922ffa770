"""Oracle: the selected states, all projectors and the logits recorded of VILA's own code, on a folder of folders."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, Qwen2Tokenizer, SiglipImageProcessor

from tests.beside import SHARED, needs
from tests.nn.test_kinds import close_gates, random_keep
from vlbench.capability import Batch
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import load_model, open_checkpoint, save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.structure import check_structure
from vlbench.task import Sample

TINY = SHARED / "oracles" / "families" / "tiny_vila"
pytestmark = needs(TINY)
KINDS = ("linear", "mlp2x_gelu", "mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def folder_of(folder: Path, **config: Any) -> Path:
    """The recorded checkpoint with a tokenizer, whose chat template takes a text."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("expected.npz"))
    told = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(told))
    # By llm/config.json transformers takes Qwen2's tokenizer for this folder: letters, digits and its sign for a blank.
    words = ["[PAD]", "[UNK]", "w", *"0123456789", "\u0120", *(f"[{i}]" for i in range(14, 63)), "[END]"]
    tokenizer = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[],
        eos_token="[END]",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    tokenizer.chat_template = "w5 {% for m in messages %}{{ m['content'] }}{% endfor %} w6"
    tokenizer.save_pretrained(folder / "llm")
    return folder


def opened(folder: Path) -> Any:
    cls = table("models").get("vila1.5-3b").load()
    return open_checkpoint(cls, cls.cards[0], folder)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not TINY.is_dir():
        pytest.skip("the recorded tiny_vila is not beside this checkout")
    return opened(folder_of(tmp_path_factory.mktemp("vila")))


@pytest.fixture(scope="module")
def expected() -> Any:
    return np.load(TINY / "expected.npz")


def test_selected_states_projection_and_logits_are_the_originals(model: Any, expected: Any) -> None:
    selected = model.net.selected(torch.from_numpy(expected["pixels"]), model.blocks)
    assert np.abs(selected.numpy() - expected["select"]).max() <= 2e-6
    projected = model.net.projector(selected)
    assert np.abs(projected.numpy() - expected["projected"]).max() <= 2e-6
    before, line, after = (
        model.language.embed(torch.from_numpy(expected[k]))[0] for k in ("ids_before", "newline", "ids_after")
    )
    out = model.net.language(inputs_embeds=torch.cat([before, projected[0], line, after])[None]).logits
    assert np.abs(out.numpy() - expected["logits"]).max() <= 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_every_projector_is_the_originals(expected: Any, kind: str) -> None:
    """Of 5 x 5 tokens, so that padding counts."""
    made = importlib.import_module("vlbench.registry.vila").Projector(kind, 32, 40)
    prefix = f"{kind}__"
    made.load_state_dict({k.removeprefix(prefix): torch.from_numpy(expected[k]) for k in expected if prefix in k})
    out = made(torch.from_numpy(expected[f"{kind}_in"]))
    assert np.abs(out.numpy() - expected[f"{kind}_out"]).max() <= 2e-6


def raw() -> torch.Tensor:
    return torch.randint(0, 256, (3, 40, 90), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def batch_of(model: Any) -> Batch:
    samples = [Sample("0", (Path("0"),), "w7 w8", target={"w9": 1.0})]
    return Batch(
        samples, [model.views(raw()).on(torch.device("cpu"), model.dtype)], torch.tensor([[0]]), {"prompt": "{}"}
    )


def test_what_is_read_is_the_prompt_with_the_image_and_a_line_break(model: Any) -> None:
    """Pixels are those of the library's processor of that folder."""
    batch = batch_of(model)
    want = SiglipImageProcessor(**model.config["processor"])(images=[raw()], return_tensors="pt")["pixel_values"]
    assert float((batch.images[0].pixels - want).abs().max()) <= 1e-5
    prompt = model._questions(batch)[0]
    assert prompt == "w5 <image>w7 w8 w6"
    state = model.encode(batch.images)[0]
    before, after = model._divided(prompt)
    words = model.language.embed(torch.tensor([[*before, *after]]))[0]
    stream = torch.cat([words[: len(before)], state.tokens, words[len(before) :]])[None]
    logits = model.net.language(inputs_embeds=stream).logits[0, -1]
    prefixes, slot = model.shown([state], [[0]], [prompt])
    _, read = next(iter(model.language.read(prefixes, slot, [after])))
    assert float((read.logits[0] - logits).abs().max()) <= 1e-6 * float(logits.abs().max())


@pytest.mark.parametrize("number", [0, 1])
def test_a_cut_model_equals_the_gated_one_and_reloads(model: Any, number: int, tmp_path: Path) -> None:
    gated, small = copy(model), copy(model)
    gated.net, small.net = deepcopy(model.net).double(), deepcopy(model.net).double()

    def structure(of: Any) -> Any:
        found = of.structure()
        return found if number == 0 else found.with_units(lambda site: (site, *site.variants)[-1].unit)

    keep = random_keep(structure(gated), 0)
    check_structure(gated.net, structure(gated))
    close_gates(gated.net, structure(gated), keep)
    cuts = Cut.of(structure(small), keep)
    cut(small.net, structure(small), keep)
    want = gated.answer_outputs(batch_of(gated)).logits[0][0]
    assert float((small.answer_outputs(batch_of(small)).logits[0][0] - want).abs().max()) <= 1e-6
    assert float((model.answer_outputs(batch_of(model)).logits[0][0] - want).abs().max()) > 1e-3
    small.net.float()
    save_model(tmp_path / "saved", small, Compression(cuts=[cuts]))
    other, _ = load_model(tmp_path / "saved")
    assert float(other.answer_loss(batch_of(other))) == float(small.answer_loss(batch_of(small)))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"s2": True}, r"several scales \(s2\)"),
        ({"dynamic_s2": True}, r"several scales \(dynamic_s2\)"),
        ({"image_aspect_ratio": "dynamic"}, "only resize is supported"),
    ],
)
def test_other_ways_to_read_an_image_are_refused(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        opened(folder_of(tmp_path, **config))


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    shutil.rmtree(folder_of(tmp_path) / "mm_projector")
    with pytest.raises(UserError, match="has no folder mm_projector"):
        opened(tmp_path)


def test_a_tokenizer_that_loses_every_word_is_refused(tmp_path: Path) -> None:
    """A tokenizer of words whose folder says that it is Qwen2's. Named as what it is, it is read so, though config.json
    is of a qwen2, for which transformers takes Qwen2's without asking."""
    folder = folder_of(tmp_path / "vila")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 64))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, eos_token="[SEP]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder / "llm")
    assert opened(folder).words("w5 w7") == [5, 7]
    file = folder / "llm" / "tokenizer_config.json"
    file.write_text(file.read_text().replace("BertTokenizer", "Qwen2Tokenizer"))
    with pytest.raises(UserError, match=r"Qwen2Tokenizer.*reads words of its vocabulary \(w5, w6.*as nothing"):
        opened(folder)
