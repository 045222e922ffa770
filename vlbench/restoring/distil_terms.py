"""What a student can be told by its teacher besides Hinton's divergence (LLAVADI, Xu et al. 2024, arXiv 2407.19409, its
published code). t, s: the teacher's and the student's; p, q their distributions; h their last hidden states; <> a
cosine; each a mean over places.

    forward     KL(p || q)          jsd     KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2
    reverse     KL(q || p)          mse     |t - s|^2 / classes
    normalised  of each place's logits before that: (x - mean) / (std + 1e-7), the deviation with n - 1
    hidden      |P(h_s) - h_t|^2 / width,  P the identity, or Linear - GELU - Linear that trains with the student
    affinity    (<h_s image, h_s answer> - <h_t image, h_t answer>)^2, of all pairs of one sample
    contrastive cross entropy of the student's cosines with the teacher's as labels (they sum to no 1), both ways,
                of the images of each sample with the answers of each

Hidden states and affinities are means over a sample's places, then over the samples; affinity one over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capability import Hidden
from ..errors import UserError

DEVIATION = 1e-7  # added to a standard deviation, as in the code
COUNTED = 1e-6  # added to a number of pairs, as in the code

UNSHOWN = "kd_affinity= compares image tokens with answer tokens of one stream, and this model has none."

Direction = Literal["forward", "reverse", "jsd", "mse"]
Places = Literal["answer", "all"]


def normalised(logits: Tensor) -> Tensor:
    """Logits (R, classes, ...), of mean 0 and deviation 1 over the classes."""
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + DEVIATION)


def divergence(
    teacher: Tensor, student: Tensor, weight: Tensor | float, temperature: float, direction: Direction = "forward"
) -> Tensor:
    """The weighted sum over places of what lies between logits (R, classes, ...). weight: (R, ...), or one number for
    all. In float32 at least."""
    wide = torch.promote_types(student.dtype, torch.float32)
    teacher, student = (x.to(wide) / temperature for x in (teacher, student))
    if direction == "mse":
        return ((teacher - student).square().mean(1) * weight).sum()
    p, q = (F.log_softmax(x, 1) for x in (teacher, student))
    if direction == "forward":
        apart = _kl(p, q)
    elif direction == "reverse":
        apart = _kl(q, p)
    else:
        middle = torch.logsumexp(torch.stack([p, q]), 0) - torch.tensor(2.0, device=p.device, dtype=wide).log()
        apart = (_kl(p, middle) + _kl(q, middle)) / 2
    return (apart * weight).sum()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of logarithms (R, classes, ...)."""
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def projector(student: int, teacher: int) -> nn.Sequential:
    """From the width of the student's states to that of the teacher's."""
    return nn.Sequential(nn.Linear(student, teacher), nn.GELU(), nn.Linear(teacher, teacher))


def states_apart(
    teacher: Sequence[Hidden],
    student: Sequence[Hidden],
    places: Places,
    project: Callable[[Tensor], Tensor] = lambda states: states,
) -> Tensor:
    """hidden: the mean over samples of the mean over their places. Samples without a place count as 0."""
    sums, rows = [], 0
    for wanted, had in zip(teacher, student, strict=True):
        projected = project(had.states)
        if projected.shape != wanted.states.shape:
            raise UserError(
                f"the student's hidden states are {had.states.shape[-1]} wide and the teacher's "
                f"{wanted.states.shape[-1]}: give kd_projector=mlp."
            )
        counted = (had.learnt if places == "answer" else had.real).to(projected.dtype)  # (n, S)
        squares = (projected - wanted.states.to(projected.dtype)).square().mean(-1) * counted
        sums.append((squares.sum(1) / counted.sum(1).clamp(min=1)).sum())
        rows += len(projected)
    return torch.stack(sums).sum() / rows


def affinities_apart(teacher: Sequence[Hidden], student: Sequence[Hidden]) -> Tensor:
    """affinity: over the pairs (image token, answer token) of one sample."""
    _refuse_unshown(student)
    sums, pairs = [], []
    for wanted, had in zip(teacher, student, strict=True):
        apart = (_cosines(had.states) - _cosines(wanted.states).to(had.states.dtype)).square()  # (n, S, S)
        among = had.image[:, :, None] & had.learnt[:, None, :]
        sums.append((apart * among).sum())
        pairs.append(among.sum())
    apart = torch.stack(sums).sum()
    return apart / (torch.stack(pairs).sum().to(apart.dtype) + COUNTED)


def _cosines(states: Tensor) -> Tensor:
    unit = F.normalize(states, dim=-1)
    return unit @ unit.transpose(-1, -2)


def contrasted_affinities(teacher: Sequence[Hidden], student: Sequence[Hidden]) -> Tensor:
    """contrastive: every sample's image with every sample's answer; each pair divided by the answer's tokens, as the
    code has it."""
    _refuse_unshown(student)
    images, answers = [], []
    for wanted, had in zip(teacher, student, strict=True):
        for s, t, learnt, image in zip(had.states, wanted.states, had.learnt, had.image, strict=True):
            images.append([F.normalize(x[image], dim=-1) for x in (s, t)])
            answers.append([F.normalize(x[learnt], dim=-1) for x in (s, t)])
    total = student[0].states.new_zeros(())
    for image in images:
        for answer in answers:
            if len(image[0]) and len(answer[0]):
                s, t = (x @ y.T for x, y in zip(image, answer, strict=True))
                both = F.cross_entropy(s, t.to(s.dtype)) + F.cross_entropy(s.T, t.T.to(s.dtype))
                total = total + both / 2 / len(answer[0])
    return total / len(images) ** 2


def _refuse_unshown(student: Sequence[Hidden]) -> None:
    if not any(bool(part.image.any()) for part in student):
        raise UserError(UNSHOWN)
