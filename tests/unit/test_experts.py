"""Experts and routers against plain definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from scmoe.nn.experts import Experts, fastest
from scmoe.nn.gate import Router

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def oracle(module: Experts, x, experts, weights):
    """Every token with its own copy of its experts, in float64."""
    w1, b1, w2, b2 = (p.detach().double().requires_grad_() for p in module.parameters())
    x, weights = (v.detach().double().requires_grad_() for v in (x, weights))
    own = [p[experts] for p in (w1, b1, w2, b2)]  # (T, k, ...): a copy for every token
    hidden = F.gelu(torch.einsum("td,tkhd->tkh", x, own[0]) + own[1])
    outputs = torch.einsum("tkh,tkdh->tkd", hidden, own[2]) + own[3]
    return (outputs * weights[..., None]).sum(1), [w1, b1, w2, b2, x, weights], outputs


def assert_close(actual, expected, tolerance, largest=None):
    """Relative to the largest entry, or to a larger value that entries are differences of."""
    largest = expected.abs().max() if largest is None else largest
    assert ((actual.double() - expected).abs().max() <= tolerance * largest).item()


def assert_matches_oracle(experts, n_experts, d, backend, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    module = Experts(n_experts, d, 2 * d)
    module.backend = backend
    torch.nn.init.normal_(module.b1)
    torch.nn.init.normal_(module.b2)
    x = torch.randn(len(experts), d, requires_grad=True)
    weights = torch.rand(experts.shape, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = module(x, experts, weights)
    assert out.dtype == dtype
    expected, leaves, outputs = oracle(module, x, experts, weights)
    assert_close(out, expected, TOLERANCE[dtype])
    direction = torch.randn(out.shape)
    out.backward(direction.to(dtype))
    expected.backward(direction.to(dtype).double())
    for mine, theirs in zip([*module.parameters(), x], leaves, strict=False):
        assert mine.grad.dtype == torch.float32
        assert_close(mine.grad, theirs.grad, TOLERANCE[dtype])
    # a gate's gradient is one number, a sum over the width whose terms may cancel
    terms = (direction[:, None] * outputs).abs().sum(-1).max()
    assert_close(weights.grad, leaves[-1].grad, TOLERANCE[dtype], terms)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bf16"])
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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bf16"])
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
    module, x = Experts(6, 8, 16), torch.randn(9, 8)
    module.backend = backend
    gates, experts = torch.rand(9, 6).topk(3)
    whole = (module.each(x, experts) * gates[..., None]).sum(1)
    assert torch.allclose(whole, module(x, experts, gates), atol=1e-6)


def test_no_backend_but_the_known_ones():
    module = Experts(2, 4, 8)
    module.backend = "loop"
    with pytest.raises(ValueError, match="grouped, dense, fastmoe"):
        module(torch.randn(3, 4), torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1))


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
    expected, *_ = oracle(module.cpu(), x.cpu(), experts.cpu(), gates.cpu())
    module.cuda().backend = "fastmoe"
    assert_close(module(x, experts, gates).cpu(), expected, 1e-5)


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
    x = torch.randn(3, 2, 4, 8)
    routing = gate(x, torch.ones(3, 2, dtype=torch.bool))
    for m in range(2):
        top, index = (x[:, m] @ gate.weight[m]).topk(2, -1)
        assert torch.equal(routing.experts[:, m], index)
        assert torch.allclose(routing.weights[:, m], top.softmax(-1), atol=1e-6)


def test_modalities_with_the_same_router_number_share_its_weights():
    gate = router([0, 0]).eval()
    x = torch.randn(3, 1, 4, 8).expand(3, 2, 4, 8)
    routing = gate(x, torch.ones(3, 2, dtype=torch.bool))
    assert torch.equal(routing.experts[:, 0], routing.experts[:, 1])


def test_noise_is_added_in_training_only():
    gate, x, present = router([0]), torch.randn(3, 1, 4, 8), torch.ones(3, 1, dtype=torch.bool)
    assert not torch.equal(gate(x, present).weights, gate(x, present).weights)
    gate.eval()
    assert torch.equal(gate(x, present).weights, gate(x, present).weights)


def test_balance_loss_is_zero_for_even_use_and_large_for_a_single_expert():
    gate = router([0], top_k=1, n_experts=4, d=4).eval()
    present = torch.ones(4, 1, dtype=torch.bool)
    with torch.no_grad():
        gate.weight.copy_(torch.eye(4)[None] * 9)
    even = gate(torch.eye(4).view(4, 1, 1, 4), present).balance
    single = gate(torch.eye(4)[:1].expand(4, 4).reshape(4, 1, 1, 4), present).balance
    assert even.item() == pytest.approx(0, abs=1e-6)
    assert single.item() == pytest.approx(8, abs=1e-3)  # CV^2 = 4 for importance and for load


def test_absent_modalities_do_not_count_in_the_balance_loss():
    gate = router([0, 0]).eval()
    x = torch.randn(6, 2, 4, 8)
    present = torch.ones(6, 2, dtype=torch.bool)
    present[3:, 1] = False
    other = x.clone()
    other[3:, 1] = torch.randn(3, 4, 8)
    assert gate(x, present).balance == gate(other, present).balance
