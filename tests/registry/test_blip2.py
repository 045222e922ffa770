"""BLIP-2, InstructBLIP and LLaVA against transformers' own modules with the same random weights, one sample at a time.

The oracle reads each prompt alone, with placeholders for the image tokens, and has its own attention: what is batched,
padded, shared and cached here must come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import minis
from tests.calibration.pruned import calibrate
from tests.calibration.test_calibrate import one_by_one
from tests.nn.test_kinds import close_gates, random_keep
from tests.registry import prompted
from vlbench.calibration.capture import capture_all, replay
from vlbench.capability import Batch
from vlbench.compression.cut import cut
from vlbench.compression.masks import apply_masks, keep_fraction
from vlbench.errors import UserError
from vlbench.structure import check_structure
from vlbench.task import Sample
from vlbench.tensors.reading import read_weights

IMAGE = prompted.VOCABULARY  # stands where an image token goes, in the oracle: a word more
CLOSE = 1e-5  # the libraries' RMS norms compute in float32, whatever they are given
every = pytest.mark.parametrize("name", prompted.NAMES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Oracle:
    """The library's model, asked one sample at a time."""

    def __init__(self, model: Any) -> None:
        title, module = prompted.family(model.name)
        if title == "Llava":
            self.net = module.LlavaForConditionalGeneration(module.LlavaConfig.from_dict(model.config))
        else:
            self.net = getattr(module, title).network(model.config)
        if "t5" in model.name:  # the library ties it unless it opens the file itself, as FlanT5's is not
            head = self.net.language_model.lm_head
            head.weight = nn.Parameter(head.weight.detach().clone())
        self.net.load_state_dict(model.net.state_dict())
        self.net.double().eval()
        self.net.config.image_token_index = IMAGE
        words = self.net.get_input_embeddings()
        words.weight = nn.Parameter(torch.cat([words.weight, torch.full_like(words.weight[:1], 7.0)]))
        self.model, self.title = model, title

    def inputs(self, image: Tensor, prompt: str) -> dict[str, Any]:
        """pixel_values, input_ids and attention_mask of one image and one prompt."""
        ids = self.model.tokenizer(prompt).input_ids
        if self.title == "Llava":
            mark = self.model.tokenizer.convert_tokens_to_ids("<image>")
            at = ids.index(mark)
            ids = [*ids[:at], *[IMAGE] * 4, *ids[at + 1 :]]
        else:
            ids = [*[IMAGE] * 3, *ids]
        if not self.seq2seq:
            ids = ids[:-1]  # [SEP], which BERT's tokenizer adds, ends the answer
        found = {"pixel_values": image[None], "input_ids": torch.tensor([ids])}
        if self.title == "InstructBlip":
            found["qformer_input_ids"] = torch.tensor([self.model.tokenizer(prompt).input_ids])
        return found

    @property
    def seq2seq(self) -> bool:
        return "t5" in self.model.name

    def logits(self, image: Tensor, prompt: str, text: list[int]) -> Tensor:
        """(len(text), vocabulary) of the tokens of `text` after the prompt, teacher-forced."""
        given = self.inputs(image, prompt)
        if self.seq2seq:
            begun = torch.tensor([[0, *text[:-1]]])
            found: Tensor = self.net(**given, decoder_input_ids=begun, use_cache=False).logits[0]
            return found
        ids = torch.cat([given.pop("input_ids"), torch.tensor([text[:-1]], dtype=torch.long)], 1)
        found = self.net(**given, input_ids=ids, use_cache=False).logits[0]
        return found[-len(text) :]

    def likelihood(self, image: Tensor, prompt: str, text: list[int]) -> float:
        log = self.logits(image, prompt, text).log_softmax(-1)
        return float(log[torch.arange(len(text)), torch.tensor(text)].sum())

    def greedy(self, image: Tensor, prompt: str, length: int) -> str:
        """Up to `length` tokens, the end not first."""
        text: list[int] = []
        while len(text) < length:
            log = self.logits(image, prompt, [*text, 0])[-1]
            if not text:
                log[self.model.language.end] = float("-inf")
            if int(log.argmax()) == self.model.language.end:
                break
            text.append(int(log.argmax()))
        return str(self.model.text_of(torch.tensor(text)))


