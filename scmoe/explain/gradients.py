"""Attributions from a batch of cells at once: gradients, and what the router says by itself.

An explanation is a function `(x, present, choose)` of a batch: features `(B, F)` of all sources,
which modalities cells have, and what to explain of the answers `(B, K)`, a list of cotangents. It
gives `(S, B, len(choose), F)`: S shares whose sum is the attribution (one, but for the
expert-resolved gradient).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from captum.attr import IntegratedGradients
from mudata import MuData
from torch import Tensor

PRIMARY = "expert_gradient_x_input"
METHODS = {
    PRIMARY: "expert-resolved gradient × input",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "routing": "routing relevance",
}


def explainer(method: str, answer, mdata: MuData, background: MuData | None, budget) -> Callable:
    """Prepare one of `METHODS` for some cells: find its baseline in the background."""
    if method == "routing":
        reference = mdata if background is None else background
        return partial(_routing_relevance, answer, *_usual_gates(answer, reference))
    mean = answer.mean(background)
    if method == "integrated_gradients":
        return partial(_integrated_gradients, answer, mean, budget)
    return partial(_expert_gradient if method == PRIMARY else _gradient, answer, mean)


def own_group(out: Tensor) -> list[Tensor]:
    """Choose each cell's largest answer."""
    return [torch.eye(out.shape[1], device=out.device)[out.argmax(1)]]


def every(out: Tensor) -> list[Tensor]:
    """Choose one answer after the other."""
    return [row.expand(len(out), -1) for row in torch.eye(out.shape[1], device=out.device)]


# --- gradient × input ---


def _gradient(answer, mean, x, present, choose) -> Tensor:
    out = answer(x.requires_grad_(), present)
    grads = torch.stack([_grad(out, [x], c)[0] for c in choose(out)], 1)
    return (grads * _away(answer, mean, x, present))[None]


def _expert_gradient(answer, mean, x, present, choose) -> Tensor:
    """The same, split: linear part, no expert, every expert."""
    with captured(answer.network) as seen:
        out = answer(x.requires_grad_(), present)
    layer, shares = answer.network.layers[-1], []
    for c in choose(out):
        through = x.new_zeros(len(share_names(answer)) - 1, *x.shape)
        for stream, at_tokens in zip(seen["stream"], _grad(out, seen["mixed"], c), strict=True):
            parts = _through_experts(layer, stream, at_tokens)
            for share, at_stream in zip(through, parts, strict=True):
                share += _grad(stream, [x], at_stream)[0]
        linear = _grad(out, [x], c)[0] - sum(through)
        shares.append(torch.cat([linear[None], through]))
    return torch.stack(shares, 2) * _away(answer, mean, x, present)


def _away(answer, mean, x, present) -> Tensor:
    """Input minus mean `(B, 1, F)`, which gradients are multiplied by."""
    x = x.detach()
    return (x - answer.baseline(x, present, mean))[:, None]


def _through_experts(layer, stream: Tensor, at_tokens: Tensor) -> list[Tensor]:
    """Gradients at the residual stream `(K, B, M, P, d)`: past the experts, then through each.

    A token leaves as stream + sum over its experts e of y_e, y_e = gate_e · expert_e(stream).
    The gradient through y_e, gate and all, is the share of expert e. Experts of the first member
    come first.
    """
    leaf = stream.detach().requires_grad_()
    normed = layer.norm2(leaf)
    present = torch.ones(leaf.shape[:3], dtype=torch.bool, device=leaf.device)
    routing = layer.router(normed, present)
    gated = layer.experts.each(normed, routing.experts) * routing.weights[..., None]
    members, e = len(leaf), layer.experts.n_experts
    per_expert = leaf.new_zeros(members, e, *leaf.shape)  # zero but for the member's own tokens
    for slot in range(routing.experts.shape[-1]):
        (grad,) = torch.autograd.grad(gated[..., slot, :], leaf, at_tokens, retain_graph=True)
        for k in range(members):
            index = routing.experts[k, ..., slot, None].expand_as(leaf[k])
            per_expert[k, :, k].scatter_add_(0, index[None], grad[k][None])
    return [at_tokens, *per_expert.flatten(0, 1)]


