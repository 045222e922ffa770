"""Oracle: the library's own processor and whole forward, on tiny random folders that the library wrote itself.

One test over every family of a vision tower, a projector and a language model (registry/_projected.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from registry._chat import ends_in
from tests.nn.test_kinds import close_gates, random_keep
from tests.registry.folders import FOLDERS, Folder
from vlbench.calibration.blocks import block_statistics
from vlbench.calibration.capture import capture_all, replay
from vlbench.capability import Batch, owners
from vlbench.compression.cut import Cut, cut
from vlbench.compression.export import export
from vlbench.compression.saved import load_model, open_checkpoint, save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.structure import Structure, check_structure
from vlbench.task import Sample
from vlbench.training.batches import divided

SIZES = ((60, 20), (28, 28), (20, 93), (1, 1), (300, 4), (45, 64))  # (height, width)
CPU = torch.device("cpu")


@dataclass
class Opened:
    """A folder: the library's model and processor, and ours."""

    folder: Path
    net: Any
    processor: Any
    model: Any
    chat: bool


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda f: f.name)
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    made: Folder = request.param
    folder = tmp_path_factory.mktemp(made.name)
    net, processor = made.write(folder)
    entry = table("models").get(made.name)
    cls = entry.load()
    card = next(c for c in cls.cards if c.name == made.name)
    return Opened(folder, net, processor, open_checkpoint(cls, card, folder)[0], made.chat)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(height: int, width: int) -> Image.Image:
    """Smooth, so that resizing by another rule shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 7 + k) + np.cos(y / 5 - k) for k in range(3)]
    return Image.fromarray((127 + 60 * np.stack(waves, -1)).clip(0, 255).astype(np.uint8))


def raw(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def batch_of(model: Any, pictures: list[Image.Image], rows: list[list[int]], texts: list[str], **more: Any) -> Batch:
    views = [model.views(raw(p)).on(CPU, model.dtype) for p in pictures]
    samples = [
        Sample(str(i), tuple(Path(f"{k}") for k in row), text, target={"red": 1.0})
        for i, (row, text) in enumerate(zip(rows, texts, strict=False))
    ]
    return Batch(samples, views, owners(rows, CPU), {"prompt": "{}", **more})


def library_inputs(opened: Opened, pictures: list[Image.Image], content: list[dict[str, str]], answer: str = "") -> Any:
    if not opened.chat:
        text = "<image>" * len(pictures) + content[-1]["text"]
        suffix = {"suffix": [answer.removesuffix(opened.model.tokenizer.eos_token)]} if answer else {}
        found = opened.processor(images=[pictures], text=[text], return_tensors="pt", **suffix)
        del found["labels"]
        return found
    text = opened.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return opened.processor(images=[pictures] if pictures else None, text=[text + answer], return_tensors="pt")


def content_of(images: int, text: str) -> list[dict[str, str]]:
    return [{"type": "image"}] * images + [{"type": "text", "text": text}]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_librarys_processor(opened: Opened, size: tuple[int, int]) -> None:
    image = picture(*size)
    found = library_inputs(opened, [image], content_of(1, "a"))
    view = opened.model.views(raw(image)).on(CPU, torch.float32)
    pixels = found["pixel_values"]
    assert view.pixels.shape == pixels.reshape(view.pixels.shape).shape
    assert float((view.pixels - pixels.reshape(view.pixels.shape)).abs().max()) <= 1e-5
    assert opened.model.views(raw(image)).pixels.dtype == torch.uint8


def ids_of(state: Any, mark: int) -> list[int]:
    """Of an image's tokens, and of the words that may stand among them."""
    if state.words is None:
        return [mark] * len(state.tokens)
    return [mark if word < 0 else word for word in state.words.tolist()]