@pytest.fixture(scope="module", params=prompted.NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Oracle]:
    model = prompted.build(request.param, tmp_path_factory.mktemp("model"))
    model.name = request.param
    return model, Oracle(model)


def prompts_of(model: Any) -> list[str]:
    template = model.template("answer")
    return [template.replace("{}", q) for q in prompted.QUESTIONS]


def test_teacher_forced_logits_equal_the_librarys(pair: tuple[Any, Oracle]) -> None:
    """Questions and answers of several lengths in one batch, two answers of one question, two images."""
    model, oracle = pair
    batch = prompted.batch()
    with torch.no_grad():
        outputs = model.answer_outputs(batch)
        ((logits, share),) = outputs.logits
        wanted, weights = [], []
        for i, sample in enumerate(batch.samples):
            for text, weight in sample.target.items():
                ids = model.target_ids(text)
                found = oracle.logits(batch.images[batch.owner[i, 0]], prompts_of(model)[i], ids)
                wanted += [(row, weight / 5, token) for row, token in zip(found, ids, strict=True)]
                weights.append(weight)
    rows = torch.stack([torch.cat([row, row.new_tensor([w])]) for row, w, _ in wanted])
    ours = torch.cat([logits, share[:, None]], 1)
    alike = torch.cdist(rows, ours, p=float("inf"))  # in whatever order
    assert float(alike.min(0).values.max()) < CLOSE
    assert float(alike.min(1).values.max()) < CLOSE
    assert len(ours) == len(rows)
    loss = -sum(w * row.log_softmax(-1)[token] for row, w, token in wanted)
    assert float(outputs.loss()) == pytest.approx(float(loss), abs=1e-6)


def test_captions_are_told_without_their_prompt(pair: tuple[Any, Oracle]) -> None:
    model, oracle = pair
    batch = prompted.captions()
    with torch.no_grad():
        loss = float(model.caption_loss(batch))
        total, count = 0.0, 0
        for i, sample in enumerate(batch.samples):
            ids = model.target_ids(sample.target)
            total -= oracle.likelihood(batch.images[batch.owner[i, 0]], model.template("caption"), ids)
            count += len(ids)
    assert count == model.caption_terms(batch)
    assert loss == pytest.approx(total / count, abs=CLOSE)


def test_ranking_equals_the_likelihood_of_every_answer(pair: tuple[Any, Oracle]) -> None:
    model, oracle = pair
    candidates = ["red", "a b c", "two", "d e", "f g", "red blue one"]
    batch = prompted.batch(decoding="rank", candidates=candidates, k_test=6)
    with torch.no_grad():
        states = model.encode(batch.images)
        images, slot = model.shown(states, batch.owner[:, 0], prompts_of(model))
        ids = [model.target_ids(text) for text in candidates]
        score = torch.zeros(5, len(candidates))
        for rows, read in model.language.read(images, slot, [model.prompt_ids(p) for p in prompts_of(model)]):
            score[rows] = model.language.rank(read, ids, 6)
        wanted = torch.tensor(
            [
                [oracle.likelihood(batch.images[batch.owner[i, 0]], prompts_of(model)[i], text) for text in ids]
                for i in range(5)
            ]
        )
        said = model.answer(states, batch)
    assert torch.allclose(score, wanted, atol=1e-4)
    assert [s["answer"] for s in said] == [candidates[i] for i in wanted.argmax(1).tolist()]


def test_only_the_best_first_tokens_are_ranked(pair: tuple[Any, Oracle]) -> None:
    model, _ = pair
    ids = [model.target_ids(text) for text in ("red", "two", "d e", "f g")]
    with torch.no_grad():
        images, slot = model.shown(model.encode(prompted.images()), torch.tensor([0]), prompts_of(model)[:1])
        ((_, read),) = model.language.read(images, slot, [model.prompt_ids(prompts_of(model)[0])])
        score = model.language.rank(read, ids, 2)[0]
    first = read.logits[0, [one[0] for one in ids]]
    assert set(first.topk(2).indices.tolist()) == set(torch.isfinite(score).nonzero()[:, 0].tolist())