@contextmanager
def captured(network):
    """Collect parts of the graph, a list entry for each pass: the last layer's residual `stream`
    before its experts, and what these made of it, `mixed`; both `(K, B, M, P, d)`.
    """
    layer, seen = network.layers[-1], {"stream": [], "mixed": []}
    hooks = [
        layer.norm2.register_forward_hook(lambda _, args, out: seen["stream"].append(args[0])),
        layer.experts.register_forward_hook(lambda _, args, out: seen["mixed"].append(out)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _grad(out: Tensor, at: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Gradients at some tensors; zeros where `out` does not depend on them."""
    if not out.requires_grad:
        return [torch.zeros_like(values) for values in at]
    return torch.autograd.grad(
        out, at, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def share_names(answer) -> list[str]:
    """Names of the shares that the expert-resolved gradient is split into."""
    return ["linear part", "no expert", *expert_names(answer.network.config)]


def expert_names(sizes) -> list[str]:
    """Names of all experts; expert 3 of one member is another one than that of the next."""
    one = [f"expert {e}" for e in range(sizes.n_experts)]
    members = range(sizes.members)
    return one if sizes.members == 1 else [f"member {k} {name}" for k in members for name in one]


# --- integrated gradients, routing ---


def _integrated_gradients(answer, mean, n_steps, x, present, choose) -> Tensor:
    """Along the straight line from the training mean."""

    def asked(x, present, cotangent):
        return (answer(x, present) * cotangent).sum(1)

    with torch.no_grad():
        cotangents = choose(answer(x, present))
    options = {
        "baselines": answer.baseline(x, present, mean), "n_steps": n_steps,
        "method": "gausslegendre", "internal_batch_size": 8 * len(x),
    }  # fmt: skip
    integral = IntegratedGradients(asked)
    parts = [integral.attribute(x, additional_forward_args=(present, c), **options)
             for c in cotangents]  # fmt: skip
    return torch.stack(parts, 1).float()[None]


@torch.no_grad()
def _routing_relevance(answer, usual, groups, x, present, choose) -> Tensor:
    """What the router's choices alone say.

    A token's relevance for a group is the mean over its gates of log(usage of that expert, at that
    token, by cells of the group / by all cells), the pointwise mutual information of expert and
    group; for a translation, which has no groups, log(gate / usage by all). The features of a patch
    share its relevance equally: routing does not tell them apart.
    """
    g, out = _gates(answer, x, present), answer(x, present)
    if answer.target is None:
        tokens = torch.einsum("bmpe,kmpe->bkmp", g, (groups / usual).log())
    else:
        tokens = (g * ((g + 0.01) / usual).log()).sum(-1)[:, None].expand(-1, out.shape[1], -1, -1)
    tokens = torch.stack([(tokens * c[..., None, None]).sum(1) for c in choose(out)], 1)
    result, n_patches = [], tokens.shape[-1]
    for i, n_features in zip(answer.sources, answer.widths, strict=True):
        patch = torch.arange(n_features, device=tokens.device) // -(-n_features // n_patches)
        count = torch.bincount(patch, minlength=n_patches).clamp(min=1)
        result.append((tokens[:, :, i] / count)[:, :, patch])
    return torch.cat(result, -1)[None]


@torch.no_grad()
def _usual_gates(answer, reference: MuData) -> tuple[Tensor, Tensor]:
    """Mean gates of reference cells `(M, P, K*E)`, and of those of each answer `(C, M, P, K*E)`."""
    gates, named = [], []
    for x, present in answer.batches(reference):
        gates.append(_gates(answer, x, present))
        named.append(answer(x, present).argmax(1))
    gates, named = torch.cat(gates), torch.cat(named)
    usual = gates.mean(0) + 0.01  # a floor of one per cent keeps the logarithm finite
    members = [gates[named == k] for k in range(len(answer.outputs))]
    return usual, torch.stack([g.mean(0) + 0.01 if len(g) else usual for g in members])


def _gates(answer, x, present) -> Tensor:
    """Gates of the last layer over all members' experts `(B, M, P, K*E)`."""
    z, read = answer.scores(x, present)
    view = "joint" if answer.target is None else "alone"
    routing = answer.network.encode(answer.network_inputs(z), read[None], view).routing[-1]
    gates = torch.zeros_like(routing.probs).scatter(-1, routing.experts, routing.weights)
    gates = gates.permute(1, 2, 3, 0, 4).flatten(3) / len(gates)
    return gates * read[:, :, None, None]
