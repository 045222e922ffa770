"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) on transformers: CLIP ViT-L/14@336 and Vicuna, by prompt.

The image tokens are those after the last vision block but one: the last block and the norm after it are never read.
They are not computed, and not in the prunable set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from vlbench.errors import UserError
from vlbench.model import Card, family
from vlbench.nn import clip_vision, llama
from vlbench.nn.stock import Stock
from vlbench.structure import Structure
from vlbench.tensors.reading import fill, read_weights, refuse_others

from ._chat import TEMPLATES, template_in
from ._language import Causal, Language
from ._layout import LLAVA, renamed
from ._prompted import Config, Prompted, constructed, of_library, read_kind, unfilled
from ._tokenizer import read_tokenizer

IMAGE = "<image>"
SHORT = "\nAnswer the question using a single word or phrase."
DESCRIBE = "\nProvide a one-sentence caption for the provided image."
PROMPTS = {"answer": f"USER: {IMAGE}\n{{}}{SHORT} ASSISTANT:", "caption": f"USER: {IMAGE}{DESCRIBE} ASSISTANT:"}
DROPPED = re.compile(r"position_ids$|rotary_emb\.inv_freq$")
VISION: Config = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14, "image_size": 336, "projection_dim": 768,
}  # fmt: skip


@family("llava.json")
class Llava(Prompted):
    """encode: ViT and projector, once per image. The language model reads the words before the image and the image once
    for all questions, too; then each question and its answer."""

    prompts: ClassVar[Mapping[str, str]] = {}  # of the checkpoint, see open()
    marks: ClassVar[Mapping[str, tuple[str, ...]]] = {"answer": (IMAGE, "{}"), "caption": (IMAGE,)}
    answers: ClassVar[Mapping[str, Any]] = {"beams": 1, "max_length": 16, "min_length": 1, "length_penalty": 1.0}
    captions: ClassVar[Mapping[str, Any]] = {"beams": 1, "max_length": 64, "min_length": 1}

    @classmethod
    def network(cls, config: Config) -> Any:
        """The library's module with its own attention."""
        return LlavaForConditionalGeneration(LlavaConfig.from_dict(config))

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> Llava:
        net = constructed(card, cls.network, config).eval()
        if not isinstance(net.config.vision_feature_layer, int):
            raise UserError(f"{card.name}: vision_feature_layer should be one layer; several are not supported.")
        depth = int(net.config.vision_config.num_hidden_layers)
        if not -depth - 1 <= (layer := net.config.vision_feature_layer) <= depth:
            raise UserError(f"{card.name}: vision_feature_layer is {layer}, and the vision tower has {depth} layers.")
        model = cls(card, config, llama.adopt(clip_vision.adopt(net)))
        model.tokenizer = read_tokenizer(folder, int(net.config.text_config.vocab_size) + 1)
        if IMAGE not in model.tokenizer.get_vocab():  # the word more: a mark in the prompt, which is never embedded
            model.tokenizer.add_tokens([IMAGE], special_tokens=True)
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> Llava:
        """A folder with config.json, one or more *.safetensors, the tokenizer, and a prompt template (one of TEMPLATES)
        unless config.json has `prompts`."""
        home = folder if folder.is_dir() else folder.parent
        tensors = read_weights(folder, as_stored=True)
        weights = {renamed(k, LLAVA): tensors.pop(k) for k in list(tensors) if not DROPPED.search(k)}
        refuse_others(weights, "a LLaVA", ("model.multi_modal_projector.linear_1.weight",))
        config = read_kind(home, "llava")
        if "prompts" not in config:
            config["prompts"] = prompts_of(home)
        model = unfilled(cls.build, card, config, home)
        fill(model.net, weights)
        return model

    @classmethod
    def blank(cls, card: Card, config: Config, folder: Path) -> Llava:
        return unfilled(cls.build, card, config, folder)

    @classmethod
    def architecture(cls, card: Card) -> Config:
        if not card.architecture:
            return super().architecture(card)
        text = {"model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5, "eos_token_id": 2}
        return card.sized({"vision_config": VISION, "text_config": text, "prompts": PROMPTS})

    @property
    def blocks(self) -> int:
        """Vision blocks whose output, or that of a later one, is read."""
        layer: int = self.net.config.vision_feature_layer
        whole = int(self.net.config.vision_config.num_hidden_layers)
        unread = whole - layer if layer >= 0 else -1 - layer  # stay as they are, whatever is removed of the others
        return len(self.net.model.vision_tower.encoder.layers) - unread

    @property
    def language(self) -> Language:
        return Causal(self.net.model.language_model, self.net.lm_head, self.net.config.text_config.eos_token_id)

    def stock(self) -> Stock:
        return of_library(self.net, {**clip_vision.cut_attributes(self.net), **llama.cut_attributes(self.net)})

    def structure(self) -> Structure:
        projector = "model.multi_modal_projector"
        vision = clip_vision.tower(
            self.net, "model.vision_tower.encoder.layers", self.blocks, read_by=[f"{projector}.linear_1"]
        )
        language = llama.tower(
            self.net, "model.language_model.layers", read_by=["lm_head"], written_by=[f"{projector}.linear_2"]
        )
        return Structure((vision, language))

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, patches, D) tokens for the language model."""
        states = clip_vision.states_after(self.net.model.vision_tower, images, self.blocks)
        if self.net.config.vision_feature_select_strategy == "default":  # the patches, without the class token
            states = states[:, 1:]
        tokens: Tensor = self.net.model.multi_modal_projector(states)
        return tokens

    def shown(self, states: Any, owner: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The words before the image stand before its tokens: they are the same in every prompt."""
        before = self._divided(prompts[0])[0]
        if not before:
            return states, owner
        words = self.language.embed(torch.tensor([before], device=states.device)).to(states.dtype)
        return torch.cat([words.expand(len(states), -1, -1), states], 1), owner

    def prompt_ids(self, text: str) -> list[int]:
        return self._divided(text)[1]

    def template(self, capability: str, own: str | None = None) -> str:
        """Captions begin with the words of the task's prompt, if it has any, after the model's own prompt."""
        if capability == "caption" and own is not None:
            return f"{super().template('caption')} {own.strip()}".strip()
        template = super().template(capability, own)
        if IMAGE in template:
            return template
        model = super().template(capability)  # a task's words take the place of the model's own request for few words
        return model.replace(f"{{}}{SHORT}" if f"{{}}{SHORT}" in model else "{}", template)

    def _divided(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the image."""
        ids = super().prompt_ids(prompt)
        at = ids.index(self.tokenizer.convert_tokens_to_ids(IMAGE))
        return ids[:at], ids[at + 1 :]


def prompts_of(folder: Path) -> dict[str, str]:
    """Capability -> prompt, from the template in `folder`. Raises UserError where there is none that has an image and
    text."""
    for name in TEMPLATES:
        text = template_in(folder / name)
        if text:
            asked = {"answer": f"{{}}{SHORT}", "caption": DESCRIBE.strip()}
            return {capability: _filled(text, words, folder / name) for capability, words in asked.items()}
    raise UserError(
        f"{folder} has no prompt template, and without it nothing is known of how the model is asked: put its "
        f'{TEMPLATES[0]} or {TEMPLATES[1]} there, or "prompts" into config.json.'
    )


def _filled(template: str, words: str, file: Path) -> str:
    """The prompt of one turn with an image and the words."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(template).render(messages=[turn], add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        raise UserError(f"the prompt template in {file} cannot be filled in: {error}.") from None
    if IMAGE not in text or words not in text:
        raise UserError(f"the prompt template in {file} has no place for {IMAGE} and the question: put LLaVA's there.")
    return text.replace("<s>", "").strip()  # the tokenizer begins with it
