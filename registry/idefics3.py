"""Idefics3 (Laurencon et al. 2024, arXiv 2408.12637) and SmolVLM2 (Marafioti et al. 2025, arXiv 2504.05299) on
transformers: SigLIP, a pixel shuffle with one matrix, and Llama (SmolLM2).

An image is cut into tiles, which follow one another row by row with a mark of their place before each, and the whole
image comes last. So the words of an image's marks stand among its tokens (`ImageState.words`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from vlbench.images.view import View
from vlbench.model import family

from ._projected import Projected
from ._prompted import Config
from ._stream import ImageState

FAKE, WHOLE = "<fake_token_around_image>", "<global-img>"  # around an image, and before its whole


@family("idefics3.json")
class Idefics3(Projected):
    """encode: tiles -> tokens each, among the words that the library's processor writes around them."""

    library = "Idefics3ForConditionalGeneration"
    model_type = "idefics3"
    processor = "Idefics3ImageProcessor"
    words_of_processor: ClassVar[dict[str, Any]] = {"return_row_col_info": True}
    mark = "<image>"
    telling = ("model.connector.modality_projection.proj.weight", "model.text_model.norm.weight")
    vision = "model.vision_model.encoder.layers"
    decoder = "model.text_model"

    @classmethod
    def special(cls, config: Config) -> Sequence[str]:
        sides = config["processor"]
        most = -(-int(sides["size"]["longest_edge"]) // int(sides["max_image_size"]["longest_edge"]))
        numbers = range(1, most + 1)
        return FAKE, WHOLE, *(f"<row_{row}_col_{column}>" for row in numbers for column in numbers)

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: (1, tiles, 3, S, S); rows and columns of the tiles: 0 where the image is one."""
        return View(pixels[0], mean, std, {"grid": torch.cat([facts["rows"][0], facts["cols"][0]])})

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        parts = self.features(torch.cat([view.pixels for view in images])).split([len(view.pixels) for view in images])
        return [self._among(part, *view.facts["grid"].tolist()) for part, view in zip(parts, images, strict=True)]

    def features(self, tiles: Tensor) -> Tensor:
        """Tiles are full: no patch is hidden, and no mask is asked whether it hides any."""
        tower, side = self.net.model.vision_model, int(self.net.config.vision_config.patch_size)
        sizes = len(tiles), tiles.shape[-2] // side, tiles.shape[-1] // side
        whole = torch.ones(sizes, dtype=torch.bool, device=tiles.device)
        hidden = tower.embeddings(pixel_values=tiles, patch_attention_mask=whole)
        states = tower.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        tokens: Tensor = self.net.model.connector(tower.post_layernorm(states))
        return tokens

    def _among(self, tiles: Tensor, rows: int, columns: int) -> ImageState:
        """tiles (T, N, D) at their places among the words around them."""
        text = get_image_prompt_string(
            rows, columns, tiles.shape[1], fake_token_around_image=FAKE, image_token=self.mark, global_image_token=WHOLE
        )
        ids = torch.tensor(self.words(text), dtype=torch.long, device="cpu")
        shown = ids == self.tokenizer.convert_tokens_to_ids(self.mark)
        words = self.language.embed(ids.clamp(max=self._largest).to(tiles.device)).to(tiles.dtype)
        tokens = words.masked_scatter(shown[:, None].to(tiles.device), tiles)
        return ImageState(tokens, words=ids.masked_fill(shown, -1))

    @property
    def _largest(self) -> int:
        """The last word that is embedded: the mark of an image may be one more."""
        return int(self.net.get_input_embeddings().num_embeddings) - 1