@pytest.mark.parametrize("images", [0, 1, 2])
def test_prompts_are_those_of_the_librarys_processor(opened: Opened, images: int) -> None:
    model, pictures = opened.model, [picture(60, 20), picture(28, 28)][:images]
    if images > 1 and not model.several:
        pytest.skip("this family reads several images another way, and refuses them")
    if not images and not opened.chat:
        pytest.skip("the library's processor asks for an image")
    found = library_inputs(opened, pictures, content_of(images, "What is it?"))
    batch = batch_of(model, pictures, [list(range(images))], ["What is it?"])
    states = model.together(model.encode(batch.images)) if images else []
    mark = model.tokenizer.convert_tokens_to_ids(model.mark)
    first, *rest = model._divided(model._questions(batch)[0])
    ids = [*first, *(t for s, part in zip(states, rest, strict=True) for t in [*ids_of(s, mark), *part])]
    assert ids == found["input_ids"][0].tolist()


def nll(opened: Opened, pictures: list[Image.Image], text: str, answer: str) -> float:
    """Of an answer and its end by the library's whole forward."""
    end = opened.model.tokenizer.eos_token
    found = library_inputs(opened, pictures, content_of(len(pictures), text), answer + end)
    count = len(opened.model.target_ids(answer))
    with torch.no_grad():
        logits = opened.net(**found).logits[0].log_softmax(-1)
    ids = found["input_ids"][0]
    return float(logits[-count - 1 : -1].gather(1, ids[-count:, None]).sum())


TEXTS = ["What is it?", "Is it red?", "And this one here?", "Well", "No image at all?"]
ROWS = [[0], [0], [1], [1, 0], []]


def rows_of(opened: Opened) -> list[list[int]]:
    """Which images the samples show: two of them only where the family reads them alike, and none only where the
    library's processor reads words alone."""
    rows = ROWS if opened.model.several else [row[:1] for row in ROWS]
    return rows if opened.chat else rows[:-1]


def test_answers_are_ranked_as_the_whole_forward_scores_each_alone(opened: Opened) -> None:
    """Also of two images and of none, in one batch with the others."""
    pictures, candidates = [picture(60, 20), picture(28, 28)], ["red", "a dog", "no"]
    batch = batch_of(opened.model, pictures, rows_of(opened), TEXTS)
    model = opened.model
    with torch.no_grad():
        states = model.encode(batch.images)
        prompts = model._questions(batch)
        prefixes, slot = model.shown(states, model.owner_of(batch), prompts)
        found = {}
        for rows, read in model.language.read(prefixes, slot, [model.prompt_ids(p) for p in prompts]):
            scores = model.language.rank(read, [model.target_ids(c) for c in candidates], 3)
            found.update(zip(rows, scores.tolist(), strict=True))
    for row, (images, text) in enumerate(zip(rows_of(opened), TEXTS, strict=False)):
        want = [nll(opened, [pictures[i] for i in images], text, c) for c in candidates]
        assert found[row] == pytest.approx(want, rel=2e-5), row
    assert len({round(score[0], 3) for score in found.values()}) == len(rows_of(opened))  # images and words both count
    options = {"decoding": "rank", "candidates": candidates, "k_test": 3}
    batch = batch_of(model, pictures, rows_of(opened), TEXTS, **options)
    best = [candidates[int(np.argmax(found[row]))] for row in range(len(rows_of(opened)))]
    assert [p["answer"] for p in model.answer(model.encode(batch.images), batch)] == best


def test_the_loss_is_the_likelihood_of_the_answers(opened: Opened) -> None:
    pictures = [picture(60, 20), picture(28, 28)]
    batch = batch_of(opened.model, pictures, rows_of(opened), TEXTS)
    want = [
        -nll(opened, [pictures[i] for i in images], t, "red") for images, t in zip(rows_of(opened), TEXTS, strict=False)
    ]
    with torch.no_grad():
        assert float(opened.model.answer_loss(batch)) == pytest.approx(float(np.mean(want)), rel=2e-5)


def test_a_step_of_training_in_parts_is_that_of_the_whole_batch(opened: Opened) -> None:
    """The loop's own gradient, from images of several sizes."""
    model = copy(opened.model)
    model.net = deepcopy(opened.model.net)
    batch = batch_of(model, [picture(60, 20), picture(28, 28)], [[0], [0], [1], [1]], ["a", "b", "c d", "e"])
    assert batch.device == CPU
    found = []
    for parts in (1, 2):
        model.net.zero_grad()
        for part in divided(batch, parts):
            (model.answer_loss(part) / parts).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).abs().max()) <= 1e-5 * float(found[0].abs().max())


