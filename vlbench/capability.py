"""What a model can do: capabilities, and what goes in and comes out of them.

A capability is two things. A class that families inherit from says which methods a model has (Classifier, Matcher ...
below). An object in an open table, vlbench/capabilities/ or a file of a workspace, says what the engine does with them:

    @capability("classify", title="the class of an image")
    class Classify(Capability[Classifier]): ...

Evaluation, training and costs ask that object and never a model by a built name.

Every capability has two stages, so that shared work is done once: `encode` runs once per distinct image, and the
second stage gets the states with the `owner` of each sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .machine.device import begin_fetch
from .plugins.table import table
from .task import Sample

Json = Any


Prediction = dict[str, Json]

T = TypeVar("T")
SCORE = "the score of a candidate"


@dataclass
class Batch:
    """What the second stage gets.

    samples: n of them. images: (I, 3, H, W), normalised, the distinct images of the samples; a list of I tensors
    (3, H, W) where the card's ImageSpec keeps the aspect ratio, or of I views where the model has its own
    preprocessing (`Model.views`). owner: int64 (n, m), the rows of `images` that each sample shows, m images a sample,
    non-decreasing in its first column; where samples show different numbers of images, or none, a list of n lists.
    options: the task's evaluation settings for
    this capability (answer candidates, beams ...). sizes: (height, width) of the I files before preprocessing. maps:
    int64 (n, H, W), classes of the pixels of `images`, 255 ignored; in training batches of segmentation alone, whose
    images are crops of one size, (I, 3, size, size). host_owner: `owner` as the loop made it, on the CPU.
    """

    samples: Sequence[Sample]
    images: Any
    owner: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Sequence[tuple[int, int]] = ()
    maps: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where its images are."""
        first = self.images[0] if isinstance(self.images, list) else self.images
        device: torch.device = first.device
        return device

    host_owner: Tensor | None = None

    @property
    def owner_on_host(self) -> Tensor:
        """`owner` on the CPU, without a wait for the device where the loop has made it there."""
        return self.owner.cpu() if self.host_owner is None else self.host_owner

    @property
    def rows(self) -> list[int]:
        """The image that each sample shows first, as numbers."""
        numbers: list[int] = self.owner_on_host[:, 0].tolist()
        return numbers


class Awaited(Sequence[T]):
    """What a second stage may return in the place of a list: predictions whose numbers are still on their way.

    tensors: of the device, whose copies to the host begin at once. finish: makes the predictions, `count` of them, of
    those copies when somebody looks, which the loop does after it has given the device the next batch. It must keep
    nothing that lies on the device.
    """

    def __init__(self, count: int, tensors: Sequence[Tensor], finish: Callable[..., Sequence[T]]) -> None:
        self._count, self._fetched, self._finish = count, begin_fetch(tensors), finish
        self._found: list[T] | None = None

    def _all(self) -> list[T]:
        if self._found is None:
            self._found = list(self._finish(*self._fetched()))
        return self._found

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Awaited) else other)

    __hash__ = None  # type: ignore[assignment]


def owners(rows: Sequence[Sequence[int]], device: torch.device) -> Any:
    """Batch.owner of samples that show these images."""
    even = len({len(row) for row in rows}) == 1 and len(rows[0]) > 0
    return torch.tensor(rows, device=device) if even else [list(row) for row in rows]


class Hidden(NamedTuple):
    """States of the last layer, of n rows of one length each: what is read before the head.

    states: (n, S, width). learnt: bool (n, S), places whose next token the loss is of. real: bool (n, S), what is no
    padding. image: bool (n, S), an image's tokens, in models that have these and text in one stream.
    """

    states: Tensor
    learnt: Tensor
    real: Tensor
    image: Tensor


class Outputs(NamedTuple):
    """What one forward of a training batch gave.

    loss: computes the task's loss from it, a scalar. logits: of every place where the loss tells a class, in parts of
    one shape (R, classes, ...) each, with the weight of its places in the loss, (R, ...) or one number for all. Padding
    weighs 0 or is left out, so that the weighted sum over all places is a mean like the loss. hidden: gives the states
    that the logits were made of, where a loss asks for them; None: the family does not say.
    """

    loss: Callable[[], Tensor]
    logits: Sequence[tuple[Tensor, Tensor | float]]
    hidden: Callable[[], Sequence[Hidden]] | None = None