def test_greedy_answers_equal_the_librarys(pair: tuple[Any, Oracle]) -> None:
    model, oracle = pair
    batch = prompted.batch(decoding="generate", beams=1, max_length=5, length_penalty=1.0)
    with torch.no_grad():
        said = [s["answer"] for s in model.answer(model.encode(batch.images), batch)]
        wanted = [
            oracle.greedy(batch.images[batch.owner[i, 0]], prompt, 5) for i, prompt in enumerate(prompts_of(model))
        ]
    assert said == wanted
    assert len(set(said)) > 1


def test_beams_find_what_is_likelier(pair: tuple[Any, Oracle]) -> None:
    """Of the sentences of exactly four tokens that beams find, none is less likely than the greedy one."""
    model, oracle = pair
    length = {"max_length": 4, "min_length": 4, "length_penalty": 1.0, "decoding": "generate"}
    with torch.no_grad():
        states = model.encode(prompted.images())
        read = {}
        for beams in (1, 6):
            batch = prompted.batch(beams=beams, **length)
            images, slot = model.shown(states, batch.owner[:, 0], prompts_of(model))
            found: dict[int, list[int]] = {}
            for rows, one in model.language.read(images, slot, [model.prompt_ids(p) for p in prompts_of(model)]):
                ids = model.language.generate(one, beams=beams, max_length=5, min_length=5, length_penalty=1.0)
                found.update(zip(rows, [i.tolist() for i in ids], strict=True))
            read[beams] = found
        for i, prompt in enumerate(prompts_of(model)):
            image = prompted.images()[prompted.OWNER[i, 0]]
            greedy, best = (oracle.likelihood(image, prompt, read[beams][i]) for beams in (1, 6))
            assert len(read[6][i]) == 4
            assert best >= greedy - CLOSE


def test_captions_have_the_length_that_is_asked_for(pair: tuple[Any, Oracle]) -> None:
    """An image is captioned once, whoever shows it; a task's prompt counts."""
    model, _ = pair
    owner = torch.tensor([[2], [0], [2]])
    options = {"beams": 2, "max_length": 9, "min_length": 9, "prompt": "a photo of "}
    batch = Batch([Sample(str(i), ()) for i in range(3)], None, owner, options)
    with torch.no_grad():
        said = [s["caption"] for s in model.caption(model.encode(prompted.images()), batch)]
        alone = Batch([Sample("0", ())], None, torch.tensor([[0]]), options)
        one = model.caption(model.encode(prompted.images()[:1]), alone)[0]["caption"]
    assert said[0] == said[2]
    assert said[1] == one
    assert all(len(model.words(text)) <= 6 for text in said)


def test_samples_alone_give_what_they_give_together(pair: tuple[Any, Oracle]) -> None:
    model, _ = pair
    options = {"decoding": "generate", "beams": 3, "max_length": 5}
    with torch.no_grad():
        states = model.encode(prompted.images())
        together = model.answer(states, prompted.batch(**options))
        for i, sample in enumerate(prompted.batch().samples):
            alone = Batch([sample], None, prompted.OWNER[i : i + 1], options)
            assert model.answer(states, alone)[0] == together[i]


def test_the_task_may_bring_its_prompt(pair: tuple[Any, Oracle]) -> None:
    model, _ = pair
    with torch.no_grad():
        states = model.encode(prompted.images())
        own = prompted.batch(decoding="generate", beams=1, max_length=5, prompt="the {} is")
        assert model.answer(states, own) != model.answer(states, prompted.batch(decoding="generate", beams=1))
        with pytest.raises(UserError, match="no prompt with a place for the question"):
            model.answer(states, prompted.batch(decoding="generate", prompt="the"))


