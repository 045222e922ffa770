"""perturb=: texts change as they say, by seed and sample alone; the model sees them and the score does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlbench.cell.cell import open_cell
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.perturbation import MASK, parse
from vlbench.evaluation.predictions import Predictions, read_predictions
from vlbench.images.pipeline import ImageStore, decode
from vlbench.machine.ui import Screen
from vlbench.publishing.predicted import verify_predictions
from vlbench.run.runner import Runner, open_model
from vlbench.task import Sample

QUESTION = "is the small red circle to the left of the large square"  # 12 words
WORDS = {"task": "vqav2", "limit": "6", "evaluation.batch_size": "6"}


def test_a_rate_of_the_words_is_masked_dropped_or_mistyped() -> None:
    """round(0.3 x 12) = 4 words; a stronger rate changes the same ones and more."""
    words = QUESTION.split()
    masked = parse("mask:0.3").text(QUESTION, "1").split()
    assert [b for a, b in zip(words, masked, strict=True) if a != b] == [MASK] * 4
    hidden = [
        {i for i, w in enumerate(parse(f"mask:{r}").text(QUESTION, "1").split()) if w == MASK} for r in (0.3, 0.6)
    ]
    assert hidden[0] < hidden[1]
    dropped = parse("drop:0.3").text(QUESTION, "1").split()
    assert len(dropped) == 8
    rest = iter(words)
    assert all(word in rest for word in dropped)  # in their order
    mistyped = parse("typos:0.3").text(QUESTION, "1").split()
    assert 1 <= sum(a != b for a, b in zip(words, mistyped, strict=True)) <= 4
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(words, mistyped, strict=True))


def test_a_word_stays_and_so_do_lines_and_places_of_images() -> None:
    text = "<image> what is it\nA. cat\nB. dog"
    assert parse("mask:1").text(text, "1").count(MASK) == 6  # of seven words
    assert parse("mask:1").text(text, "1").startswith("<image> ")
    assert parse("mask:1").text(text, "1").count("\n") == 2
    assert parse("drop:1").text("why", "1") == "why"
    assert parse("typos:0.5").text("", "1") == ""


def test_the_numbers_follow_from_seed_and_sample() -> None:
    texts = {parse("typos:0.5", seed).text(QUESTION, owner) for seed in (0, 1) for owner in ("1", "2")}
    assert len(texts) == 4
    assert parse("typos:0.5", 1).text(QUESTION, "2") in texts
    sample = Sample("7", (), texts=(QUESTION, QUESTION))
    assert len(set(parse("mask:0.5").samples([sample])[0].texts)) == 2  # captions of one image differ


def test_an_image_is_known_by_its_pixels() -> None:
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8))
    noisy = parse("gaussian_noise:2").image(pixels)
    assert torch.equal(noisy, parse("gaussian_noise:2").image(pixels.clone()))
    assert not torch.equal(noisy, parse("gaussian_noise:2", seed=1).image(pixels))
    assert torch.equal(parse("typos:0.5").image(pixels), pixels)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("typo:0.1", "Did you mean 'typos'"),
        ("jpeg:6", "severity, 1 to 5"),
        ("jpeg:0", "severity, 1 to 5"),
        ("jpeg:2.5", "severity, 1 to 5"),
        ("jpeg", "severity, 1 to 5"),
        ("mask:0", "above 0 and at most 1"),
        ("mask:1.5", "above 0 and at most 1"),
        ("mask:nan", "above 0 and at most 1"),
        ("jpeg:1+jpeg:2", "twice"),
        ("mask:0.1+", "is not known"),
    ],
)
def test_what_it_refuses(words: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve({**WORDS, "perturb": words})


def test_a_seed_of_nothing_and_a_task_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no meaning without perturb"):
        resolve({**WORDS, "perturb_seed": "1"})
    with pytest.raises(UserError, match="have no text"):
        Runner(tmp_path / "runs", Screen(quiet=True)).run({"task": "imagenet", "perturb": "mask:0.2", "limit": "4"})
    assert not (tmp_path / "runs").exists()


def test_an_adapter_has_a_word_of_that_name() -> None:
    """A text that one of the two owners alone can take is that owner's; both can be said with their prefixes."""
    chain = {**WORDS, "method": "wanda+lora"}
    ours = resolve({**chain, "perturb": "jpeg:3"})
    theirs = resolve({**chain, "perturb": "mgpo"})
    assert (ours.task_options.perturb, ours.links[1].options.recorded().get("perturb")) == ("jpeg:3", None)
    assert (theirs.task_options.perturb, theirs.links[1].options.recorded()["perturb"]) == ("", "mgpo")
    with pytest.raises(UserError, match=r"write lora\.perturb= or task\.perturb="):
        resolve({**chain, "perturb": "jpeg"})