class Pairs(NamedTuple):
    """Features of the n samples of a training batch, each of length one: images (n, d) and texts (n, d)."""

    images: Tensor
    texts: Tensor


class Views(NamedTuple):
    """A training batch as a model and its momentum twin see it (restoring/momentum.py).

    own: the model's features. twin: the twin's, without gradient. queued: those that later batches are compared with.
    scale: what similarities are multiplied by, a scalar. rest: the loss besides the contrastive one.
    """

    own: Pairs
    twin: Pairs
    queued: Pairs
    scale: Tensor
    rest: Tensor | float = 0.0


Tensors = tuple[Tensor, ...]


def _as_given(*tensors: Tensor) -> Tensors:
    return tensors


def _itself(output: Tensor) -> Any:
    return output


@dataclass(frozen=True)
class Stage:
    """A part of a model's inference that a runtime can hold.

    name: of its file. place: the path from the model of the function that the model calls for it ("encode",
    "net.text_encoder.forward"); a runtime is put there. inputs: name -> the names of its dimensions, "" for a fixed
    one; dimensions of one name have one size. compute: (model, *tensors) -> tensor, which is traced. tensors: the
    arguments of a call at `place` -> the tensors. result: the tensor -> what the caller there expects.
    """

    name: str
    place: str
    inputs: Mapping[str, tuple[str, ...]]
    compute: Callable[..., Tensor]
    tensors: Callable[..., Tensors] = _as_given
    result: Callable[[Tensor], Any] = _itself


def marked(index: Tensor, good: Tensor) -> Tensor:
    """Indices (n, ...) with -1 in the rows that are not good (n,): the values that decided are not finite. Told with
    the indices, so that the host need not ask the device a second time."""
    return torch.where(good.view(-1, *[1] * (index.ndim - 1)), index, -1)


def unmarked(index: Tensor, what: str) -> Any:
    """Indices as numbers. Raises ValueError where a row is marked: the evaluation halves its batch until the sample at
    fault is alone."""
    if bool((index < 0).any()):
        raise ValueError(f"{what} is not finite")
    return index.tolist()


M = TypeVar("M")


@dataclass(frozen=True)
class Pass:
    """One pass of an evaluation over the samples. name: in messages. predict: (model, states, batch) -> what is
    predicted of each sample. written: makes of one prediction what JSON can say."""

    name: str
    predict: Callable[[Any, Any, Batch], Sequence[Any]]
    written: Callable[[Any], Json] = lambda prediction: prediction


class Evaluation(Protocol):
    """The running evaluation, as a capability drives it (evaluation/loop.py)."""

    model: Any
    settings: dict[str, Any]

    def predict(
        self, one: Pass, samples: Sequence[Sample], lines: Any, options: Mapping[str, Any]
    ) -> list[dict[str, Json]]:
        """The pass over every sample that `lines` lacks; all lines in the order of `samples`, without scores."""


class Stated(NamedTuple):
    """The sample that costs are stated for. trained, inferred: what passes through the model, in words. make: (model,
    samples, train) -> a batch of them."""

    trained: str
    inferred: str
    make: Callable[[Any, int, bool], Batch]


@dataclass(frozen=True)
class Captioned:
    """How calibration samples of one capability become those of another: by way of images with a caption. read: the
    caption that a training sample holds; None: it holds none. make: a training sample with the image and the caption;
    None: a caption says nothing of what this capability learns from."""

    read: Callable[[Sample], str] | None = None
    make: Callable[[Sample, str], Sample] | None = None


