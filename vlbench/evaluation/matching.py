"""Retrieval in two passes over the images: embed everything, then re-rank the pairs that are most alike.

The pairs of both directions (the k texts most alike to each image, the k images most alike to each text) are put
together and gone through image by image: an image's keys and values are computed once for all its texts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..capability import Evaluation, Pass
from ..task import Sample
from .predictions import Line, Predictions
from .ranks import original_ranks, ranks

Matrix = NDArray[np.float32]
UNRANKED = -100.0  # the score of a pair that was not re-ranked (BLIP's itm_eval)


def matched(evaluator: Evaluation, samples: Sequence[Sample], predictions: Predictions) -> list[Line]:
    """A line for each image: the rank of its best text, and that of the image for each of its texts."""
    embeddings = predictions.beside("embeddings")
    first = evaluator.predict(EMBED, samples, embeddings, evaluator.settings)
    embeddings.finish(first)
    good = [i for i, line in enumerate(first) if line["status"] == "ok"]
    lines = list(first)
    if good:
        shown = [samples[i] for i in good]
        image, text = similarities(shown, [first[i]["prediction"] for i in good])
        pairs = predictions.beside("pairs")
        k = int(evaluator.settings.get("k_test", 0))
        if evaluator.model.reranks and k:
            image, text, failed = _reranked(evaluator, shown, image, k, pairs)
            lines = [failed.get(line["id"], line) for line in lines]
        original = evaluator.settings.get("ties") == "original"
        for i, prediction in zip(good, _predictions(shown, image, text, original=original), strict=True):
            if lines[i]["status"] == "ok":
                lines[i] = {**lines[i], "prediction": prediction}
        predictions.world.barrier("all pairs are ranked")
        pairs.discard()
    embeddings.discard()
    return lines


def similarities(samples: Sequence[Sample], found: Sequence[dict[str, str]]) -> tuple[Matrix, Matrix]:
    """(images, texts) similarities, and the same once more for the direction from texts to images."""
    counts = [len(s.texts) for s in samples]
    images = np.stack([unpack(p["image"]) for p in found])
    texts = np.concatenate([unpack(p["texts"]).reshape(n, -1) for p, n in zip(found, counts, strict=True)])
    vectors = images.reshape(len(images), -1, texts.shape[1])
    matrix = vectors[:, 0] @ texts.T
    for number in range(1, vectors.shape[1]):  # an image of several vectors is as alike as the most alike of them
        np.maximum(matrix, vectors[:, number] @ texts.T, out=matrix)
    return matrix, matrix


def candidates(similarity: Matrix, k: int) -> list[NDArray[np.int64]]:
    """For each image the texts to re-rank, ascending: its k most similar ones, and those it is among the k most
    similar images of. Among equals the lower index goes first."""
    table = torch.from_numpy(similarity)
    chosen = torch.zeros(table.shape, dtype=torch.bool)
    for block in torch.arange(len(table)).split(256):
        chosen[block] = _best(table[block], k)
    for block in torch.arange(table.shape[1]).split(1024):
        chosen[:, block] |= _best(table[:, block].T, k).T
    return [row.nonzero()[:, 0].numpy() for row in chosen]


def _best(rows: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries of each row."""
    order = rows.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, order, True)


def _reranked(
    evaluator: Evaluation, samples: Sequence[Sample], similarity: Matrix, k: int, pairs: Predictions
) -> tuple[Matrix, Matrix, dict[str, Line]]:
    """Scores in both directions, logit + similarity for the re-ranked pairs of that direction, and the lines of
    images that failed."""
    chosen = {s.id: rows for s, rows in zip(samples, candidates(similarity, k), strict=True)}
    gallery = [text for s in samples for text in s.texts]
    options = {**evaluator.settings, "gallery": gallery, "pairs": chosen}
    lines = evaluator.predict(MATCH, samples, pairs, options)
    pairs.finish(lines)
    scores = np.full(similarity.shape, UNRANKED, dtype=np.float32)
    for row, line in enumerate(lines):
        if line["status"] == "ok":
            columns = chosen[line["id"]]
            scores[row, columns] = unpack(line["prediction"]) + similarity[row, columns]
    failed = {line["id"]: line for line in lines if line["status"] != "ok"}
    return _only(scores, similarity, k, axis=1), _only(scores, similarity, k, axis=0), failed


def _only(scores: Matrix, similarity: Matrix, k: int, axis: int) -> Matrix:
    """The scores of the k most similar entries along `axis`, UNRANKED elsewhere."""
    kept = np.full_like(scores, UNRANKED)
    view, source, alike = (kept, scores, similarity) if axis == 1 else (kept.T, scores.T, similarity.T)
    for start in range(0, len(view), 256):
        rows = slice(start, start + 256)
        best = _best(torch.from_numpy(np.ascontiguousarray(alike[rows])), k).numpy()
        view[rows][best] = source[rows][best]
    return kept


def _predictions(
    samples: Sequence[Sample], image: Matrix, text: Matrix, *, original: bool = False
) -> list[dict[str, Any]]:
    """Ranks from 0, pessimistic: a wrong candidate of the same score goes before the right one. original: where
    BLIP's itm_eval has them."""
    counts = [len(s.texts) for s in samples]
    rank = original_ranks if original else ranks
    of_images, of_texts = rank(image, text, np.repeat(np.arange(len(samples)), counts))
    per_text = np.split(of_texts, np.cumsum(counts)[:-1])
    return [
        {"text_rank": int(rank), "image_ranks": [int(r) for r in row]}
        for rank, row in zip(of_images, per_text, strict=True)
    ]


def pack(value: Any) -> Any:
    """Tensors as base64 of little-endian float32. Raises ValueError for one that is not finite."""
    if isinstance(value, dict):
        return {key: pack(part) for key, part in value.items()}
    array = value.detach().float().cpu().numpy().astype("<f4")
    if not np.isfinite(array).all():
        raise ValueError("it gave a number that is not finite")
    return base64.b64encode(array.tobytes()).decode("ascii")


def unpack(text: str) -> Matrix:
    """The numbers that pack was given, in one row."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


EMBED = Pass("embed", lambda model, states, batch: model.embed(states, batch), pack)
MATCH = Pass("match", lambda model, states, batch: model.match(states, batch), pack)