def test_structure(pair: tuple[Any, Oracle]) -> None:
    """Towers in order of data flow; the Q-Former, projections, embeddings and lm_head stay dense."""
    model, _ = pair
    structure = model.structure()
    check_structure(model.net, structure)
    names = [tower.name for tower in structure.towers]
    assert names == (["vision", "encoder", "decoder"] if "t5" in model.name else ["vision", "language"])
    assert [t.sites[0].modality for t in structure.towers] == ["vision", *["language"] * (len(names) - 1)]
    for part in ("qformer", "projection", "projector", "embed", "shared", "lm_head"):
        assert not any(f"{part}." in name.replace("self_attn.projection", "") for name in structure.matrices)
    blocks = [name for name in structure.matrices if "layer" in name or "block" in name]
    assert len(blocks) == len(structure.matrices)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cut_model_equals_a_gated_one(pair: tuple[Any, Oracle], seed: int) -> None:
    """Answers ranked and generated through caches and shared keys, with every layer of another width."""
    model, _ = pair
    batch = prompted.batch()
    found = []
    keep = random_keep(model.structure(), seed)
    for close in (close_gates, cut):
        other = deepcopy(model)
        with torch.no_grad():
            close(other.net, other.structure(), keep)
            ((logits, _),) = other.answer_outputs(batch).logits
            said = other.answer(other.encode(batch.images), prompted.batch(decoding="generate", beams=3, max_length=6))
        found.append((logits, said))
    assert torch.allclose(found[0][0], found[1][0], atol=CLOSE)
    assert found[0][1] == found[1][1]


def test_every_matrix_of_the_prunable_set_has_a_gradient(pair: tuple[Any, Oracle]) -> None:
    model, _ = pair
    for loss in (model.answer_loss(prompted.batch()), model.caption_loss(prompted.captions())):
        model.net.zero_grad(set_to_none=True)
        loss.backward()
        for name in model.structure().matrices:
            gradient = model.net.get_parameter(name).grad
            assert gradient is not None, name
            assert float(gradient.abs().max()) > 0, name
    model.net.zero_grad(set_to_none=True)


def test_captured_blocks_give_the_models_own_outputs(pair: tuple[Any, Oracle]) -> None:
    """Replayed one after another from the first block's input, every block's output is the library's own to 1e-6 of
    its scale: T5 with its position bias, Llama with grouped heads, padded prompts in one batch."""
    model, oracle = pair
    batch = prompted.batch()
    towers = model.structure().towers
    for tower in towers:
        calls = capture_all(model.net, tower.blocks, lambda: model.answer_loss(batch))
        stock = _library_outputs(oracle, model, [b.path for b in tower.blocks], batch)
        for number in range(len(calls[0])):
            hidden = calls[0][number].hidden
            for block, own, theirs in zip(tower.blocks, calls, stock, strict=True):
                hidden = replay(model.net, block, own[number], hidden)
                assert torch.allclose(hidden, own[number].output, atol=1e-9)
                wanted = theirs[number]
                real = wanted.abs().sum(-1) > 0
                assert torch.allclose(hidden[real], wanted[real], atol=1e-6 * float(wanted.abs().max()))