def test_answers_are_written_as_the_library_writes_them(opened: Opened) -> None:
    image = picture(45, 64)
    found = library_inputs(opened, [image], content_of(1, "What is it?"))
    end = opened.model.tokenizer.eos_token_id
    with torch.no_grad():
        ids = opened.net.generate(**found, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=end)
        batch = batch_of(
            opened.model, [image], [[0]], ["What is it?"], decoding="generate", beams=1, max_length=6, min_length=0
        )
        said = opened.model.answer(opened.model.encode(batch.images), batch)
    wanted = ids[0, found["input_ids"].shape[1] :]
    assert said == [{"answer": opened.model.text_of(wanted[wanted != end])}]


def test_the_token_that_ends_a_turn_ends_an_answer_where_the_folder_says_so(opened: Opened) -> None:
    """Gemma 3's tokenizer names <eos>, and its chats end with <end_of_turn>: generation_config.json names both."""
    model = copy(opened.model)
    turn = model.tokenizer("<|endoftext|>", add_special_tokens=False).input_ids
    model.config = {**model.config, "prompts": {**model.config["prompts"], "chat": "{}<|endoftext|>reply"}, "ends": []}
    assert model.end == model.tokenizer.eos_token_id, "the folder does not name it"
    model.config["ends"] = sorted([model.tokenizer.eos_token_id, *turn])
    assert [model.end] == turn == [model.language.end]


def test_what_ends_answers_is_read_from_the_folder(tmp_path: Path) -> None:
    config = {"eos_token_id": None, "text_config": {"eos_token_id": 5}}
    assert ends_in(tmp_path, config) == [5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [106, 1]}')
    assert ends_in(tmp_path, config) == [1, 106]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    assert ends_in(tmp_path, {}) == []


def run_of(model: Any) -> Callable[[Any], Tensor]:
    """Logits of teacher forcing over images of several sizes."""
    batch = batch_of(model, [picture(60, 20), picture(28, 28)], [[0], [1], [0]], ["a", "b", "c d"])

    def run(net: Any) -> Tensor:
        other = copy(model)
        other.net = net
        with torch.no_grad():
            return torch.cat([part for part, _ in other.answer_outputs(batch).logits])

    return run


def structures_of(model: Any, net: Any) -> list[Structure]:
    """With every attention by its narrow unit, and by its widest."""
    other = copy(model)
    other.net = net
    found = other.structure()
    return [found, found.with_units(lambda site: (site, *site.variants)[-1].unit)]


