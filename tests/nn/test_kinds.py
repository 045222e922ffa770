"""Every attention kind: our forward is the library's, and cutting a unit equals gating it to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from tests.nn import kinds
from vlbench.compression.cut import cut
from vlbench.errors import UserError
from vlbench.nn.attend import Shared
from vlbench.nn.open_clip import SelfAttention
from vlbench.structure import Site, Structure, check_structure

KINDS = {kind.name: kind for kind in kinds.KINDS}
every_kind = pytest.mark.parametrize("kind", kinds.KINDS, ids=KINDS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No grad: SDPA takes another kernel under it (1e-6 apart). One thread: tiny tensors, shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def adopted(kind: kinds.Kind) -> nn.Module:
    return kind.adopt(kind.build())


def attention_by(unit: str) -> Callable[[Site], str]:
    """Attention sites by `unit`, the others by their own."""
    return lambda site: unit if site.kind == "attention" else site.unit


def unit_choices(structure: Structure) -> list[Structure]:
    """The description with every legal unit of attention: first each site's default, then the variants."""
    others = dict.fromkeys(v.unit for site in structure.sites for v in site.variants)
    return [structure, *(structure.with_units(attention_by(unit)) for unit in others)]


def random_keep(structure: Structure, seed: int) -> dict[str, Tensor]:
    """Site -> random sorted units that stay; the first site of every round of three keeps one unit only."""
    random = torch.Generator().manual_seed(seed)
    keep = {}
    for index, site in enumerate(structure.sites):
        count = int(torch.randint(1, site.units, (), generator=random)) if (index + seed) % 3 else 1
        keep[site.name] = torch.randperm(site.units, generator=random)[:count].sort().values
    return keep


def removed(site: Site, kept: Tensor) -> Tensor:
    gone = torch.ones(site.units, dtype=torch.bool)
    gone[kept] = False
    return gone.nonzero().flatten()