def _library_outputs(oracle: Oracle, model: Any, paths: list[str], batch: Batch) -> list[list[Tensor]]:
    """Outputs of the library's own blocks in the same loss: its parameters in the library's classes."""
    other = deepcopy(model)
    other.net = oracle.net
    found: list[list[Tensor]] = [[] for _ in paths]
    hooks = [
        oracle.net.get_submodule(path).register_forward_hook(
            lambda _, args, out, one=one: one.append(out[0] if isinstance(out, tuple) else out)
        )
        for path, one in zip(paths, found, strict=True)
    ]
    shares = _plain_states(oracle.net)
    try:
        with torch.no_grad(), shares:
            other.answer_loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _plain_states:  # noqa: N801
    """The library's attention takes no shared states: hand them on repeated, with their mask, as it expects them."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.hooks = net, list[Any]()

    def __enter__(self) -> None:
        from vlbench.nn.attend import Shared

        def plain(_: nn.Module, args: Any, kwargs: Any) -> Any:
            def turn(value: Any) -> Any:
                return value.states[value.owner] if isinstance(value, Shared) else value

            shared = next((v for v in (*args, *kwargs.values()) if isinstance(v, Shared)), None)
            kwargs = {k: turn(v) for k, v in kwargs.items()}
            if shared is not None and shared.mask is not None:
                real = shared.mask[shared.owner]
                kwargs["attention_mask"] = torch.zeros(real.shape, dtype=torch.float64).masked_fill(~real, -1e300)
            elif shared is not None and "attention_mask" in kwargs and "key_value_states" in kwargs:
                kwargs["attention_mask"] = None
            return tuple(map(turn, args)), kwargs

        for module in self.net.modules():
            if type(module).__name__ in ("T5LayerCrossAttention", "InstructBlipQFormerMultiHeadAttention"):
                self.hooks.append(module.register_forward_pre_hook(plain, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def test_calibration_counts_no_padding(pair: tuple[Any, Oracle]) -> None:
    """Statistics of a padded batch equal those of its samples one by one, tower by tower."""
    model, _ = pair
    whole = prompted.batch()
    whole = Batch([Sample(s.id, (), s.text, {"red": 1.0}) for s in whole.samples], whole.images, whole.owner)
    single = [Batch([s], whole.images[whole.owner[i]], torch.tensor([[0]])) for i, s in enumerate(whole.samples)]
    towers = [t.name for t in model.structure().towers if t.name != "vision"]  # an image is seen once or thrice
    found: list[dict[str, Tensor]] = []
    for batches in ([whole], single):
        seen: dict[str, Tensor] = {}

        def note(_: Any, statistics: Any, seen: dict[str, Tensor] = seen) -> None:
            seen.update({name: one.square_sum for name, one in statistics.items()})

        runs = [lambda b=b: model.answer_loss(b) for b in batches]
        calibrate(model.net, model.structure(), runs, note, propagate="dense")  # type: ignore[arg-type]
        found.append(seen)
    names = [m for t in model.structure().towers if t.name in towers for s in t.sites for m in s.matrices]
    for name in names:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-6), name


@every
def test_the_walk_equals_running_the_model_anew(name: str, tmp_path: Path) -> None:
    """Half of each matrix goes on the way: through the Q-Former and the projection, which are no tower, every tower
    sees those before it pruned."""
    found = []
    for walk in (one_by_one, calibrate):
        model = prompted.build(name, tmp_path)
        net, masks = model.net, dict[str, Tensor]()

        def prune(_: Any, seen: Any, net: nn.Module = net, masks: dict[str, Tensor] = masks) -> None:
            for key, one in seen.items():
                masks[key] = keep_fraction(net.get_parameter(key).detach().abs() * one.norm, 0.5, "row")
            apply_masks(net, {key: masks[key] for key in seen})

        batches = (prompted.batch(), prompted.batch())
        walk(net, model.structure(), [lambda b=b, m=model: m.answer_loss(b) for b in batches], prune)
        found.append(masks)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@every
def test_a_model_opens_from_a_folder_of_shards(name: str, tmp_path: Path) -> None:
    """As the hub stores large models: several files and an index, in half precision."""
    import json

    from safetensors.torch import save_file

    from vlbench.compression.saved import distinct_tensors

    model = prompted.build(name, tmp_path)
    tensors = {k: v.half() for k, v in distinct_tensors(model.net).items()}
    half = sorted(tensors)[: len(tensors) // 2]
    save_file({k: tensors[k] for k in half}, tmp_path / "model-00001-of-00002.safetensors")
    rest = {k: v for k, v in tensors.items() if k not in half}
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    shards = {k: f"model-0000{1 if k in half else 2}-of-00002.safetensors" for k in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    config = {**model.config, "torch_dtype": "float16"}
    if "vision_config" in config:
        config["vision_config"] = {**config["vision_config"], "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = deepcopy(model.card)
    object.__setattr__(card, "image", type(card.image)(size=16))
    other = type(model).open(card, tmp_path)
    for key, value in model.net.state_dict().items():
        assert torch.equal(other.net.state_dict()[key], value.half().float() if value.is_floating_point() else value)
    assert other.net.training is False
    if name.endswith("t5"):  # FlanT5's words go in and out by different matrices
        language = other.net.language_model
        assert torch.equal(language.encoder.embed_tokens.weight, language.decoder.embed_tokens.weight)
        assert not torch.equal(language.lm_head.weight, language.shared.weight)


@every
def test_saved_models_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    """Cut and reloaded from the folder alone."""
    from vlbench.compression.cut import Cut
    from vlbench.compression.saved import load_model, save_model
    from vlbench.compression.state import Compression

    (tmp_path / "a").mkdir()
    model = prompted.build(name, tmp_path / "a")
    model.net.float()
    keep = random_keep(model.structure(), 1)
    made = Cut.of(model.structure(), keep)
    cut(model.net, model.structure(), keep)
    save_model(tmp_path / "b", model, Compression(cuts=[made], pattern="structured"))
    other, _ = load_model(tmp_path / "b")
    batch = prompted.batch(decoding="generate", beams=2, max_length=5)
    batch.images = batch.images.float()
    with torch.no_grad():
        ((a, _),), ((b, _),) = model.answer_outputs(batch).logits, other.answer_outputs(batch).logits
        assert torch.equal(a, b)
        assert model.answer(model.encode(batch.images), batch) == other.answer(other.encode(batch.images), batch)


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    title, module = prompted.family("blip2-t5")
    cls = getattr(module, title)
    with pytest.raises(UserError, match="has no tokenizer: put"):
        cls.build(cls.cards[0], prompted.configuration("blip2-t5"), tmp_path)
    config = prompted.configuration("blip2-t5")
    config["text_config"]["vocab_size"] = 10
    with pytest.raises(UserError, match="words, and the model 10"):
        cls.build(cls.cards[0], config, prompted.tokenizer_into(tmp_path))


@pytest.mark.parametrize(
    ("name", "total", "sizes"),
    [
        ("blip2-flan-t5-xl", 3.943e9, {"vision": 984.0e6, "encoder+decoder": 2717.9e6}),
        ("instructblip-vicuna-7b", 7.913e9, {"vision": 984.0e6, "language": 6476.0e6}),
    ],
)
def test_architectures_have_the_published_sizes(name: str, total: float, sizes: dict[str, float]) -> None:
    """Counted from the cards alone. FlanT5's lm_head (65.8 M) is its own: with it tied there are 3.877 B."""
    from vlbench.cost.architecture import with_blank
    from vlbench.plugins.table import table

    def count(model: Any) -> tuple[int, dict[str, int]]:
        return sum(p.numel() for p in model.net.parameters()), model.structure().tower_sizes()

    found, towers = with_blank(table("models").get(name), count)
    assert found == pytest.approx(total, rel=2e-3)
    for key, size in sizes.items():
        assert sum(towers[part] for part in key.split("+")) == pytest.approx(size, rel=1e-3)