def test_it_enters_identities_only_where_it_is_given_and_in_one_way() -> None:
    plain, one, same, seeded = (
        open_cell(resolve({**WORDS, **more}))
        for more in (
            {"perturb": ""},
            {"perturb": "typos:0.5+jpeg:3"},
            {"perturb": "jpeg:3+typos:0.50"},
            {"perturb": "typos:0.5+jpeg:3", "perturb_seed": "1"},
        )
    )
    assert plain.id == open_cell(resolve(WORDS)).id
    assert one.id == same.id
    assert len({plain.id, one.id, seeded.id}) == 3
    assert one.evaluation["perturb"] == "typos:0.5+jpeg:3"
    pruned = open_cell(resolve({**WORDS, "perturb": "jpeg:3+typos:0.5", "method": "wanda"}))
    assert pruned.dense().id == one.id
    assert pruned.train_digest == open_cell(resolve({**WORDS, "method": "wanda"})).train_digest


def test_the_model_sees_it_and_the_score_does_not(tmp_path: Path) -> None:
    """Questions with masks and images of another file's pixels reach the model; the clean samples are scored."""
    cell = open_cell(resolve({**WORDS, "perturb": "mask:0.4+jpeg:5"}))
    model: Any = open_model(cell)[0]
    store = ImageStore(model.card.image)
    evaluator = Evaluator(model, cell.task, store, settings=cell.settings, batch_size=6)
    scored: list[Sample] = []
    score = cell.task.score
    vars(cell.task)["score"] = lambda sample, prediction: scored.append(sample) or score(sample, prediction)
    texts: list[str] = []
    forward = evaluator._forward
    vars(evaluator)["_forward"] = lambda samples, images: (
        texts.extend(s.text for s in samples) or forward(samples, images)
    )
    lines = evaluator.run(cell.samples, Predictions(tmp_path / "predictions.jsonl"))
    assert {line["status"] for line in lines} == {"ok"}
    assert [sample.text for sample in scored] == [sample.text for sample in cell.samples]
    assert texts
    assert all(MASK in text for text in texts)
    file = cell.samples[0].images[0]
    assert torch.equal(evaluator.store.load([file])[0], parse("jpeg:5").image(decode(file)))
    assert torch.equal(store.load([file])[0], decode(file))  # what methods see


def test_submit_predicts_perturbed_samples_again(tmp_path: Path) -> None:
    """As the run was given them: else every honest run with perturbed texts would be refused."""
    runner = Runner(tmp_path, Screen(quiet=True))
    cell = open_cell(resolve({**WORDS, "limit": "24", "perturb": "mask:0.6"}))
    record = runner.cell(cell)
    file = tmp_path / cell.id / "predictions.jsonl"
    lines = read_predictions(file, [sample.id for sample in cell.samples])
    verify_predictions(file, cell, open_model(cell)[0], lines, "", record.provenance)
    clean = open_cell(resolve({**WORDS, "limit": "24"}))
    with pytest.raises(UserError, match="samples otherwise"):
        verify_predictions(file, clean, open_model(clean)[0], lines, "", record.provenance)
