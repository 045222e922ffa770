"""BLIP's question answering against the original code's outputs (float64), dense and cut by UPop's own compress()."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.beside import SHARED
from tests.oracles import Oracle
from vlbench.capability import Batch
from vlbench.images.spec import ImageSpec
from vlbench.model import Card
from vlbench.nn.attend import Shared
from vlbench.plugins.table import table
from vlbench.task import Sample

RECORDINGS = SHARED / "oracles" / "models"


WORDS = """
[PAD] [UNK] [CLS] [SEP] [MASK] a picture of the is are what color how many who where on in with and no yes red blue
green black white one two three four dog dogs cat cats man woman child ball table tree car bus cake phone sitting
standing riding ##s ##ing ? , left right [unused55] [unused56] [unused57] [DEC] [ENC]
"""


def recorded(name: str) -> list[str]:
    """The recordings NAME_a, NAME_b ... that lie in ../shared."""
    return sorted(p.stem for p in RECORDINGS.glob(f"{name}_?.npz")) or [f"{name}_a"]


def opened(model: str, oracle: Oracle, prefix: str | tuple[str, ...], folder: Path) -> Any:
    """Our model in float64, from the recorded weights as one .pth file. Beside it lie the vocabulary, and the number of
    heads, which no tensor tells."""
    c = oracle.facts["config"]
    write_beside(folder, oracle)
    tensors = {k: v for p in ([prefix] if isinstance(prefix, str) else prefix) for k, v in oracle.tensors(p).items()}
    torch.save({"model": tensors}, folder / "model.pth")
    cls = table("models").get(model).load()
    card = Card(model, "", cls.cards[0].capabilities, "", ImageSpec(size=c["img"]))
    opened = cls.open(card, folder / "model.pth")
    opened.net.double()
    return opened


def write_beside(folder: Path, oracle: Oracle) -> None:
    """vocab.txt, and a config.json that says what tensors do not tell."""
    c = oracle.facts["config"]
    assert oracle.facts.get("vocab", vocabulary()) == vocabulary()
    (folder / "vocab.txt").write_text("\n".join(vocabulary()[:-2]) + "\n")  # without [DEC] and [ENC]
    vision = {"hidden_size": c["vw"], "num_attention_heads": c["vh"], "intermediate_size": c["vw"] * c["vmlp"]}
    text = {"hidden_size": c["th"], "num_attention_heads": c["heads"], "intermediate_size": c["inter"]}
    (folder / "config.json").write_text(json.dumps({"vision_config": vision, "text_config": text}))


def vocabulary() -> list[str]:
    """That of all recordings; only some name it (see write_beside)."""
    return WORDS.split()


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(found, wanted.to(found.dtype), rtol=0, atol=tolerance)


def unpadded(row: Tensor, end: int = 3) -> list[int]:
    """The recorded tokens of a generated row, without its end and padding."""
    ids: list[int] = row.tolist()
    return ids[: ids.index(end)] if end in ids else ids


@pytest.fixture(scope="module", params=recorded("blip_vqa_eval") + recorded("blip_vqa_compressed"))
def vqa(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Any]:
    oracle = Oracle(shared / "oracles" / "models" / f"{request.param}.npz")
    prefix = "ckpt/" if "compressed" in request.param else "sd/"
    return oracle, opened("blip-vqa", oracle, prefix, tmp_path_factory.mktemp("blip"))


def states(oracle: Oracle, model: Any) -> tuple[Tensor, Tensor]:
    owner = oracle["in/image_index"]
    with torch.no_grad():
        return model.question_states(model.encode(oracle["in/images"].double()), oracle.facts["questions"], owner)


def test_tokens_and_states_equal_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    with torch.no_grad():
        assert close(model.encode(oracle["in/images"].double()), oracle["out/image_embeds"])
    questions, mask = states(oracle, model)
    assert torch.equal(mask, oracle["in/question_mask"])
    real = mask.bool()
    assert close(questions[real], oracle["out/question_states"][real])


@pytest.mark.parametrize("name", ["rank", "rank_all"])
def test_ranking_equals_the_original(vqa: tuple[Oracle, Any], name: str) -> None:
    oracle, model = vqa
    answers = oracle.facts["answer_list"]
    k = oracle.facts["k_test"] if name == "rank" else len(answers)
    questions, mask = states(oracle, model)
    with torch.no_grad():
        score = model.rank(questions, mask, model.candidate_ids(answers), k)
    assert torch.equal(score.argmax(1), oracle[f"out/{name}/max_ids"].flatten())
    wanted = oracle[f"out/{name}/log_probs_sum"]
    ids = torch.arange(len(answers)).expand_as(wanted) if name == "rank_all" else oracle["out/rank/topk_ids"]
    assert close(score.gather(1, ids), wanted)
    assert torch.equal(score.isfinite().sum(1), torch.full((len(questions),), k))


def test_first_token_equals_the_original(vqa: tuple[Oracle, Any]) -> None:
    """What chooses the candidates: the logits after [DEC], and the probability of each answer's first token."""
    oracle, model = vqa
    questions, mask = states(oracle, model)
    start = torch.full((len(questions), 1), model.bos)
    with torch.no_grad():
        logits = model.decode(start, Shared(questions, torch.arange(len(questions)), mask))[:, 0]
    assert close(logits, oracle["out/rank/start_logits"])
    first = torch.tensor([ids[1] for ids in model.candidate_ids(oracle.facts["answer_list"])])
    found = logits.softmax(1)[:, first]
    assert close(found, oracle["out/rank_all/prob_first_token"])
    assert close(found.topk(oracle.facts["k_test"]).values, oracle["out/rank/topk_probs"])


