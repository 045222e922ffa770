"""BLIP (Li et al. 2022, arXiv 2201.12086) on transformers: image-text retrieval, contrastive and by matching."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForImageTextRetrieval

from vlbench.capability import Batch, Matcher, Outputs, Pairs, Prediction, Views, both_ways, embedded, in_order
from vlbench.model import family
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Structure

from ._blip import Blip, Config, blip_config
from ._blip_text import by_length, clean_caption

TEMPERATURE = 0.07  # at the start, where a checkpoint has none
MAX_TEXT = 35  # tokens
MAX_WORDS = 30
ROWS = 2048  # pairs scored in one pass
IMAGES = 8  # whose keys and values are held at a time: 42 MB each in BLIP-base


@family("blip_retrieval.json")
class BlipRetrieval(Blip, Matcher):
    """encode: the ViT. embed: [CLS] of the image and of the text alone. match: the text with the image in view."""

    reranks: ClassVar[bool] = True
    _known: tuple[tuple[str, ...], list[list[int]]] | None = None

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = BlipForImageTextRetrieval(blip_config(config))
        net.temp = nn.Parameter(torch.tensor(TEMPERATURE))
        return net

    @classmethod
    def complete(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """transformers' files have no temperature, which is only read in training."""
        return {"temp": torch.tensor(TEMPERATURE), **weights}

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Config:
        projection = shapes.get("vision_proj.weight")
        return {"image_text_hidden_size": projection[0]} if projection else {}

    def structure(self) -> Structure:
        text = blip.text_tower(self.net, "text_encoder.encoder.layer", "text", read_by=["text_proj", "itm_head"])
        return Structure((blip.vision_tower(self.net, read_by=["vision_proj", *reads_from_others([text])]), text))

    def embed(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        texts = self.text_features([text for s in batch.samples for text in s.texts])
        return embedded(batch, self.image_features(states), texts)

    def match(self, states: Any, batch: Batch) -> Sequence[Tensor]:
        """The second logit of the matching head for each pair: ITM[1], to which the ranking adds the similarity."""
        gallery = self.gallery_ids(batch.options["gallery"])
        texts = [torch.as_tensor(batch.options["pairs"][s.id], dtype=torch.long).tolist() for s in batch.samples]
        owner = [row for row, of in zip(batch.rows, texts, strict=True) for _ in of]
        pairs = list(zip(owner, [gallery[text] for of in texts for text in of], strict=True))
        return in_order(self._pairs(states, pairs), [len(of) for of in texts], states)

    def match_outputs(self, batch: Batch) -> Outputs:
        """Contrastive loss plus matching loss, each over the batch alone."""
        states, owner, ids, mask = self._trained(batch)
        pairs = self._pairs_of(states, owner, ids, mask)
        same = owner[:, None] == owner
        similarity = pairs.images @ pairs.texts.t() / self.net.temp

        def loss() -> Tensor:
            contrastive = self.contrastive_loss(similarity, same)
            return contrastive + self.matching_loss(states, owner, ids, mask, similarity, same)

        return Outputs(loss, both_ways(similarity))

    def match_momentum(self, batch: Batch, twin: Any) -> Views:
        """As BLIP's code: the twin's features are queued, and the matching loss is over the batch alone."""
        states, owner, ids, mask = self._trained(batch)
        pairs = self._pairs_of(states, owner, ids, mask)
        with torch.no_grad():
            of_twin = twin._pairs_of(twin.encode(batch.images), owner, ids, mask)
        similarity = pairs.images @ pairs.texts.t() / self.net.temp
        rest = self.matching_loss(states, owner, ids, mask, similarity, owner[:, None] == owner)
        return Views(pairs, of_twin, of_twin, 1 / self.net.temp, rest)

    def _trained(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """States of the images, the row of each sample's, token ids and mask of the captions; the temperature is
        brought back to its range."""
        states = self.encode(batch.images)
        with torch.no_grad():
            self.net.temp.clamp_(0.001, 0.5)
        ids, mask = self.padded(self.text_ids([s.texts[0] for s in batch.samples]))
        return states, batch.owner[:, 0], ids, mask

    def _pairs_of(self, states: Tensor, owner: Tensor, ids: Tensor, mask: Tensor) -> Pairs:
        out = self.net.text_encoder(input_ids=ids, attention_mask=mask, use_cache=False)
        text = F.normalize(self.net.text_proj(out.last_hidden_state[:, 0]), dim=-1)
        return Pairs(self.image_features(states)[owner], text)

    def contrastive_loss(self, similarity: Tensor, same: Tensor) -> Tensor:
        """Mean of both directions. similarity (n, n): images by texts; same: pairs of samples that show one image,
        which share the target equally."""
        target = same.to(similarity.dtype)
        target = target / target.sum(1, keepdim=True)
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2

    def matching_loss(
        self, states: Tensor, owner: Tensor, ids: Tensor, mask: Tensor, similarity: Tensor, same: Tensor
    ) -> Tensor:
        """Cross entropy over each pair, each text with a hard negative image and each image with a hard negative text.

        The negatives are drawn in proportion to their similarity. A sample all of whose batch shows its own image
        has none.
        """
        some = (~same).any(1).nonzero()[:, 0]
        with torch.no_grad():
            weights = [s.masked_fill(same, float("-inf"))[some].softmax(1) for s in (similarity.t(), similarity)]
            image, text = (self.draw(w) if len(some) else some for w in weights)
        row = torch.cat([torch.arange(len(owner), device=owner.device), some, text])
        shown = torch.cat([owner, owner[image], owner[some]])
        logits = self.matching_logits(ids[row], mask[row], Shared(states, shown))
        target = (torch.arange(len(row), device=owner.device) < len(owner)).long()
        return F.cross_entropy(logits, target)

    def draw(self, weights: Tensor) -> Tensor:
        """(n,) a column of each row of weights (n, m), with the global random numbers, which a training loop saves."""
        return torch.multinomial(weights.float(), 1)[:, 0]

    def matching_logits(self, ids: Tensor, mask: Tensor, context: Shared) -> Tensor:
        """(R, 2) logits of texts (R, L), whose first token [ENC] takes the place of."""
        ids = torch.cat([torch.full_like(ids[:, :1], self.enc), ids[:, 1:]], 1)
        out = self.net.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=context, use_cache=False)
        logits: Tensor = self.net.itm_head(out.last_hidden_state[:, 0])
        return logits

    def image_features(self, states: Tensor) -> Tensor:
        """(I, d) of length one."""
        return F.normalize(self.net.vision_proj(states[:, 0]), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(n, d) of length one, of the texts alone."""
        order: list[int] = []
        parts: list[Tensor] = []
        for index, ids in by_length(self.text_ids(texts), ROWS):
            hidden = blip.first_states(self.net.text_encoder, ids.to(self.device))
            parts.append(F.normalize(self.net.text_proj(hidden), dim=-1).to(self.dtype))
            order += index
        return torch.cat(parts)[torch.tensor(order).argsort().to(self.device)]

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """[CLS] words [SEP] of each text."""
        return self.token_ids([clean_caption(text, MAX_WORDS) for text in texts], MAX_TEXT)

    def gallery_ids(self, gallery: Sequence[str]) -> list[list[int]]:
        """The token ids of all texts, [ENC] first. Those of the last gallery are kept: every batch has the same."""
        texts = tuple(gallery)
        if self._known is None or self._known[0] != texts:
            self._known = texts, [[self.enc, *ids[1:]] for ids in self.text_ids(texts)]
        return self._known[1]

    def _pairs(self, states: Tensor, pairs: Sequence[tuple[int, Sequence[int]]]) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, logits) of all pairs (image, token ids). A few images at a time, whose keys and values are computed
        once; of their pairs those of one length together, so that nothing is padded."""
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
        images = sorted({image for image, _ in pairs})
        for start in range(0, len(images), IMAGES):
            group = images[start : start + IMAGES]
            slot = {image: i for i, image in enumerate(group)}
            context = Shared(states[group] if len(group) < len(states) else states, torch.arange(len(group)))
            own = [i for i in order if pairs[i][0] in slot]
            for index, ids in by_length([pairs[i][1] for i in own], ROWS):
                rows = [own[i] for i in index]
                owner = torch.tensor([slot[pairs[i][0]] for i in rows])
                hidden = blip.first_states(self.net.text_encoder, ids.to(states.device), context.read_by(owner))
                yield rows, self.net.itm_head(hidden)[:, 1]
