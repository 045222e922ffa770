"""A vision tower, a projector and a language model of transformers: what families of this shape share.

A family says which classes these are, how the files of its checkpoints spell their keys, and what its vision side makes
of an image; sizes are cards in a JSON file beside it. The rest is here, with the library's own forwards throughout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import transformers
from torch import Tensor

from vlbench.capability import Batch, Stage
from vlbench.errors import UserError
from vlbench.images.view import View
from vlbench.model import Card, read_config
from vlbench.nn import library
from vlbench.nn.stock import Stock
from vlbench.structure import Structure
from vlbench.tensors.locate import locate
from vlbench.tensors.reading import fill, read_weights, refuse_others

from ._chat import TURN, chat_of, ends_in, image_processor, processor_of
from ._layout import Patterns, renamed
from ._prompted import Config, Prompted, constructed, of_library, read_kind, unfilled
from ._stream import ImageState, Prefix, Stream
from ._tokenizer import read_tokenizer

P = TypeVar("P", bound="Projected")
PLACE = "<image>"  # where a task's prompt wants an image; before all words, where it does not say
SHORT = "{}\nAnswer the question using a single word or phrase."
DESCRIBE = "Provide a one-sentence caption for the provided image."


class Projected(Prompted):
    """Its configuration is transformers', and besides `prompts` (see _chat.chat_of) and `processor`, the settings of
    the library's image processor. Where a folder's config.json has them, they come before its other files.

    library: the class, and with "Config" in its place that of its configuration. model_type: in config.json. processor:
    class of the image processor. words: what the library's processor tells it besides its settings. mark: the
    tokenizer's word for an image. keys: pattern -> name, of published files and then today's. dropped: keys that no
    module has. telling: keys that every checkpoint of the family has. vision: where the blocks of its tower stand.
    decoder, head: the language model and what makes its logits. several: whether an image is read the same way beside
    others in one prompt. vision_readers: Linears outside the vision tower that take its states; text_writers: what
    makes tokens for the language model beside its word embeddings; None: the residual stream of that tower cannot be
    narrowed.
    """

    library: ClassVar[str]
    model_type: ClassVar[str]
    processor: ClassVar[str]
    words_of_processor: ClassVar[dict[str, Any]] = {}
    mark: ClassVar[str]
    keys: ClassVar[Patterns] = ()
    dropped: ClassVar[str] = r"position_ids$|rotary_emb\.inv_freq$"
    telling: ClassVar[Sequence[str]]
    vision: ClassVar[str]
    several: ClassVar[bool] = True
    decoder: ClassVar[str] = "model.language_model"
    head: ClassVar[str] = "lm_head"
    vision_readers: ClassVar[Sequence[str] | None] = None
    text_writers: ClassVar[Sequence[str] | None] = None
    prompts: ClassVar[dict[str, str]] = {"answer": SHORT, "caption": DESCRIBE}
    marks: ClassVar[dict[str, tuple[str, ...]]] = {"answer": ("{}",), "caption": ()}
    answers: ClassVar[dict[str, Any]] = {"beams": 1, "max_length": 16, "min_length": 1, "length_penalty": 1.0}
    captions: ClassVar[dict[str, Any]] = {"beams": 1, "max_length": 64, "min_length": 1}
    stream: ClassVar[type[Stream]] = Stream
    images: Any  # the library's image processor

    @classmethod
    def network(cls, config: Config) -> Any:
        """The library's module, as its configuration says."""
        library = getattr(transformers, cls.library)
        return library(library.config_class.from_dict(config))

    @classmethod
    def build(cls: type[P], card: Card, config: Config, folder: Path) -> P:
        net = constructed(card, cls.network, config).eval()
        model = cls(card, config, library.adopt(net))
        model.tokenizer = read_tokenizer(folder, int(net.get_submodule(cls.decoder).config.vocab_size) + 1)
        vocabulary = model.tokenizer.get_vocab()  # the mark is a place in the prompt, which is never embedded
        lacking = [word for word in (cls.mark, *cls.special(config)) if word not in vocabulary]
        model.tokenizer.add_tokens(lacking, special_tokens=True)
        model.images = image_processor(config["processor"], cls.processor)
        if model.end is None and {"answer", "caption"} & set(card.capabilities):
            raise UserError(f"neither the tokenizer in {folder} nor config.json says which token ends an answer.")
        return model

    @classmethod
    def open(cls: type[P], card: Card, folder: Path) -> P:
        """A folder in the published layout: config.json, one or more *.safetensors, the tokenizer, a chat template and
        the settings of the image processor."""
        home = folder if folder.is_dir() else folder.parent
        if "auto_map" in read_config(home):
            raise UserError(
                f"{home} needs the code of its repository, which is never run: use the same model in the library's own "
                f"layout, {card.checkpoint}."
            )
        weights = {
            cls.renamed(k): v for k, v in read_weights(folder, as_stored=True).items() if not re.search(cls.dropped, k)
        }
        refuse_others(weights, cls.__name__, cls.telling)
        cls._refuse_without_vision(home, weights)
        config = read_kind(home, cls.model_type)
        if "processor" not in config:
            config["processor"] = processor_of(home)
        if ends := ends_in(home, config):
            config["ends"] = ends
        if "chat" not in config.get("prompts", {}):
            tokenizer = read_tokenizer(home, 1 << 30)
            if lacking := [w for w in (cls.mark, *cls.special(config)) if w not in tokenizer.get_vocab()]:
                raise UserError(
                    f"the tokenizer in {home} has no {lacking[0]}, which stands for an image or a part of one: put the "
                    "tokenizer files of the checkpoint there."
                )
            config["prompts"] = {**config.get("prompts", {}), **cls.chat(home, tokenizer)}
        model = unfilled(cls.build, card, config, home)
        fill(model.net, weights)
        return model

    @classmethod
    def _refuse_without_vision(cls, home: Path, weights: Mapping[str, Tensor]) -> None:
        """Raise UserError where the checkpoint was saved without its vision tower, which was frozen."""
        if not any(key.startswith(f"{cls.vision}.") for key in weights):
            raise UserError(
                f"the weights in {home} have no vision tower ({cls.vision}.*): add the file of the checkpoint that has "
                "it, or take the checkpoint that was saved whole."
            )

    @classmethod
    def blank(cls: type[P], card: Card, config: Config, folder: Path) -> P:
        return unfilled(cls.build, card, config, folder)

    @classmethod
    def special(cls, config: Config) -> Sequence[str]:
        """Words besides the mark that the tokenizer must have as one token each."""
        return ()

    @classmethod
    def chat(cls, folder: Path, tokenizer: Any) -> dict[str, str]:
        """How a user's turn and an image stand in a prompt."""
        return chat_of(folder, tokenizer, cls.mark)

    @classmethod
    def architecture(cls, card: Card) -> Config:
        if card.suite == "mini":
            return read_config(locate(card.checkpoint, card.revision, {}))
        return dict(card.architecture) or super().architecture(card)

    @classmethod
    def renamed(cls, key: str) -> str:
        """Today's name of a key of the files."""
        return renamed(key, cls.keys)

    def _check_prompt(self, capability: str) -> None:
        super()._check_prompt(capability)
        prompts = self.config.get("prompts")
        for name, wanted in (("chat", TURN), ("image", self.mark)):
            if not isinstance(prompts, dict) or str(prompts.get(name)).count(wanted) != 1:
                raise UserError(
                    f'{self.card.name} has no prompt: "prompts" in config.json should have "{name}", a text with '
                    f"{wanted} in it once."
                )

    @property
    def language(self) -> Stream:
        end = -1 if self.end is None else self.end
        return self.stream(self.net.get_submodule(self.decoder), self.net.get_submodule(self.head), end)

    @property
    def end(self) -> int | None:
        """The token that ends an answer. Of several that the folder names, the one that ends a turn in the prompt:
        Gemma 3 writes <end_of_turn>, never its tokenizer's <eos>. Else the tokenizer's, or the configuration's."""
        prompts = self.config.get("prompts")
        after = str(prompts.get("chat", "")).partition(TURN)[2] if isinstance(prompts, dict) else ""
        turn: list[int] = self.tokenizer(after, add_special_tokens=False).input_ids[:1]
        if turn and turn[0] in self.config.get("ends", ()):
            return turn[0]
        end: int | None = self.tokenizer.eos_token_id
        other: Any = self.net.get_submodule(self.decoder).config.eos_token_id
        return other if end is None else end

    def structure(self) -> Structure:
        """Both towers, all of their blocks."""
        vision = library.tower(self.net, self.vision, "vision", blocks=self.blocks, read_by=self.vision_readers)
        head = None if self.text_writers is None else [self.head]
        language = library.tower(
            self.net, f"{self.decoder}.layers", "language", read_by=head, written_by=self.text_writers or ()
        )
        return Structure((vision, language))

    @property
    def blocks(self) -> int | None:
        """How many vision blocks are read; None: all."""
        return None

    def stock(self) -> Stock:
        return of_library(self.net, library.cut_attributes(self.net))

    # Images ---------------------------------------------------------------------------------------------------------

    def views(self, image: Tensor) -> View:
        """The library's processor, up to the point where values are no grey levels any more."""
        processed = self.processed([image])
        pixels = processed.pop("pixel_values")
        facts = {key: torch.as_tensor(value, device="cpu") for key, value in processed.items()}
        mean, std = (
            torch.tensor(x, device="cpu").view(3, 1, 1) for x in (self.images.image_mean, self.images.image_std)
        )
        return self.viewed(pixels.to(torch.uint8), mean, std, facts)

    def processed(self, images: list[Any]) -> Any:
        """What the library's processor makes of some images, before they are normalised."""
        return self.images(
            images=images, do_rescale=False, do_normalize=False, return_tensors="pt",
            input_data_format="channels_first", **self.words_of_processor,
        )  # fmt: skip

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: as the processor gives them for one image."""
        return View(pixels, mean, std, facts)

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        """All views -> a record for each image; here of tiles (T, 3, S, S) that all become as many tokens each."""
        tokens = self.features(torch.cat([view.pixels for view in images]))
        return [ImageState(part.flatten(0, 1)) for part in tokens.split([len(view.pixels) for view in images])]

    def features(self, tiles: Tensor) -> Tensor:
        """(T, 3, S, S) -> (T, N, D) tokens for the language model."""
        tokens: Tensor = self.net.model.get_image_features(pixel_values=tiles, return_dict=True).pooler_output
        return tokens

    def stages(self) -> tuple[Stage, ...]:
        """The image tower and its projector, of tiles of one size. A family that reads a native grid calls no such
        stage, and is refused."""
        tiles = {"tiles": ("tiles", "", "", "")}
        return (Stage("features", "features", tiles, lambda model, *tensors: model.features(*tensors)),)

    # Prompts --------------------------------------------------------------------------------------------------------

    def most_images(self, capability: str) -> int | None:
        return None if self.several else 1

    def owner_of(self, batch: Batch) -> list[list[int]]:
        """The images of each sample."""
        rows: list[list[int]] = batch.owner if isinstance(batch.owner, list) else batch.owner.tolist()
        return rows

    def template(self, capability: str, own: str | None = None) -> str:
        """The whole prompt with one image. own: the task's user turn, in place of ours; of captions, its beginning."""
        if capability == "caption":
            return f"{self.turn(super().template(capability), 1)}{(own or '').strip()}"
        return self.turn(super().template(capability, own), 1)

    def turn(self, text: str, images: int) -> str:
        """A user's turn with so many images, in the checkpoint's conversation. Images stand where the text says, in
        their order, and before it where it does not say."""
        prompts = self.config["prompts"]
        shown = text.count(PLACE)
        if shown and shown != images:
            raise ValueError(f"the prompt has {shown} places for images, and the sample {images} images")
        text = text.replace(PLACE, prompts["image"]) if shown else prompts["image"] * images + text
        chat = prompts["chat"] if text.startswith(prompts["image"]) else prompts.get("words", prompts["chat"])
        prompt: str = chat.replace(TURN, text)
        return prompt

    def _questions(self, batch: Batch) -> list[str]:
        asked = super().template("answer", batch.options.get("prompt"))
        owner = self.owner_of(batch)
        texts = [asked.replace("{}", self.question(s.text)) for s in batch.samples]
        return [self.turn(text, len(images)) for text, images in zip(texts, owner, strict=True)]

    def shown(self, states: Any, owner: Any, prompts: Sequence[str]) -> tuple[list[Prefix], Tensor]:
        """The distinct beginnings of the prompts, up to the last image, and which of them each prompt goes on from."""
        numbers: dict[tuple[Any, ...], int] = {}
        prefixes: list[Prefix] = []
        rows: list[int] = []
        for row, text in zip(owner, prompts, strict=True):
            images = [int(row)] if isinstance(row, int | Tensor) else list(row)
            if len(images) > 1 and not self.several:
                raise ValueError(f"{self.card.name} reads one image a prompt here, and this sample has {len(images)}")
            *before, after = self._divided(text)
            if len(before) != len(images):
                raise ValueError(f"the prompt has {len(before)} places for images, and the sample {len(images)} images")
            key = (*map(tuple, before), *images)
            if key not in numbers:
                numbers[key] = len(prefixes)
                prefixes.append(self._prefix([states[i] for i in images], before))
            rows.append(numbers[key])
            self._refuse_too_long(prefixes[numbers[key]].end + len(after))
        return prefixes, torch.tensor(rows, device="cpu")

    def _refuse_too_long(self, length: int) -> None:
        """Raise ValueError, which is the sample's error, for a prompt that ends behind the last position that the
        language model was made for: tiles and large pictures take thousands."""
        most = getattr(self.net.get_submodule(self.decoder).config, "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(
                f"image and prompt take {length} positions, and {self.card.name} has {most}: give a smaller picture, "
                "or allow fewer pixels or tiles in the folder's processor file"
            )

    def _prefix(self, images: Sequence[ImageState], before: Sequence[Sequence[int]]) -> Prefix:
        """Words and images by turns; before: token ids in front of each image."""
        words = self.language.embed(torch.zeros(1, 0, dtype=torch.long, device=self.language.device))
        parts: list[Tensor | ImageState] = [words[0]]
        for ids, image in zip(before, self.together(images), strict=True):
            parts += [self.language.embed(torch.tensor([ids], dtype=torch.long, device=self.language.device))[0], image]
        return Prefix.of(parts, images[0].tokens.dtype if images else words.dtype)

    def together(self, images: Sequence[ImageState]) -> Sequence[ImageState]:
        """The images of one prompt, as the family reads them beside one another: here as each is read alone."""
        return images

    def prompt_ids(self, text: str) -> list[int]:
        """What comes after the last image."""
        return self._divided(text)[-1]

    def _divided(self, prompt: str) -> list[list[int]]:
        """Token ids between the images."""
        start = self.tokenizer.bos_token
        begun = bool(start) and prompt.startswith(start)  # as transformers does: a template may write it out
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=not begun).input_ids
        if len(ids) > 1 and ids[-1] == self.tokenizer.sep_token_id:  # BERT's tokenizer, which the mini models have
            ids = ids[:-1]
        mark = self.tokenizer.convert_tokens_to_ids(self.mark)
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == mark:
                parts.append([])
            else:
                parts[-1].append(token)
        return parts