def close_gates(net: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> None:
    """Multiply the gated rows (weights and biases) of the units that go by zero."""
    for site in structure.sites:
        for part in site.slices:
            if part.gated:
                rows = part.index[removed(site, keep[site.name])].flatten()
                net.get_parameter(part.param).index_fill_(part.dim, rows, 0.0)


def choice(kind: kinds.Kind, net: nn.Module, number: int) -> Structure:
    """A description belongs to its own module (head counts, rotary pairs), so each module gets its own."""
    return unit_choices(kind.structure(net))[number]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@every_kind
def test_adopted_forward_is_the_librarys(kind: kinds.Kind) -> None:
    net = kind.build().float()
    want = kind.run(net)
    got = kind.run(kind.adopt(deepcopy(net)))
    assert worst(got, want) <= 1e-6 * float(want.abs().max())


@every_kind
def test_attention_dropout_is_passed_on(kind: kinds.Kind) -> None:
    """The same seed drops the same weights; without dropout the output is another one."""
    stock = kind.build().train()
    torch.manual_seed(0)
    want = kind.run(stock)
    torch.manual_seed(0)
    assert worst(kind.run(kind.adopt(deepcopy(stock))), want) <= 1e-10
    assert worst(kind.run(stock.eval()), want) > 1e-3


@every_kind
def test_description_holds(kind: kinds.Kind) -> None:
    net = adopted(kind)
    for structure in unit_choices(kind.structure(net)):
        check_structure(net, structure)


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_cut_equals_gated_for_every_legal_unit(kind: kinds.Kind, seed: int) -> None:
    whole = adopted(kind)
    dense = kind.run(whole)
    for number in range(len(unit_choices(kind.structure(whole)))):
        gated, small = deepcopy(whole), deepcopy(whole)
        keep = random_keep(choice(kind, whole, number), seed)
        close_gates(gated, choice(kind, gated, number), keep)
        cut(small, choice(kind, small, number), keep)
        want = kind.run(gated)
        assert worst(kind.run(small), want) <= 1e-10
        assert worst(want, dense) > 1e-3  # the units that went did something


@every_kind
def test_each_site_alone(kind: kinds.Kind) -> None:
    """One site, one unit left: no site's error can hide behind another's, and each one reaches the output."""
    whole = adopted(kind)
    dense = kind.run(whole)
    for number in range(len(unit_choices(kind.structure(whole)))):
        for index, site in enumerate(choice(kind, whole, number).sites):
            everything = {s.name: torch.arange(s.units) for s in choice(kind, whole, number).sites}
            keep = everything | {site.name: torch.tensor([index % site.units])}
            gated, small = deepcopy(whole), deepcopy(whole)
            close_gates(gated, choice(kind, gated, number), keep)
            cut(small, choice(kind, small, number), keep)
            want = kind.run(gated)
            assert worst(kind.run(small), want) <= 1e-10, site.name
            assert worst(want, dense) > 1e-6, site.name


@every_kind
def test_predicted_parameters_are_the_counted(kind: kinds.Kind) -> None:
    whole = adopted(kind)
    for number in range(len(unit_choices(kind.structure(whole)))):
        small = deepcopy(whole)
        structure = choice(kind, small, number)
        keep = random_keep(structure, 1)
        cut(small, structure, keep)
        predicted = sum(len(removed(s, keep[s.name])) * s.parameters_per_unit for s in structure.sites)
        assert count(whole) - count(small) == predicted > 0


@every_kind
def test_a_cut_model_describes_itself_and_is_cut_again(kind: kinds.Kind) -> None:
    whole = adopted(kind)
    for number in range(len(unit_choices(kind.structure(whole)))):
        small, at_once = deepcopy(whole), deepcopy(whole)
        keep = random_keep(choice(kind, small, number), 2)
        cut(small, choice(kind, small, number), keep)
        again = choice(kind, small, number)
        check_structure(small, again)
        assert {s.name: s.units for s in again.sites} == {name: len(kept) for name, kept in keep.items()}
        # The last units that are left: the first ones would not show an index that forgot the first cut.
        later = {s.name: torch.arange(s.units)[-max(1, s.units // 2) :] for s in again.sites}
        gated = deepcopy(small)
        close_gates(gated, choice(kind, gated, number), later)
        cut(small, again, later)
        assert worst(kind.run(small), kind.run(gated)) <= 1e-10
        cut(at_once, choice(kind, at_once, number), {n: kept[later[n]] for n, kept in keep.items()})
        assert torch.equal(kind.run(small), kind.run(at_once))


def test_a_model_that_has_gradients_is_cut_and_trained_on() -> None:
    """A gradient of the old shape would meet the new one in the next backward pass."""
    kind = next(kind for kind in kinds.KINDS if kind.name == "deit")
    net = adopted(kind)
    with torch.enable_grad():
        kind.run(net).sum().backward()
    cut(net, kind.structure(net), random_keep(kind.structure(net), 4))
    with torch.enable_grad():
        kind.run(net).sum().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in net.parameters())


@every_kind
def test_one_unit_after_another(kind: kinds.Kind) -> None:
    """First narrower heads, then fewer of them: the two kinds of cut compose."""
    small = adopted(kind)
    for number in range(len(unit_choices(kind.structure(small)))):
        structure = choice(kind, small, number)
        keep = {s.name: torch.arange(s.units)[1:] for s in structure.sites}
        gated = deepcopy(small)
        close_gates(gated, choice(kind, gated, number), keep)
        cut(small, structure, keep)
        assert worst(kind.run(small), kind.run(gated)) <= 1e-10


@every_kind
def test_reload_from_kept_units(kind: kinds.Kind) -> None:
    """A saved model is its kept units and its parameters: build, adopt, cut, load strictly."""
    for number in range(len(unit_choices(kind.structure(adopted(kind))))):
        small, fresh = adopted(kind), adopted(kind)
        keep = random_keep(choice(kind, small, number), 3)
        cut(small, choice(kind, small, number), keep)
        kinds.ready(fresh, seed=9)
        cut(fresh, choice(kind, fresh, number), keep)
        assert not torch.equal(kind.run(fresh), kind.run(small))
        fresh.load_state_dict(small.state_dict(), strict=True)
        assert torch.equal(kind.run(fresh), kind.run(small))


@every_kind
def test_gradients_reach_every_site(kind: kinds.Kind) -> None:
    net = adopted(kind)
    with torch.enable_grad():
        kind.run(net).square().sum().backward()
    for name in kind.structure(net).matrices:
        grad = net.get_parameter(name).grad
        assert grad is not None, name
        assert float(grad.abs().max()) > 0, name


@pytest.mark.parametrize(
    ("name", "unit", "reason"),
    [
        ("t5", "head", "block 0 makes the position bias"),
        ("llama", "dim", "turns dimensions i and i \\+ d/2 together"),
        ("deit_qk_norm", "dim", "QK-norm runs over the width"),
    ],
)
def test_illegal_units_are_refused_with_the_reason(name: str, unit: str, reason: str) -> None:
    structure = KINDS[name].structure(adopted(KINDS[name]))
    with pytest.raises(UserError, match=reason):
        structure.with_units(attention_by(unit))


def pruned_pair(kind: kinds.Kind, number: int) -> tuple[nn.Module, nn.Module]:
    """The same model gated and cut."""
    gated, small = adopted(kind), adopted(kind)
    structure = choice(kind, small, number)
    keep = {s.name: torch.arange(s.units)[s.units // 2 :] for s in structure.sites}
    close_gates(gated, choice(kind, gated, number), keep)
    cut(small, structure, keep)
    return gated, small


def generated(net: nn.Module, length: int, **options: object) -> tuple[Tensor, Tensor]:
    """Tokens, and the scores of every step: equal tokens alone could hide a small error."""
    out = net.generate(
        kinds.tokens(2, length), max_new_tokens=8, do_sample=False, return_dict_in_generate=True,
        output_logits=True, **options,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits)


def assert_generates_alike(one: nn.Module, other: nn.Module, **options: object) -> None:
    tokens, scores = generated(one, 6, **options)
    same_tokens, same_scores = generated(other, 6, **options)
    assert torch.equal(tokens, same_tokens)
    assert worst(scores, same_scores) <= 1e-10


GENERATORS = [("llama", 0), ("llama", 1), ("t5", 0), ("t5_plain", 0)]


@pytest.mark.parametrize(("name", "number"), GENERATORS, ids=["rope pair", "kv group", "t5", "t5_plain"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("beams", [1, 3])
def test_gated_and_cut_generate_alike(name: str, number: int, cache: str, beams: int) -> None:
    gated, small = pruned_pair(KINDS[name], number)
    visible = kinds.mask(6, 4, left=name == "llama")
    assert_generates_alike(gated, small, attention_mask=visible, num_beams=beams, cache_implementation=cache)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_adopted_models_generate_what_the_library_does(name: str, cache: str, padded: bool) -> None:
    kind = KINDS[name]
    stock = kind.build()
    visible = kinds.mask(6, 4 if padded else 6, left=name == "llama")
    ours = kind.adopt(deepcopy(stock))
    assert_generates_alike(stock, ours, attention_mask=visible, cache_implementation=cache)


def test_llama_layers_keep_their_own_pairs() -> None:
    """Pairs follow the module: deepcopy, precision, and no key in the state dict."""
    kind = KINDS["llama"]
    net = adopted(kind)
    keys = set(kind.build().state_dict())
    structure = kind.structure(net)
    first, second = (s.name for s in structure.sites if s.kind == "attention")
    cut(net, structure, {first: torch.tensor([1, 3]), second: torch.tensor([0])})
    layers = deepcopy(net).float().model.layers
    assert [layer.self_attn.pairs.tolist() for layer in layers] == [[1, 3], [0]]
    assert set(net.state_dict()) == keys


def test_open_clip_checkpoints_load_before_and_after_the_swap() -> None:
    kind = KINDS["clip"]
    stock = kind.build()
    original = stock.state_dict()
    assert any(key.endswith("in_proj_bias") for key in original)
    want = kind.run(kind.adopt(deepcopy(stock)))
    for source in (original, kind.adopt(deepcopy(stock)).state_dict()):
        net = deepcopy(kind.adopt(kinds.ready(kind.build(), seed=9)))
        before = len(source)
        net.load_state_dict(source, strict=True)
        assert torch.equal(kind.run(net), want)
        assert len(source) == before


def test_open_clip_swap_keeps_the_parameters_and_the_mask_convention() -> None:
    random = torch.Generator().manual_seed(0)
    stock = nn.MultiheadAttention(24, 3, batch_first=True).double().eval()
    ours = SelfAttention(stock)
    assert ours.qkv.weight is stock.in_proj_weight
    x = torch.randn(2, 5, 24, generator=random, dtype=torch.float64)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    want = stock(x, x, x, need_weights=False, attn_mask=hidden)[0]
    assert worst(ours(x, x, x, need_weights=False, attn_mask=hidden)[0], want) <= 1e-12
    with pytest.raises(ValueError, match="one sequence"):
        ours(x, x.clone(), x)


def test_blip_text_padded_equals_unpadded() -> None:
    """transformers drops the padding mask of cross-attention; ours must not."""
    kind = KINDS["blip_vqa"]
    stock = kind.build()
    states = kinds.floats(stock, 1, 5, 24)
    padded = torch.cat([states, kinds.floats(stock, 1, 3, 24, seed=5)], 1)
    words = kinds.tokens(1, 4)

    def logits(net: nn.Module, encoder: Tensor, *lengths: int) -> Tensor:
        mask = kinds.mask(*lengths)[:1]
        return net.text_decoder(words, encoder_hidden_states=encoder, encoder_attention_mask=mask).logits

    ours = kind.adopt(deepcopy(stock))
    assert worst(logits(stock, padded, 5, 8), logits(stock, states, 5)) > 1e-2  # the bug is still there
    assert worst(logits(ours, padded, 5, 8), logits(ours, states, 5)) <= 1e-10


def test_t5_layer_called_without_a_bias_stays_causal() -> None:
    """Only block 0 makes a bias; another block's layer called alone has none, and still sees no future."""
    stock = KINDS["t5"].build()
    hidden = kinds.floats(stock, 2, 5, 24)
    want = stock.decoder.block[1].layer[0].SelfAttention(hidden)[0]
    got = KINDS["t5"].adopt(stock).decoder.block[1].layer[0].SelfAttention(hidden)[0]
    assert worst(got, want) <= 1e-12


OWNERS = {"even": [0, 0, 1, 1, 2, 2], "ragged": [0, 1, 1, 1, 2], "a state nobody reads": [0, 0, 2]}


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_shared_states_equal_gathered_ones(owners: list[int], masked: bool, beams: int) -> None:
    net = adopted(KINDS["blip_vqa"])
    states, owner = kinds.floats(net, 3, 6, 24), torch.tensor(owners)
    visible = kinds.mask(6, 3, 5) if masked else torch.ones(3, 6, dtype=torch.int64)
    rows = owner.repeat_interleave(beams)
    words = kinds.tokens(len(rows), 4)
    shared = Shared(states, owner, visible.bool() if masked else None)
    for part in (net.text_encoder, net.text_decoder.bert):
        want = part(words, encoder_hidden_states=states[rows], encoder_attention_mask=visible[rows])
        for _ in range(2):  # keys and values computed, then read from the cache
            got = part(words, encoder_hidden_states=shared)
            assert worst(got.last_hidden_state, want.last_hidden_state) <= 1e-12


def test_shared_keys_are_remembered_in_inference_only() -> None:
    """In training a second call must not end in a graph that was used up, nor in weights that have moved."""
    key, value = nn.Linear(6, 6), nn.Linear(6, 6)
    shared = Shared(torch.randn(2, 3, 6), torch.tensor([0, 1, 1]))
    with torch.enable_grad():
        for _ in range(2):
            keys, values = shared.keys_values(key, value, 2)
            (keys.sum() + values.sum()).backward()
    first, again = (shared.keys_values(key, value, 2)[0] for _ in range(2))
    assert first is again


@pytest.mark.parametrize("owners", OWNERS.values(), ids=OWNERS)
def test_qformer_and_twin_attention_share_states(owners: list[int]) -> None:
    owner = torch.tensor(owners)
    net = adopted(KINDS["instruct_qformer"])
    layer = net.encoder.layer[0].crossattention
    states, hidden = kinds.floats(net, 3, 6, 20), kinds.floats(net, len(owner), 4, 24, seed=5)
    want = layer(hidden, encoder_hidden_states=states[owner])
    assert worst(layer(hidden, encoder_hidden_states=Shared(states, owner)), want) <= 1e-12

    twin = adopted(KINDS["blip_nlvr"])
    left, right = kinds.floats(twin, 3, 6, 24), kinds.floats(twin, 3, 6, 24, seed=6)
    words = kinds.tokens(len(owner), 4)
    want = twin(words, encoder_hidden_states=torch.cat([left[owner], right[owner]], 1)).last_hidden_state
    both = (Shared(left, owner), Shared(right, owner))
    assert worst(twin(words, encoder_hidden_states=both).last_hidden_state, want) <= 1e-12