# Folders -----------------------------------------------------------------------------------------------------------


FOLDERS = [
    (None, "has no config.json: put that of the checkpoint there"),
    ('{"a', r"config.json cannot be read \(.*\): put that of the checkpoint there"),
    ("[]", "config.json is no model's configuration"),
    ('{"model_type": "clip"}', "is of a model of type 'clip', and this card's are of type "),
    ('{"vision_config": {"hidden_size": 10, "num_attention_heads": 3}}', "describes no .* that transformers can build"),
    ('{"text_config": {"model_type": "nonsense"}}', "describes no .* that transformers can build"),
]


@pytest.mark.parametrize(("text", "sentence"), FOLDERS)
@pytest.mark.parametrize("name", ["blip2-t5", "instructblip-llama", "llava-llama"])
def test_a_folder_without_its_configuration_is_told(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    model = prompted.build(name, tmp_path)
    known = {key: torch.zeros(1) for key in ("query_tokens", "model.multi_modal_projector.linear_1.weight")}
    save_file(known, tmp_path / "model.safetensors")
    (tmp_path / "chat_template.jinja").write_text(
        "<image>{% for part in messages[0]['content'] %}{{ part.get('text', '') }}{% endfor %}"
    )
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        type(model).open(model.card, tmp_path)


def test_a_head_that_is_not_tied_stays_apart_when_a_folder_is_opened() -> None:
    """Against the file: FlanT5's lm_head is another matrix than its word embeddings, though the library ties them."""
    model = minis.opened("blip2-mini")
    stored = read_weights(minis.MINI / "blip2-mini")
    language = model.net.language_model
    assert language.lm_head.weight is not language.shared.weight
    assert torch.equal(language.lm_head.weight, stored["language_model.lm_head.weight"].to(language.lm_head.weight))
    assert torch.equal(language.shared.weight, stored["language_model.shared.weight"].to(language.shared.weight))
