"""Experts and routers against plain definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scmoe.nn.experts import Experts, fastest
from scmoe.nn.gate import Router

ROUNDINGS = 12  # to the type computed in, between an input and any value or gradient
UNIT = {
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
}  # of rounding; bf16's conversion truncates


def oracle(module: Experts, x, experts, weights, act=F.gelu, of=lambda v: v):
    """Every token with its own copy of its experts, in float64; ``of`` is done to all numbers."""
    w1, b1, w2, b2 = (of(p.detach().double()).requires_grad_() for p in module.parameters())
    x, weights = (of(v.detach().double()).requires_grad_() for v in (x, weights))
    own = [p[experts] for p in (w1, b1, w2, b2)]  # (T, k, ...): a copy for every token
    hidden = act(torch.einsum("td,tkhd->tkh", x, own[0]) + own[1])
    outputs = torch.einsum("tkh,tkdh->tkd", hidden, own[2]) + own[3]
    return (outputs * weights[..., None]).sum(1), [w1, b1, w2, b2, x, weights]


def sizes(module: Experts, x, experts, weights, direction):
    """What errors are relative to: all sums with the absolute values of their terms.

    GELU is no steeper than 1.13 and its slope changes by no more than 0.8 a unit, so that 1.13 z +
    0.4 z² of absolute values bounds what it makes of an error, in its value and in its slope.
    """
    out, leaves = oracle(module, x, experts, weights, lambda z: 1.13 * z + 0.4 * z * z, torch.abs)
    return out, torch.autograd.grad(out, leaves, direction.abs().double())


def assert_close(actual, expected, size, dtype, terms=1):
    """Within the bound of rounding: ROUNDINGS in ``dtype``, and sums of ``terms`` in float32."""
    unit = ROUNDINGS * UNIT[dtype] + terms * UNIT[torch.float32]
    assert ((actual.double() - expected).abs() <= unit * size + 1e-12).all()


def assert_matches_oracle(experts, n_experts, d, backend, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    module = Experts(n_experts, d, 2 * d)
    module.backend = backend
    torch.nn.init.normal_(module.b1)
    torch.nn.init.normal_(module.b2)
    x = torch.randn(len(experts), d, requires_grad=True)
    weights = torch.rand(experts.shape, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = module(x[None], experts[None], weights[None])[0]
    assert out.dtype == dtype
    direction = torch.randn(out.shape)
    expected, leaves = oracle(module, x, experts, weights)
    size, at_leaves = sizes(module, x, experts, weights, direction)
    terms = 4 * d + len(experts) * experts.shape[1] + n_experts
    assert_close(out, expected, size, dtype, terms)
    out.backward(direction.to(dtype))
    expected.backward(direction.double())
    for mine, theirs, its in zip(
        [*module.parameters(), x, weights], leaves, at_leaves, strict=True
    ):
        assert mine.grad.dtype == torch.float32
        assert_close(mine.grad, theirs.grad, its, dtype, terms)


@pytest.mark.parametrize("dtype", UNIT, ids=["float32", "bf16"])
@pytest.mark.parametrize("backend", ["auto", "grouped", "dense"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_backends_equal_a_brute_force_oracle_in_values_and_gradients(backend, dtype, data):
    n_experts = data.draw(st.integers(1, 64), "experts")
    k = data.draw(st.integers(1, n_experts), "experts of a token")
    n_tokens = data.draw(st.integers(1, 24), "tokens")
    width = 4 if dtype == torch.float32 or backend != "grouped" else 8
    d = width * data.draw(st.integers(1, 4), "quarters of the width")
    seed = data.draw(st.integers(0, 2**32), "seed")
    draws = torch.rand(n_tokens, n_experts, generator=torch.Generator().manual_seed(seed))
    draws = draws[:1].expand_as(draws) if data.draw(st.booleans(), "all to the same") else draws
    assert_matches_oracle(draws.topk(k).indices, n_experts, d, backend, dtype, seed)


@pytest.mark.parametrize("dtype", UNIT, ids=["float32", "bf16"])
@pytest.mark.parametrize("backend", ["grouped", "dense"])
@pytest.mark.parametrize(
    "experts",
    [torch.full((500, 1), 3), torch.tensor([[4, 1]]).expand(30, 2), torch.tensor([[7]])],
    ids=["all tokens to one expert", "all tokens to the same two", "a single token"],
)
def test_extremes_of_routing_equal_the_oracle(experts, backend, dtype):
    """Experts without tokens are among them: their gradient is zero."""
    assert_matches_oracle(experts, 16, 8, backend, dtype)


@pytest.mark.parametrize("backend", ["grouped", "dense"])
def test_each_experts_output_summed_with_the_gates_is_the_whole(backend):
    torch.manual_seed(0)
    module, x = Experts(6, 8, 16, members=2), torch.randn(2, 9, 8)
    module.backend = backend
    gates, experts = torch.rand(2, 9, 6).topk(3)
    whole = (module.each(x, experts) * gates[..., None]).sum(2)
    assert torch.allclose(whole, module(x, experts, gates), atol=1e-6)


@pytest.mark.parametrize("backend", ["grouped", "dense"])
def test_members_in_one_product_are_those_apart(backend):
    torch.manual_seed(0)
    together, x = Experts(4, 8, 16, members=3), torch.randn(3, 11, 8)
    together.backend = backend
    gates, experts = torch.rand(3, 11, 4).topk(2)
    out = together(x, experts, gates)
    for k in range(3):
        alone = Experts(4, 8, 16)
        own = {n: p.detach().view(3, 4, *p.shape[1:])[k] for n, p in together.named_parameters()}
        alone.load_state_dict(own)
        assert torch.allclose(out[k], alone(x[k][None], experts[k][None], gates[k][None])[0],
                              atol=1e-6)  # fmt: skip


def test_no_backend_but_the_known_ones():
    module = Experts(2, 4, 8)
    module.backend = "loop"
    with pytest.raises(ValueError, match="grouped, dense, fastmoe"):
        module(torch.randn(1, 3, 4), torch.zeros(1, 3, 1, dtype=torch.long), torch.ones(1, 3, 1))


def test_narrow_bf16_rows_avoid_the_grouped_kernel():
    """Its rows start at multiples of 16 bytes."""
    assert fastest("cuda", torch.bfloat16, 10**6, 64, 1, d=12) == "dense"


def test_fastmoe_equals_the_oracle_where_it_is_installed():
    pytest.importorskip(
        "fmoe", reason="FastMoE is not installed (it needs a GPU and its own build)"
    )
    torch.manual_seed(0)
    module = Experts(4, 16, 32).cuda()
    gates, experts = torch.rand(20, 4, device="cuda").topk(2)
    x = torch.randn(20, 16, device="cuda")
    expected, _ = oracle(module.cpu(), x.cpu(), experts.cpu(), gates.cpu())
    module.cuda().backend = "fastmoe"
    out = module(x[None], experts[None], gates[None])[0].cpu()
    assert torch.allclose(out.double(), expected, atol=1e-5)


def test_fastmoe_initialisation_starts_smaller_by_the_root_of_the_output_width():
    torch.manual_seed(0)
    ours, theirs = Experts(4, 16, 32), Experts(4, 16, 32, fastmoe_init=True)

    def ratio(a, b):
        return (a.abs().max() / b.abs().max()).item()

    assert ratio(ours.w1, theirs.w1) == pytest.approx(32**0.5, rel=0.05)
    assert ratio(ours.w2, theirs.w2) == pytest.approx(16**0.5, rel=0.05)


def router(router_of, top_k=2, n_experts=5, d=8):
    torch.manual_seed(0)
    return Router(d, n_experts, top_k, router_of)


def test_gates_are_a_softmax_over_the_largest_clean_logits_when_not_training():
    gate = router([0, 1]).eval()
    x = torch.randn(1, 3, 2, 4, 8)
    routing = gate(x, torch.ones(1, 3, 2, dtype=torch.bool))
    for m in range(2):
        top, index = (x[:, :, m] @ gate.weight[0, m]).topk(2, -1)
        assert torch.equal(routing.experts[:, :, m], index)
        assert torch.allclose(routing.weights[:, :, m], top.softmax(-1), atol=1e-6)


def test_modalities_with_the_same_router_number_share_its_weights():
    gate = router([0, 0]).eval()
    x = torch.randn(1, 3, 1, 4, 8).expand(1, 3, 2, 4, 8)
    routing = gate(x, torch.ones(1, 3, 2, dtype=torch.bool))
    assert torch.equal(routing.experts[:, :, 0], routing.experts[:, :, 1])


def test_noise_is_added_in_training_only():
    gate, x, present = (
        router([0]),
        torch.randn(1, 3, 1, 4, 8),
        torch.ones(1, 3, 1, dtype=torch.bool),
    )
    assert not torch.equal(gate(x, present).weights, gate(x, present).weights)
    gate.eval()
    assert torch.equal(gate(x, present).weights, gate(x, present).weights)


def test_balance_loss_is_zero_for_even_use_and_large_for_a_single_expert():
    gate = router([0], top_k=1, n_experts=4, d=4).eval()
    present = torch.ones(1, 4, 1, dtype=torch.bool)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(4)[None, None] * 9)
    even = gate(torch.eye(4).view(1, 4, 1, 1, 4), present).balance
    single = gate(torch.eye(4)[:1].expand(4, 4).reshape(1, 4, 1, 1, 4), present).balance
    assert even.item() == pytest.approx(0, abs=1e-6)
    assert single.item() == pytest.approx(8, abs=1e-3)  # CV^2 = 4 for importance and for load


def test_absent_modalities_do_not_count_in_the_balance_loss():
    gate = router([0, 0]).eval()
    x = torch.randn(1, 6, 2, 4, 8)
    present = torch.ones(1, 6, 2, dtype=torch.bool)
    present[:, 3:, 1] = False
    other = x.clone()
    other[:, 3:, 1] = torch.randn(3, 4, 8)
    assert gate(x, present).balance == gate(other, present).balance