class Capability(ABC, Generic[M]):
    """What the engine does with models that can do one thing; M has the methods that it calls of them.

    Evaluation calls `evaluate` once, whose passes call `predict` batch by batch. Training calls `loss`, or `outputs`
    and then its loss, batch by batch, and `terms` where a batch is divided. Costs are those of `stated`, through
    `counted` (training-style, for MACs) and `timed`. An object keeps nothing from call to call.

    model: the class that a family inherits from, or None where any model with the right methods will do. captioned:
    what its training samples have to do with captions. loss_over_batch: the loss compares the samples of a batch with
    one another, so that parts of a batch have another gradient than the whole. momentum: `views` is there.
    """

    name: ClassVar[str] = ""
    model: ClassVar[type[Any] | None] = None
    loss_over_batch: ClassVar[bool] = False
    momentum: ClassVar[bool] = False
    stated: ClassVar[Stated | None] = None
    captioned: ClassVar[Captioned] = Captioned()

    @abstractmethod
    def predict(self, model: M, states: Any, batch: Batch) -> Sequence[Any]:
        """Stage two: a prediction for each sample of the batch."""

    @abstractmethod
    def outputs(self, model: M, batch: Batch) -> Outputs:
        """One forward of a training batch, from which its loss and the logits that a student distils follow."""

    def loss(self, model: M, batch: Batch) -> Tensor:
        """The task's loss, a scalar."""
        return self.outputs(model, batch).loss()

    def terms(self, model: M, batch: Batch) -> int:
        """How many terms the loss of a batch is the mean over."""
        return len(batch.samples)

    def views(self, model: M, batch: Batch, twin: M) -> Views:
        """What loss=momentum compares. twin: a model like this one, whose weights follow."""
        raise UserError(f"{type(model).__name__} has no momentum encoders: leave loss=momentum away.")

    def evaluate(self, run: Evaluation, samples: Sequence[Sample], lines: Any) -> list[dict[str, Json]]:
        """All lines of a split, without scores, in as many passes as it takes."""
        return run.predict(Pass(self.name, self.predict), samples, lines, run.settings)

    def counted(self, model: M, batch: Batch) -> Any:
        """The training-style forward pass that MACs are counted of."""
        return self.loss(model, batch)

    def timed(self, model: M, batch: Batch) -> Any:
        """What evaluation does with a batch, which times are measured of."""
        return self.predict(model, model.encode(batch.images), batch)  # type: ignore[attr-defined]

    def class_map(self, prediction: Any) -> Any:
        """(H, W) class numbers that a line's prediction holds, for pages; None where it is read as words."""
        return None

    def check_samples(self, model: M, samples: Sequence[Sample]) -> None:
        """Raise UserError where samples have answers that this model cannot give. Asked before anything is written."""

    def lacking(self, family: type[Any]) -> list[str]:
        """Methods that a family lacks for this capability."""
        wanted: frozenset[str] = getattr(self.model, "__abstractmethods__", frozenset())
        return sorted(name for name in wanted if not hasattr(family, name))


C = TypeVar("C", bound=type[Capability[Any]])


def capability(name: str, *, title: str, texts: bool = True) -> Callable[[C], C]:
    """Register a Capability. All arguments must be literals: `vlbench list capabilities` reads them. texts: whether its
    samples have texts, which recipes may ask (`vlbench.method.Context`)."""

    def register(cls: C) -> C:
        cls.name = name
        return cls

    return register


def capability_of(name: str) -> Capability[Any]:
    """The capability of that name. Raises UserError where there is none."""
    capability: Capability[Any] = table("capabilities").get(name).load()()
    return capability


