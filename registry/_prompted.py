"""What BLIP-2, InstructBLIP and LLaVA share: an image becomes tokens of a language model, which goes on from a prompt.

A prompt has {} where the question stands. Answers are ranked (the likeliest of the candidates, as BLIP ranks them) or
written by beam search; captions are written. The loss is of the answer's or caption's own tokens and its end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from vlbench.capability import SCORE, Answerer, Batch, Captioner, Outputs, Prediction, offered, unmarked
from vlbench.errors import UserError
from vlbench.model import Card, Model, read_config
from vlbench.nn.spread import place
from vlbench.nn.stock import Stock

from ._language import T5, Causal, Forced, Language, Read

Config = dict[str, Any]
N = TypeVar("N", bound=nn.Module)
B = TypeVar("B", bound=Model)
Say = Callable[[Read, Sequence[int]], list[str]]  # texts of what was read together, and the numbers of its rows


class Prompted(Model, Answerer, Captioner):
    """Its configuration is transformers', and besides `prompts`: capability -> prompt, where the class's do not fit.

    defaults: of answering by generation and of captioning, in the place of options that a task does not set; `prompt`
    is that of captions. Lengths are in tokens, with those of a task's prompt included.
    """

    answers: ClassVar[Mapping[str, Any]] = {"beams": 5, "max_length": 10, "min_length": 1, "length_penalty": -1.0}
    captions: ClassVar[Mapping[str, Any]] = {"beams": 5, "max_length": 30, "min_length": 8}
    prompts: ClassVar[Mapping[str, str]]
    # Capability -> what stands in its prompt once: {} for the question.
    marks: ClassVar[Mapping[str, tuple[str, ...]]] = {"answer": ("{}",)}
    tells_hidden: ClassVar[bool] = True
    net: Any
    tokenizer: Any

    def __init__(self, card: Card, config: Config, net: nn.Module) -> None:
        super().__init__(card, config, net)
        for capability in card.capabilities:
            self._check_prompt(capability)

    def _check_prompt(self, capability: str) -> None:
        """Raise UserError where the configuration's prompts are none, or lack what must stand in them."""
        prompts = self.config.get("prompts", {})
        text = {**self.prompts, **prompts}.get(capability) if isinstance(prompts, dict) else None
        wanted = self.marks.get(capability, ())
        if not isinstance(text, str) or any(text.count(mark) != 1 for mark in wanted):
            needs = f" with {' and '.join(wanted)} in it once" if wanted else ""
            raise UserError(
                f'{self.card.name} has no prompt for capability {capability}: "prompts" in config.json should be like '
                f'{{"{capability}": "..."}}, a text{needs}, not {prompts!r}.'
            )

    @property
    @abstractmethod
    def language(self) -> Language:
        """The language model of self.net as it is now."""

    def most_images(self, capability: str) -> int | None:
        return 1

    def owner_of(self, batch: Batch) -> Any:
        """(n,) the image of each sample: families with a place for several take them all."""
        return batch.owner[:, 0]

    def shown(self, states: Any, owner: Any, prompts: Sequence[str]) -> tuple[Any, Tensor]:
        """(P, N, D) image tokens for the language model, and which of them each prompt follows."""
        return states, owner

    def template(self, capability: str, own: str | None = None) -> str:
        """The prompt before the question is in it. own: the task's, in place of the model's."""
        template: str = {**self.prompts, **self.config.get("prompts", {})}[capability] if own is None else own
        if capability == "answer" and "{}" not in template:
            raise UserError(
                f"{self.card.name} has no prompt with a place for the question ({template!r}): write {{}} where the "
                'question goes, in prompt= of the task or as "prompts" in config.json.'
            )
        return template.strip()

    def question(self, text: str) -> str:
        """A question as the prompt holds it."""
        return text

    def answer(self, states: Any, batch: Batch) -> list[Prediction]:
        """options besides Answerer's: prompt, beams, max_length, min_length, length_penalty."""
        options = {**self.answers, **{k: v for k, v in batch.options.items() if v is not None}}
        prompts = self._questions(batch)
        if options.get("decoding", "rank") == "generate":
            said = self._said(states, self.owner_of(batch), prompts, lambda read, _: self._written(read, options, 1))
            return [{"answer": text} for text in said]
        offer = offered(batch)
        ids = [self.target_ids(text) for text in offer.texts]

        def best(read: Read, rows: Sequence[int]) -> list[str]:
            best = offer.best(self.language.rank(read, ids, offer.k), rows)
            return [offer.texts[i] for i in unmarked(best, SCORE)]

        return [{"answer": text} for text in self._said(states, self.owner_of(batch), prompts, best)]

    def caption(self, states: Any, batch: Batch) -> list[Prediction]:
        options = {"length_penalty": 1.0, **self.captions, **batch.options}
        prompt = self.template("caption", batch.options.get("prompt"))
        used, row = batch.owner[:, 0].unique(return_inverse=True)  # an image has one caption
        more = -len(self.words((batch.options.get("prompt") or "").strip()))
        captions = self._said(states, used, [prompt] * len(used), lambda read, _: self._written(read, options, more))
        return [{"caption": captions[i]} for i in row.tolist()]

    def _questions(self, batch: Batch) -> list[str]:
        template = self.template("answer", batch.options.get("prompt"))
        return [template.replace("{}", self.question(s.text)) for s in batch.samples]

    def _said(self, states: Any, owner: Any, prompts: Sequence[str], say: Say) -> list[str]:
        """What follows each prompt."""
        images, slot = self.shown(states, owner, prompts)
        texts = [""] * len(prompts)
        for rows, read in self.language.read(images, slot, [self.prompt_ids(p) for p in prompts]):
            for row, text in zip(rows, say(read, rows), strict=True):
                texts[row] = text
        return texts

    def _written(self, read: Read, options: Mapping[str, Any], more: int) -> list[str]:
        """Texts by beam search; `more`: tokens to add to the lengths, which there count one for the start."""
        ids = self.language.generate(
            read, beams=options["beams"], length_penalty=options["length_penalty"],
            max_length=max(2, options["max_length"] + more), min_length=options["min_length"] + more,
        )  # fmt: skip
        return [self.text_of(one) for one in ids]

    def answer_outputs(self, batch: Batch) -> Outputs:
        """sum over answers of weight * nll (summed over tokens), a question's mean."""
        prompts = self._questions(batch)
        pairs = [(i, text, weight) for i, s in enumerate(batch.samples) for text, weight in s.target.items()]
        targets = self._forced(batch, prompts, [text for _, text, _ in pairs], [i for i, _, _ in pairs])
        weights = torch.tensor([weight for _, _, weight in pairs], device=targets.logits.device) / len(prompts)
        share = weights[targets.text]
        return Outputs(
            lambda: (share * _nll(targets, "none")).sum(),
            [(targets.logits, share)],
            lambda: [give() for give in targets.hidden],
        )

    def caption_outputs(self, batch: Batch) -> Outputs:
        """The mean over all target tokens: of the captions and their ends."""
        prompts = [self.template("caption", batch.options.get("prompt"))] * len(batch.samples)
        targets = self._forced(batch, prompts, [s.target for s in batch.samples], list(range(len(prompts))))
        return Outputs(
            lambda: _nll(targets, "mean"),
            [(targets.logits, 1 / len(targets.logits))],
            lambda: [give() for give in targets.hidden],
        )

    def caption_terms(self, batch: Batch) -> int:
        return sum(len(self.target_ids(s.target)) for s in batch.samples)

    def _forced(self, batch: Batch, prompts: Sequence[str], texts: Sequence[str], row: Sequence[int]) -> Forced:
        images, slot = self.shown(self.encode(batch.images), self.owner_of(batch), prompts)
        ids = [self.prompt_ids(p) for p in prompts]
        return self.language.forced(images, slot, ids, [self.target_ids(t) for t in texts], row)

    def words(self, text: str) -> list[int]:
        """Token ids without the special ones."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of what is read after the image tokens, the tokenizer's special ones included: for a decoder
        alone not the end (BERT's tokenizer, which the mini models have, adds one)."""
        ids: list[int] = self.tokenizer(text).input_ids
        ended = isinstance(self.language, Causal) and len(ids) > 1 and ids[-1] == self.language.end
        return ids[:-1] if ended else ids

    def target_ids(self, text: str) -> list[int]:
        """Token ids of an answer or a caption, and the end. OPT's tokenizer tells words by the space before them."""
        spaced = getattr(self.language.net.config, "model_type", "") == "opt"
        return [*self.words(f" {text.strip()}" if spaced else text.strip()), self.language.end]

    def text_of(self, ids: Tensor) -> str:
        """The text of token ids, the spaces before punctuation gone."""
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return text.strip()

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def place(self, precision: str) -> None:
        """These may have weights in 16 bits (precision=bf16), and be split over several GPUs."""
        blocks = [self.net.get_submodule(b.path) for tower in self.structure().towers for b in tower.blocks]
        place(self.net, blocks, precision)