def test_generated_answers_equal_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    questions, _ = states(oracle, model)
    with torch.no_grad():
        ids, scores = model.generate(questions)
    assert [one.tolist() for one in ids] == [unpadded(row) for row in oracle["out/generate/ids"]]
    assert close(torch.tensor(scores), oracle["out/generate/sequences_scores"], 1e-6)
    assert [model.shown(one) for one in ids] == oracle.facts["generated_answers"]


def samples_of(oracle: Oracle) -> list[Sample]:
    answers, weights = iter(oracle.facts["train_answers"]), iter(oracle.facts["weights"])
    return [
        Sample(str(i), (), question, {next(answers): next(weights) for _ in range(n)})
        for i, (question, n) in enumerate(zip(oracle.facts["questions"], oracle.facts["n"], strict=True))
    ]


def test_training_loss_equals_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    batch = Batch(samples_of(oracle), oracle["in/images"].double(), oracle["in/image_index"][:, None])
    with torch.no_grad():
        assert close(model.answer_loss(batch), oracle["out/train/loss"])


def test_training_logits_equal_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    questions, mask = states(oracle, model)
    owner = torch.arange(len(questions)).repeat_interleave(torch.tensor(oracle.facts["n"]))
    answers = model.candidate_ids(oracle.facts["train_answers"])
    ids, real = model.padded(answers)
    with torch.no_grad():
        logits = model.decode(ids, Shared(questions, owner, mask))
        nll = model.negative_log_likelihood(model.forced(questions, mask, owner, answers), questions)
    assert close(nll, oracle["out/train/answer_nll"])
    assert close(logits[real.bool()], oracle["out/train/logits"][real.bool()])


@pytest.mark.parametrize(
    ("text", "caption", "question"),
    [
        ("A Dog, (on) the: table.\n", "a dog, on the table", "a dog, on the table\n"),
        ('Is it "red"? #1', "is it red ? 1", "is it red? 1"),
        ("well-known;left~right*", "well-known left right", "well-knownleftright"),
        ("one two three four five six", "one two three four five", "one two three four five"),
        ("  one  two", "one two", "  one  two"),
        ("", "", ""),
    ],
)
def test_texts_are_cleaned_as_the_originals(text: str, caption: str, question: str) -> None:
    """Worked out by hand from pre_caption and pre_question (data/utils.py), with five words."""
    module = importlib.import_module("vlbench.registry._blip_text")
    assert module.clean_caption(text, 5) == caption
    assert module.clean_question(text, 5) == question


def test_questions_are_cleaned(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    with torch.no_grad():
        images = model.encode(oracle["in/images"][:1].double())
        plain, _ = model.question_states(images, ["what color is the dog ?"], torch.tensor([0]))
        marked, _ = model.question_states(images, ['What "color" is (the) dog ?...'], torch.tensor([0]))
    assert torch.equal(plain, marked)
