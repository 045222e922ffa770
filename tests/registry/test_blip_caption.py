"""BLIP's captioning against the original code's outputs (float64)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer

from tests.oracles import Oracle
from tests.registry.test_blip import close, opened, recorded, unpadded, vocabulary
from vlbench.capability import Batch
from vlbench.nn.attend import Shared
from vlbench.task import Sample


@pytest.fixture(scope="module", params=recorded("blip_caption_eval"))
def captioner(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Oracle, Any]:
    oracle = Oracle(shared / "oracles" / "models" / f"{request.param}.npz")
    return oracle, opened("blip-caption", oracle, "sd/", tmp_path_factory.mktemp("caption"))


def plain(oracle: Oracle) -> list[str]:
    """The recorded captions without the prompt, which the original's data set puts before them."""
    return [text.removeprefix(oracle.facts["prompt"]) for text in oracle.facts["captions"]]


def batch_of(oracle: Oracle, **options: Any) -> Batch:
    samples = [Sample(str(i), (), target=text) for i, text in enumerate(plain(oracle))]
    return Batch(samples, oracle["in/images"].double(), torch.arange(len(samples))[:, None], options)


def test_tokens_and_targets_equal_the_original(captioner: tuple[Oracle, Any]) -> None:
    oracle, model = captioner
    ids, targets = model.targets(plain(oracle), oracle.facts["prompt"])
    assert torch.equal(ids, oracle["in/caption_ids"])
    assert torch.equal(targets, oracle["in/targets"])
    assert model.prompt_ids(oracle.facts["prompt"]) == oracle["in/prompt_ids"][0].tolist()


def test_training_equals_the_original(captioner: tuple[Oracle, Any]) -> None:
    oracle, model = captioner
    with torch.no_grad():
        images = model.encode(oracle["in/images"].double())
        logits = model.logits(oracle["in/caption_ids"], Shared(images, torch.arange(len(images))))
        loss = model.caption_loss(batch_of(oracle, prompt=oracle.facts["prompt"]))
    real = oracle["in/caption_mask"].bool()
    assert close(images, oracle["out/image_embeds"])
    assert close(logits[real], oracle["out/train/logits"][real])
    assert close(loss, oracle["out/train/loss"])


def test_generated_captions_equal_the_original(captioner: tuple[Oracle, Any]) -> None:
    oracle, model = captioner
    told = oracle.facts["generate"]
    prompt = model.prompt_ids(oracle.facts["prompt"])
    options = {"max_length": told["max_length"], "min_length": told["min_length"]}
    batch = batch_of(oracle, prompt=oracle.facts["prompt"], beams=told["num_beams"], **options)
    with torch.no_grad():
        images = model.encode(batch.images)
        ids, scores = model.generate(images, prompt, beams=told["num_beams"], **options)
        greedy, _ = model.generate(images, prompt, beams=1, **options)
        captions = model.caption(images, batch)
    assert [one.tolist() for one in ids] == [unpadded(row) for row in oracle["out/generate/ids"]]
    assert close(torch.tensor(scores), oracle["out/generate/sequences_scores"], 1e-6)
    assert [one.tolist() for one in greedy] == [unpadded(row) for row in oracle["out/greedy/ids"]]
    assert [c["caption"] for c in captions] == oracle.facts["generated"]


def test_an_image_is_captioned_once(captioner: tuple[Oracle, Any]) -> None:
    """Samples of one image, in any order, get its caption."""
    oracle, model = captioner
    owner = torch.tensor([2, 0, 2])
    samples = [Sample(str(i), ()) for i in range(3)]
    with torch.no_grad():
        images = model.encode(oracle["in/images"].double())
        found = model.caption(images, Batch(samples, None, owner[:, None]))
    assert [c["caption"] for c in found] == [oracle.facts["generated"][i] for i in owner]


@pytest.mark.parametrize("prompt", ["", "a", "a picture of ", "the two dogs , sitting on the table"])
def test_a_prompt_of_any_length(captioner: tuple[Oracle, Any], prompt: str) -> None:
    """Greedy decoding goes on from the prompt as a forward over the whole sentence does, and the loss leaves out the
    prompt alone."""
    oracle, model = captioner
    start = model.prompt_ids(prompt)
    length = len(start) + 6
    with torch.no_grad():
        images = model.encode(oracle["in/images"].double())
        found, _ = model.generate(images, start, beams=1, max_length=length, min_length=length)
        rows = torch.stack(found)
        logits = model.logits(rows, Shared(images, torch.arange(len(images))))
    logits[..., 3] = float("-inf")  # min_length forbids the end
    assert torch.equal(rows[:, len(start) :], logits.argmax(2)[:, len(start) - 1 : -1])
    texts = [model.after_prompt(row, start) for row in rows]
    assert all(not text.startswith("a picture") or prompt != "a picture of " for text in texts)
    ids, targets = model.targets(["two cats"], prompt)
    kept = targets[0] != -100
    assert ids[0, kept].tolist() == model.tokenizer("two cats").input_ids[1:]
    assert ids[0, ~kept].tolist() == start


def test_a_caption_is_cut_where_the_prompt_ends(captioner: tuple[Oracle, Any]) -> None:
    _, model = captioner

    def words(text: str) -> torch.Tensor:
        return torch.tensor([model.bos, *model.tokenizer(text, add_special_tokens=False).input_ids])

    prompt = model.prompt_ids("a picture of ")
    assert model.after_prompt(words("a picture of a dog , sitting"), prompt) == "a dog, sitting"
    assert model.after_prompt(words("a dog"), model.prompt_ids("")) == "a dog"
    assert model.after_prompt(torch.tensor(prompt), prompt) == ""


def test_no_space_stays_before_an_apostrophe(captioner: tuple[Oracle, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4.15 cleaned decoded texts unasked, and metrics split "dog's" and "dog ' s" differently."""
    _, model = captioner
    words = [*vocabulary()[:-4], "'", "s"]
    monkeypatch.setattr(model, "tokenizer", BertTokenizer(vocab={word: i for i, word in enumerate(words)}))
    assert model.shown(torch.tensor(model.prompt_ids("the dog's ball"))) == "the dog's ball"


def test_captions_are_cleaned_as_the_originals(captioner: tuple[Oracle, Any]) -> None:
    """pre_caption: lower case, no punctuation, 30 words; 40 tokens with the prompt and the end."""
    _, model = captioner
    ids, _ = model.targets(["Two CATS.  (on) the table!\n", "dog " * 50], "a picture of ")
    wanted = model.tokenizer("a picture of two cats on the table").input_ids[1:]
    assert ids[0, 1 : len(wanted) + 1].tolist() == wanted
    assert ids.shape[1] == 3 + 30 + 2
    ids, _ = model.targets(["cats " * 50], "a picture of " * 5)
    assert ids.shape == (1, 40)
    assert ids[0, -1] == 3