def _nll(targets: Forced, reduction: str) -> Tensor:
    wide = torch.promote_types(targets.logits.dtype, torch.float32)
    return F.cross_entropy(targets.logits.to(wide), targets.targets, reduction=reduction)


def language_of(model: Any) -> Language:
    """Of a T5ForConditionalGeneration, OPTForCausalLM or LlamaForCausalLM."""
    config = model.config
    if config.is_encoder_decoder:
        return T5(model, model.lm_head, config.eos_token_id)
    return Causal(model.model, model.lm_head, config.eos_token_id)


def of_library(net: Any, attention: Mapping[str, Any]) -> Stock:
    """How transformers opens a model of its own class. Only where values were cut, its loader hooks their layers."""
    loader = "values.py" if any("spread" in attributes for attributes, _ in attention.values()) else "language.py"
    names = {"class": type(net).__name__, "config": type(net.config).__name__}
    path = Path(__file__).parent / "loaders" / loader
    return Stock.of({**names, "attention": attention}, path, needs_heads=True)


def read_kind(folder: Path, model_type: str) -> Config:
    """config.json of a folder. Raises UserError where it is that of another kind of model than transformers calls
    `model_type`."""
    config = read_config(folder)
    kind = config.get("model_type", model_type)
    if kind != model_type:
        raise UserError(
            f"{folder / 'config.json'} is of a model of type {kind!r}, and this card's are of type {model_type!r}: "
            "name the card that the checkpoint is of, or give another checkpoint."
        )
    return config


def constructed(card: Card, make: Callable[[Config], N], config: Config) -> N:
    """make(config): the library's module. Raises UserError where it refuses the configuration."""
    try:
        return make(plain(config))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError,
            StrictDataclassError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UserError(f"config.json describes no {card.name} that transformers can build: {reason}.") from error


def unfilled(build: Callable[..., B], card: Card, config: Config, folder: Path) -> B:
    """build(card, config, folder): a model whose weights will be read. Nothing is drawn at random, and matrices that
    the configuration ties are one (the library ties them where it draws)."""
    with no_init_weights():
        model = build(card, config, folder)
    for module in model.net.modules():
        if isinstance(module, PreTrainedModel):
            module.tie_weights()
    return model


def plain(config: Config) -> Config:
    """A configuration without the types that its parts were saved in: the libraries would build them so."""
    kept = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    return {k: plain(v) if isinstance(v, dict) else v for k, v in kept.items()}