class Classifier(ABC):
    """Capability `classify`: images -> logits over `classes`."""

    classes: Sequence[str]

    @abstractmethod
    def logits(self, states: Any) -> Tensor:
        """(I, classes)."""

    def classify(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """The five best class names of each sample, best first; ties go to the lower class index."""
        logits = self.logits(states).float()
        best, rows = logits.sort(dim=1, descending=True, stable=True).indices[:, :5], batch.rows
        best = marked(best, logits.isfinite().all(1))

        def named(best: Tensor) -> list[Prediction]:
            numbers = unmarked(best, "a logit")
            return [{"top5": [self.classes[i] for i in numbers[row]]} for row in rows]

        return Awaited(len(rows), [best], named)

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """All classes of the samples are classes of the head: a folder that is named otherwise (by an index, by words)
        would count as a wrong answer for every one of its images."""
        named = dict.fromkeys(s.target for s in samples if s.target is not None)
        if unknown := sorted(str(name) for name in named.keys() - set(self.classes)):
            raise UserError(
                f"{len(unknown)} of the {len(named)} classes of the data are no classes of the model (the first: "
                f"{', '.join(unknown[:5])}; the model's: {', '.join(self.classes[:5])} ...): name the class folders as "
                "the model names its classes, or give a model whose label_names are those of the folders."
            )

    def classify_outputs(self, batch: Batch) -> Outputs:
        """Cross entropy; sample.target is the class name."""
        index = {name: i for i, name in enumerate(self.classes)}
        logits = self.logits(self.encode(batch.images))[batch.owner[:, 0]]  # type: ignore[attr-defined]
        target = torch.tensor([index[s.target] for s in batch.samples], device=logits.device)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return Outputs(lambda: F.cross_entropy(exact, target), [(exact, 1 / len(exact))])

    def classify_loss(self, batch: Batch) -> Tensor:
        return self.classify_outputs(batch).loss()


class Answerer(ABC):
    """Capability `answer`: a question about an image -> a short answer.

    options: `decoding` "generate", or "rank": over the sample's own candidates where it has some, all of them scored in
    full, else over the option `candidates`, the `k_test` best by their first token; `offered` says which. `prompt` is
    the words of the user's turn around the sample's text, in the place of those that the model adds by itself.
    """

    @abstractmethod
    def answer(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """[{"answer": text}] for each sample; sample.text is the question."""

    @abstractmethod
    def answer_outputs(self, batch: Batch) -> Outputs:
        """Mean over samples of the weighted negative log likelihood; sample.target is {answer: weight}."""

    def answer_loss(self, batch: Batch) -> Tensor:
        return self.answer_outputs(batch).loss()


class Offered(NamedTuple):
    """What decoding=rank chooses among. texts: all candidates of a batch; k: how many of them are scored in full;
    allowed: bool (n, texts), those of each sample, None where every sample has all."""

    texts: list[str]
    k: int
    allowed: Tensor | None = None

    def best(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """(R,) the likeliest candidate by scores (R, texts) of the samples `rows`, or of all samples; -1 (see `marked`)
        where a score is no number. -inf is the score of what is no candidate."""
        sure = ~scores.isnan().any(1)
        if self.allowed is not None:
            mine = self.allowed if rows is None else self.allowed[torch.tensor(rows)]
            scores = scores.masked_fill(~mine.to(scores.device), float("-inf"))
        return marked(scores.argmax(1), sure)


def offered(batch: Batch) -> Offered:
    """What decoding=rank chooses among in a batch. Raises ValueError where some samples have candidates of their own
    and others none."""
    own = [sample.candidates for sample in batch.samples]
    if not any(own):
        return Offered(list(batch.options["candidates"]), int(batch.options.get("k_test", 128)))
    if not all(own):
        raise ValueError("a sample without candidates stands among others that have theirs")
    texts = list(dict.fromkeys(text for candidates in own for text in candidates))
    return Offered(texts, len(texts), torch.tensor([[text in candidates for text in texts] for candidates in own]))


class Judge(ABC):
    """Capability `judge`: is a sentence about two images true? Both columns of batch.owner count: left, right."""

    @abstractmethod
    def judge(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """[{"answer": bool}] for each sample; sample.text is the sentence."""

    @abstractmethod
    def judge_outputs(self, batch: Batch) -> Outputs:
        """Cross entropy; sample.target is a bool."""

    def judge_loss(self, batch: Batch) -> Tensor:
        return self.judge_outputs(batch).loss()


class Captioner(ABC):
    """Capability `caption`. options: `beams`; `max_length`, `min_length` in tokens, the prompt's included; `prompt`."""

    @abstractmethod
    def caption(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """[{"caption": text}] for each sample, the prompt's words left out."""

    @abstractmethod
    def caption_outputs(self, batch: Batch) -> Outputs:
        """Cross entropy of the caption's tokens, those of the prompt `options` names left out; sample.target is the
        caption."""

    @abstractmethod
    def caption_terms(self, batch: Batch) -> int:
        """How many tokens the loss is the mean over."""

    def caption_loss(self, batch: Batch) -> Tensor:
        return self.caption_outputs(batch).loss()


class Matcher(ABC):
    """Capability `match`: which text belongs to which image (retrieval), in two passes over the images.

    `embed` maps images and texts into one space, where similarity is the dot product; `match`, where the model has it
    (`reranks`), scores the pairs that `embed` finds most alike, with both in view. A sample is an image with its texts.
    """

    reranks: ClassVar[bool] = False
    hardens: ClassVar[bool] = False  # its loss takes the training option hardness=, as batch.options["hardness"]

    @abstractmethod
    def embed(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """[{"image": (d,) tensor, "texts": (len(sample.texts), d) tensor}] for each sample, of length one each. An
        image may have several vectors, (v, d): its similarity is that of the most alike."""

    def match(self, states: Any, batch: Batch) -> Sequence[Tensor]:
        """For each sample, the logits (len(pairs),) that its image and each of its candidate texts belong together. A
        ranking adds them to the similarities (BLIP: the second of its matching head's two logits).

        options: `gallery`, all texts of the split, and `pairs`, sample id -> int64 (k,) rows of the gallery.
        """
        raise NotImplementedError(f"{type(self).__name__} does not re-rank")

    @abstractmethod
    def match_outputs(self, batch: Batch) -> Outputs:
        """The contrastive loss over the batch (and that of re-ranking where there is one); sample.texts holds one
        caption, and samples that show the same image are no negatives of one another. The logits are the similarities
        of images by texts and of texts by images (`both_ways`)."""

    def match_loss(self, batch: Batch) -> Tensor:
        return self.match_outputs(batch).loss()

    def match_momentum(self, batch: Batch, twin: Any) -> Views:
        """What loss=momentum compares, where the family has it. twin: a Matcher like this one, whose weights follow."""
        raise UserError(f"{type(self).__name__} has no momentum encoders: leave loss=momentum away.")


class Segmenter(ABC):
    """Capability `segment`: a class for every pixel. Images keep their aspect ratio (ImageSpec resize="keep").

    options: `window` and `stride` in pixels of the resized image, `scales` (of the resized image) and `flip`.
    """

    @abstractmethod
    def segment(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """[{"map": text}] for each sample: class numbers at the file's own size, as vlbench.images.maps packs them."""

    @abstractmethod
    def segment_outputs(self, batch: Batch) -> Outputs:
        """Cross entropy over the pixels of batch.maps that are not 255."""

    @abstractmethod
    def segment_terms(self, batch: Batch) -> int:
        """How many pixels have a class."""

    def segment_loss(self, batch: Batch) -> Tensor:
        return self.segment_outputs(batch).loss()


def embedded(batch: Batch, images: Tensor, texts: Tensor) -> Awaited[Prediction]:
    """What `embed` returns, of vectors of the batch's images (I, ..., d) and of all its texts in order (T, d)."""
    rows, counts = batch.rows, [len(s.texts) for s in batch.samples]

    def parted(images: Tensor, texts: Tensor) -> list[Prediction]:
        return [{"image": images[r], "texts": its} for r, its in zip(rows, texts.split(counts), strict=True)]

    return Awaited(len(rows), [images, texts], parted)


def in_order(parts: Iterable[tuple[Sequence[int], Tensor]], counts: Sequence[int], like: Tensor) -> Awaited[Tensor]:
    """What `match` returns, of (places, numbers) of all pairs in any order. counts: pairs of each sample; like: of the
    device and type."""
    places: list[int] = []
    numbers: list[Tensor] = [like.new_empty(0)]
    for index, logits in parts:
        places += index
        numbers.append(logits.to(like.dtype))

    def parted(numbers: Tensor) -> list[Tensor]:
        ordered = torch.empty_like(numbers)
        ordered[places] = numbers
        return list(ordered.split(list(counts)))

    return Awaited(len(counts), [torch.cat(numbers)], parted)


def contrasted(images: Tensor, texts: Tensor, owner: Tensor, scale: Tensor | float, hardness: float = 0.0) -> Outputs:
    """Cross entropy over the batch in both directions, of unit vectors (n, d) of images and texts.

        loss = CE(s x y^T + a sg(x y^T) off the pairs), the mean of both directions

    owner: (n,) the image of each row: the texts of one image are right for one another. hardness a: negatives weigh
    exp(a x y), a weight without gradient (LLaVE, Lan et al. 2025, arXiv 2503.04812)."""
    similarity, same = images @ texts.T, owner[:, None] == owner
    logits = scale * similarity
    if hardness:
        logits = logits + hardness * similarity.detach() * ~same
    target = same.to(logits.dtype) / same.sum(1, keepdim=True)
    return Outputs(lambda: (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2, both_ways(logits))


def both_ways(similarity: Tensor) -> list[tuple[Tensor, Tensor | float]]:
    """Similarities (n, n), images by texts, as a contrastive loss reads them: the mean of both directions."""
    weight = 1 / (2 * len(similarity))
    return [(similarity, weight), (similarity.t(), weight)]
