"""A block's masks say which tokens are real, by hand for each form; a mask that no block names is refused."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn

from tests import minis
from vlbench.calibration.padding import Padding
from vlbench.errors import RunFailed
from vlbench.nn.attend import Shared
from vlbench.structure import Block, Mask

OWN = Mask("attention_mask")
CROSS = Mask("encoder_attention_mask", of="encoder_hidden_states")
X = torch.zeros(2, 3, 4)  # (batch, tokens, width)


class Layer(nn.Module):
    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | Shared | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        return hidden


def real(x: Tensor, *masks: Mask, args: tuple[object, ...] = (), **kwargs: object) -> list[list[bool]] | None:
    seen = Padding(Layer(), Block("layers.0", (), masks=masks), args, kwargs).real(x)
    return None if seen is None else seen.tolist()


def test_pairs_of_booleans() -> None:
    """(batch, 1, queries, keys): the last token of the second row is seen by nobody, not by itself either."""
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask[1, :, :, 2] = False
    assert real(X, OWN, attention_mask=mask) == [[True] * 3, [True, True, False]]
    assert real(X, OWN, args=(X, mask)) == [[True] * 3, [True, True, False]], "by position"


@pytest.mark.parametrize("low", [-1e4, torch.finfo(torch.float32).min, float("-inf")])
def test_pairs_that_are_added(low: float) -> None:
    mask = torch.zeros(2, 1, 1, 3)
    mask[0, ..., 0] = low
    assert real(X, OWN, attention_mask=mask) == [[False, True, True], [True] * 3]


def test_pairs_of_one_sequence_hold_for_every_row() -> None:
    """open_clip's causal mask: (queries, keys). A first query that sees one token alone hides none."""
    causal = torch.full((3, 3), float("-inf")).triu(1)
    assert real(X, OWN, attention_mask=causal) is None


def test_tokens() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert real(X, Mask("attention_mask", form="tokens"), attention_mask=mask) == [[True, True, False], [True] * 3]


def test_states_of_another_tower_have_their_own_mask() -> None:
    """Inputs on the states' own memory are theirs; the stream's inputs of the same shape are not."""
    states, mask = torch.ones(2, 3, 4), torch.tensor([[[[True, False, True]]], [[[True] * 3]]])
    words = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    assert real(states, OWN, CROSS, **words) == [[True, False, True], [True] * 3]
    assert real(X, OWN, CROSS, **words) is None


def test_shared_states_say_it_themselves() -> None:
    states = torch.ones(2, 3, 4)
    mask = torch.tensor([[True, False, True], [True] * 3])
    shared = Shared(states, torch.arange(2), mask)
    assert real(states, OWN, encoder_hidden_states=shared) == [[True, False, True], [True] * 3]


def test_a_mask_that_the_block_does_not_name_is_refused() -> None:
    with pytest.raises(RunFailed, match=r"layers\.0 is called with encoder_attention_mask.*Mask\('encoder_attention"):
        real(X, OWN, encoder_attention_mask=torch.ones(2, 3))
    assert real(X, OWN, encoder_attention_mask=None) is None


@pytest.mark.parametrize("name", minis.names())
def test_every_mini_model_names_the_masks_of_its_blocks(name: str) -> None:
    """What a block's forward calls a mask is a mask that the block names: nothing is left to be refused in a run."""
    model = minis.opened(name)
    for block in (block for tower in model.structure().towers for block in tower.blocks):
        words = inspect.signature(model.net.get_submodule(block.path).forward).parameters
        named = {mask.argument for mask in block.masks}
        assert {word for word in words if "mask" in word and "head" not in word} <= named, block.path
