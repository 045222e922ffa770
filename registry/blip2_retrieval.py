"""BLIP-2's first stage (Li et al. 2023, arXiv 2301.12597) on transformers: image-text retrieval with the Q-Former."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from vlbench.capability import Batch, Matcher, Outputs, Prediction, both_ways, embedded, in_order
from vlbench.model import Card, family
from vlbench.nn import qformer
from vlbench.nn.attend import Shared
from vlbench.structure import Structure

from ._blip2 import QFORMER, QUERIES, VISION, WORDS, Blip2Folder, Config, vision_tower
from ._blip_text import by_length, clean_caption
from ._language import padded

TEMPERATURE = 0.07  # at the start of training; the checkpoints have none, as it is read in training alone
LABEL_SMOOTHING = 0.1  # of the contrastive loss
LEAST = 1e-4  # what every negative may be drawn with
MAX_TEXT = 32  # tokens
MAX_WORDS = 50
ROWS = 1024  # pairs scored in one pass
IMAGES = 8  # whose keys and values are held at a time


@family("blip2_retrieval.json")
class Blip2Retrieval(Blip2Folder, Matcher):
    """encode: the ViT. embed: the queries after the image, and [CLS] of the text alone; a text is as alike as the most
    alike query. match: queries and text together, with the image in view."""

    reranks: ClassVar[bool] = True

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = Blip2ForImageTextRetrieval(Blip2Config.from_dict(config))
        return net

    @classmethod
    def architecture(cls, card: Card) -> Config:
        return {
            "vision_config": {**VISION, "image_size": card.image.size}, "num_query_tokens": QUERIES,
            "qformer_config": {**QFORMER, "use_qformer_text_input": True}, "image_text_hidden_size": 256,
            "text_config": {"model_type": "opt"},  # there is no language model
        }  # fmt: skip

    def vocabulary(self) -> int:
        return max(WORDS, int(self.net.config.qformer_config.vocab_size))

    def structure(self) -> Structure:
        return Structure((vision_tower(self.net), qformer.tower(self.net)))

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, N, D) image tokens."""
        return self.vision(images)

    def embed(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        texts = self.text_features([text for s in batch.samples for text in s.texts])
        return embedded(batch, self.image_features(states), texts)

    def match(self, states: Any, batch: Batch) -> Sequence[Tensor]:
        """The matching head's second logit, its mean over the queries, for each pair."""
        gallery: Sequence[str] = batch.options["gallery"]
        texts = [torch.as_tensor(batch.options["pairs"][s.id], dtype=torch.long).tolist() for s in batch.samples]
        wanted = {text: number for number, text in enumerate(sorted({t for of in texts for t in of}))}
        ids = self.text_ids([gallery[text] for text in wanted])
        owner = [row for row, of in zip(batch.rows, texts, strict=True) for _ in of]
        pairs = list(zip(owner, [ids[wanted[text]] for of in texts for text in of], strict=True))
        return in_order(self._pairs(states, pairs), [len(of) for of in texts], states)

    def _pairs(self, states: Tensor, pairs: Sequence[tuple[int, Sequence[int]]]) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, logits) of all pairs (image, token ids): a few images at a time, of their pairs those of one length
        together, so that nothing is padded."""
        images = sorted({image for image, _ in pairs})
        for start in range(0, len(images), IMAGES):
            group = images[start : start + IMAGES]
            slot = {image: i for i, image in enumerate(group)}
            context = Shared(states[group] if len(group) < len(states) else states, torch.arange(len(group)))
            mine = [i for i, (image, _) in enumerate(pairs) if image in slot]
            for index, ids in by_length([pairs[i][1] for i in mine], ROWS):
                rows = [mine[i] for i in index]
                owner = torch.tensor([slot[pairs[i][0]] for i in rows])
                yield rows, self.matching_logits(ids.to(states.device), None, context.read_by(owner))[:, 1]

    def match_outputs(self, batch: Batch) -> Outputs:
        """Contrastive loss plus matching loss, each over the batch alone. (The first stage's captioning loss belongs
        to pre-training and is left out.)"""
        states, owner = self.encode(batch.images), batch.owner[:, 0]
        texts = self.text_ids([s.texts[0] for s in batch.samples])
        ids, mask = padded(texts, self.tokenizer.pad_token_id, self.device)
        text = F.normalize(self.net.text_projection(self.qformer_states(ids, mask)[:, 0]), dim=-1)
        image = self.image_features(states)[owner]
        same = owner[:, None] == owner
        similarity = torch.einsum("nqd,md->nmq", image, text).amax(2) / TEMPERATURE

        def loss() -> Tensor:
            target = same.to(similarity.dtype) / same.sum(1, keepdim=True)
            losses = [F.cross_entropy(s, target, label_smoothing=LABEL_SMOOTHING) for s in (similarity, similarity.t())]
            return (losses[0] + losses[1]) / 2 + self.matching_loss(states, owner, ids, mask, similarity, same)

        return Outputs(loss, both_ways(similarity))

    def matching_loss(
        self, states: Tensor, owner: Tensor, ids: Tensor, mask: Tensor | None, similarity: Tensor, same: Tensor
    ) -> Tensor:
        """Cross entropy over each pair, each text with a hard negative image and each image with a hard negative text,
        drawn in proportion to their similarity. A sample all of whose batch shows its own image has none."""
        some = (~same).any(1).nonzero()[:, 0]
        with torch.no_grad():
            weights = [
                (s.softmax(1) + LEAST).masked_fill(same, 0.0)[some].float() for s in (similarity.t(), similarity)
            ]
            image, text = (torch.multinomial(w, 1)[:, 0] if len(some) else some for w in weights)
        row = torch.cat([torch.arange(len(owner), device=owner.device), some, text])
        shown = torch.cat([owner, owner[image], owner[some]])
        logits = self.matching_logits(ids[row], None if mask is None else mask[row], Shared(states, shown))
        return F.cross_entropy(logits, (torch.arange(len(row), device=owner.device) < len(owner)).long())

    def matching_logits(self, ids: Tensor, mask: Tensor | None, context: Shared) -> Tensor:
        """(R, 2) logits of texts (R, L) with the images of `context`."""
        return self.net.itm_head(self.qformer_states(ids, mask, context)).mean(1)  # type: ignore[no-any-return]

    def qformer_states(self, ids: Tensor, mask: Tensor | None, context: Shared | None = None) -> Tensor:
        """(R, L, D) states of texts alone; with `context` (R, queries, D), those of the queries beside the texts."""
        queries = None if context is None else self.queries(len(ids))
        count = 0 if queries is None else queries.shape[1]
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(ids), count), mask], 1)[:, None, None, :].bool()
        net = self.net.qformer
        hidden = net.dropout(net.layernorm(self.net.embeddings(input_ids=ids, query_embeds=queries)))
        for layer in net.encoder.layer:
            hidden = layer(hidden, mask, context, query_length=count)
        states: Tensor = hidden[:, :count] if count else hidden
        return states

    def image_features(self, states: Tensor) -> Tensor:
        """(I, queries, d) of length one each."""
        out = self.net.qformer(query_embeds=self.queries(len(states)), encoder_hidden_states=states)
        return F.normalize(self.net.vision_projection(out.last_hidden_state), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(n, d) of length one, of the texts alone."""
        features = torch.empty(len(texts), self.net.text_projection.out_features, device=self.device, dtype=self.dtype)
        for index, ids in by_length(self.text_ids(texts), ROWS):
            hidden = self.qformer_states(ids.to(self.device), None)[:, 0]
            features[index] = F.normalize(self.net.text_projection(hidden), dim=-1).to(features.dtype)
        return features

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """[CLS] words [SEP] of each text."""
        cleaned = [clean_caption(text, MAX_WORDS) for text in texts]
        tokens: list[list[int]] = self.tokenizer(cleaned, truncation=True, max_length=MAX_TEXT).input_ids
        return tokens