def mixed(structure: Structure) -> Structure:
    """Attention by its narrow unit and by its last one, by turns: rotary pairs, values and whole heads in one model."""
    units = {s.name: (s, *s.variants)[-(n // 2 % 2)].unit for n, s in enumerate(structure.sites)}
    return structure.with_units(lambda site: units[site.name])


def test_a_cut_model_equals_the_gated_one(opened: Opened) -> None:
    """For every legal unit of both towers. RMSNorm and rotary angles are of float32 whatever the model's type."""
    model = deepcopy(opened.model)
    model.net = model.net.double()
    run = run_of(model)
    dense = run(model.net)
    for number in range(2):
        gated, small = deepcopy(model.net), deepcopy(model.net)
        keep = random_keep(structures_of(model, gated)[number], 0)
        check_structure(gated, structures_of(model, gated)[number])
        with torch.no_grad():
            close_gates(gated, structures_of(model, gated)[number], keep)
        cut(small, structures_of(model, small)[number], keep)
        want = run(gated)
        assert float((run(small) - want).abs().max()) <= 1e-6
        assert float((want - dense).abs().max()) > 1e-3


def test_blocks_replay_to_what_they_gave(opened: Opened) -> None:
    model = opened.model
    batch = batch_of(model, [picture(60, 20), picture(28, 28)], [[0], [1], [0]], ["a", "b", "c d"])
    for tower in model.structure().towers:
        calls = capture_all(model.net, tower.blocks, lambda: model.answer_loss(batch))
        for number in range(len(calls[0])):
            hidden = calls[0][number].hidden
            for block, found in zip(tower.blocks, calls, strict=True):
                glue = found[number].glue
                hidden = hidden if glue is None else hidden + glue
                assert torch.allclose(hidden, found[number].hidden, rtol=0, atol=1e-6), block.path
                hidden = replay(model.net, block, found[number], found[number].hidden)
                assert torch.equal(hidden, found[number].output), block.path


def _adder(total: Tensor) -> Callable[..., None]:
    def add(_: Any, args: Any, out: Any) -> None:
        total.add_(args[0].double().square().flatten(0, -2).sum(0))

    return add


def statistics_equal_hooked_runs(model: Any, loss: Callable[[], Any]) -> None:
    """Of every matrix of every tower, each block pruned before the next one is looked at; the model is pruned by it."""
    for block, statistics in block_statistics(model.net, model.structure(), [loss]):
        names = list(statistics)
        want = {name: torch.zeros_like(statistics[name].square_sum) for name in names}
        hooks = [
            model.net.get_submodule(name.rpartition(".")[0]).register_forward_hook(_adder(want[name])) for name in names
        ]
        with torch.no_grad():
            loss()
            for hook in hooks:
                hook.remove()
            for name in names:
                worst = float((statistics[name].square_sum - want[name]).abs().max())
                assert worst <= 1e-6 * float(want[name].max()), (block.path, name)
                model.net.get_parameter(name)[::2] = 0


def test_statistics_of_a_pruned_walk_are_those_of_whole_runs(opened: Opened) -> None:
    """The rest is 1.5e-7 with glue, which is a difference of two float32, and 2e-15 without."""
    model = copy(opened.model)
    model.net = deepcopy(opened.model.net)
    batch = batch_of(model, [picture(60, 20), picture(28, 28)], [[0], [1], [0]], ["a", "b", "c d"])
    statistics_equal_hooked_runs(model, lambda: model.answer_loss(batch))


def test_a_cut_model_is_saved_and_opened_again_to_the_bit(opened: Opened, tmp_path: Path) -> None:
    model = deepcopy(opened.model)
    structure = mixed(model.structure())
    keep = random_keep(structure, 1)
    cut(model.net, structure, keep)
    save_model(tmp_path / "saved", model, Compression(cuts=[Cut.of(structure, keep)]))
    other, _ = load_model(tmp_path / "saved")
    batch = batch_of(other, [picture(60, 20)], [[0]], ["a b"])
    with torch.no_grad():
        assert float(other.answer_loss(batch)) == float(model.answer_loss(batch))
    for key, value in model.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[key], value), key


def test_an_exported_cut_model_is_the_librarys_own_class(opened: Opened, tmp_path: Path) -> None:
    """load.py, without vlbench's attention, computes what the cut model computes."""
    model = copy(opened.model)
    model.net = deepcopy(opened.model.net)
    structure = mixed(model.structure())
    keep = random_keep(structure, 2)
    cut(model.net, structure, keep)
    save_model(tmp_path / "saved", model, Compression(cuts=[Cut.of(structure, keep)]))
    export(str(tmp_path / "saved"), tmp_path / "out", tmp_path)
    net = run_path(str(tmp_path / "out" / "load.py"))["load"](tmp_path / "out")
    assert type(net) is type(opened.net)
    found = library_inputs(opened, [picture(60, 20)], content_of(1, "What is it?"))
    with torch.no_grad():
        want = model.net(**found).logits
        assert float((net(**found).logits - want).abs().max()) <= 1e-6 * float(want.abs().max())


def refused(opened: Opened, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        type(opened.model).open(opened.model.card, folder)
    return str(error.value)


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    told = json.loads((folder / name).read_text())
    change(told)
    (folder / name).write_text(json.dumps(told))


def test_folders_that_lack_something_are_told_what(opened: Opened, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return shutil.copytree(opened.folder, tmp_path / name)

    folder = copied("quantised")
    edited(folder, "config.json", lambda c: c.update(quantization_config={"quant_method": "bitsandbytes"}))
    assert "config.json says that the weights are quantised" in refused(opened, folder)
    folder = copied("remote")
    edited(folder, "config.json", lambda c: c.update(auto_map={"AutoModel": "modeling.Model"}))
    assert f"never run: use the same model in the library's own layout, {opened.model.card.checkpoint}" in refused(
        opened, folder
    )
    if opened.chat:
        folder = copied("template")
        (folder / "chat_template.jinja").write_text("{{ messages[0]['role'] }}")
        assert "has no place for" in refused(opened, folder)
        (folder / "chat_template.jinja").unlink()
        assert "has no chat template" in refused(opened, folder)
    folder = copied("processor")
    edited(
        folder, "processor_config.json", lambda c: c["image_processor"].update(image_processor_type="ViTImageProcessor")
    )
    assert "is a ViTImageProcessor, and this model's is a" in refused(opened, folder)
    (folder / "processor_config.json").unlink()
    assert "does not say how its images are prepared" in refused(opened, folder)
    folder = copied("kind")
    edited(folder, "config.json", lambda c: c.update(model_type="bert"))
    assert "is of a model of type 'bert'" in refused(opened, folder)


def test_a_picture_too_large_for_the_context_is_its_samples_error(opened: Opened) -> None:
    """One position less than it takes; with all of them it is answered."""
    model = copy(opened.model)
    model.net = deepcopy(opened.model.net)
    batch = batch_of(model, [picture(60, 20)], [[0]], ["a"], decoding="rank", candidates=["red", "no"], k_test=2)
    states = model.encode(batch.images)
    prompt = model._questions(batch)[0]
    needed = model.shown(states, [[0]], [prompt])[0][0].end + len(model.prompt_ids(prompt))
    config = model.net.get_submodule(model.decoder).config
    config.max_position_embeddings = needed
    assert model.answer(states, batch)
    config.max_position_embeddings = needed - 1
    with pytest.raises(ValueError, match=f"take {needed} positions, and {model.card.name} has {needed - 1}"):
        model.answer(states, batch)


def test_weights_without_a_vision_tower_are_told_so(opened: Opened, tmp_path: Path) -> None:
    folder = shutil.copytree(opened.folder, tmp_path / "blind")
    tensors = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not opened.model.renamed(k).startswith(f"{opened.model.vision}.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert f"have no vision tower ({opened.model.vision}.*)" in refused(opened, folder)


def test_weights_that_lie_there_twice(opened: Opened, tmp_path: Path) -> None:
    """An index says which are read; without one, whole weights beside shards are refused, as are mixed shards."""
    folder = tmp_path / "twice"
    made = next(f for f in FOLDERS if f.name == opened.model.card.name)
    made.write(folder, max_shard_size="30kB")
    shards = sorted(folder.glob("model-*.safetensors"))
    whole = {k: v for shard in shards for k, v in load_file(shard).items()}
    save_file(whole, folder / "consolidated.safetensors")
    other = type(opened.model).open(opened.model.card, folder)
    for key, value in opened.model.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[key], value), key
    shutil.copytree(folder, tmp_path / "mixed")
    (folder / "model.safetensors.index.json").unlink()
    assert "in two files: keep the weights of one model" in refused(opened, folder)
    shutil.copy(tmp_path / "mixed" / shards[0].name, tmp_path / "mixed" / shards[-1].name)
    assert "which the index says it has: fetch it anew" in refused(opened, tmp_path / "mixed")


def test_a_tokenizer_without_the_words_around_an_image_is_refused(opened: Opened, tmp_path: Path) -> None:
    """Such words would be read letter by letter, and the model would answer something else."""
    words = [opened.model.mark, *opened.model.special(opened.model.config)]
    folder = shutil.copytree(opened.folder, tmp_path / "words")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(words[-1], "<another>"))
    edited(
        folder, "tokenizer_config.json", lambda c: [c.pop(key) for key, word in list(c.items()) if word == words[-1]]
    )
    assert f"has no {words[-1]}, which stands for an image" in refused(opened, folder)


def test_attention_has_the_units_that_the_class_allows(opened: Opened) -> None:
    for site in opened.model.structure().sites:
        if site.kind == "attention":
            assert {site.unit, *(v.unit for v in site.variants)} & {"head", "kv group"}
            assert site.unit in ("dim", "rope pair") or site.refusals
