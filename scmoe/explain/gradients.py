"""Attributions from a batch of cells at once: gradients, and what the router says by itself.

Each function yields, per batch, a list with an array `(S, B, K, F)` for each source: S shares whose
sum is the attribution (one, but for the expert-resolved gradient), B cells, K answers, F features.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor
from tqdm import tqdm


def gradient_x_input(answer, mdata, background, own, budget, progress):
    """Yield, per batch, `(1, B, K, F)` of each source."""
    means = answer.means(background)
    for x, present in _bar(answer.batches(mdata), progress):
        x = [values.requires_grad_() for values in x]
        out = answer(*x, present=present)
        grads = [torch.autograd.grad(out, x, c, retain_graph=True) for c in _cotangents(out, own)]
        yield _times_input([grads], x, means, present, answer)


def expert_gradient_x_input(answer, mdata, background, own, budget, progress):
    """Yield, per batch, `(S, B, K, F)` of each source: linear part, no expert, every expert."""
    means = answer.means(background)
    for x, present in _bar(answer.batches(mdata), progress):
        x = [values.requires_grad_() for values in x]
        whole = answer(*x, present=present)
        with captured(answer.network) as seen:
            out = answer.network_part(*x, present=present)
        shares = [[] for _ in share_names(answer)]
        for c in _cotangents(whole, own):
            total = _grad(whole, x, c)
            through = [[torch.zeros_like(v) for v in x] for _ in shares[1:]]
            at_all = torch.autograd.grad(
                out, seen["mixed"], c, retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
            for stream, at_tokens in zip(seen["stream"], at_all, strict=True):
                parts = through_experts(answer.network.layers[-1], stream, at_tokens)
                for share, at_stream in zip(through, parts, strict=True):
                    for sum_, grad in zip(share, _grad(stream, x, at_stream), strict=True):
                        sum_ += grad
            by_network = [sum(parts) for parts in zip(*through, strict=True)]
            shares[0].append([t - n for t, n in zip(total, by_network, strict=True)])
            for share, grads in zip(shares[1:], through, strict=True):
                share.append(grads)
        yield _times_input(shares, x, means, present, answer)


def through_experts(layer, stream: Tensor, at_tokens: Tensor) -> list[Tensor]:
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
    per_expert = leaf.new_zeros(e, *leaf.shape)
    for slot in range(routing.experts.shape[-1]):
        (grad,) = torch.autograd.grad(gated[..., slot, :], leaf, at_tokens, retain_graph=True)
        index = routing.experts[..., slot, None].expand_as(leaf)
        per_expert.scatter_add_(0, index[None], grad[None])
    alone = []
    for k in range(members):
        for expert in range(e):
            share = torch.zeros_like(leaf)
            share[k] = per_expert[expert, k]
            alone.append(share)
    return [at_tokens, *alone]


@contextmanager
def captured(network):
    """Collect parts of the graph, a list entry for each pass: tokens `embedded` before the first
    layer, the last layer's residual `stream` before its experts, and what these made of it,
    `mixed`; all `(K, B, M, P, d)`.
    """
    layer, seen = network.layers[-1], {"embedded": [], "stream": [], "mixed": []}
    hooks = [
        network.layers[0].register_forward_pre_hook(
            lambda _, args: seen["embedded"].append(args[0])
        ),
        layer.norm2.register_forward_hook(lambda _, args, out: seen["stream"].append(args[0])),
        layer.experts.register_forward_hook(lambda _, args, out: seen["mixed"].append(out)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _cotangents(out: Tensor, own: bool) -> list[Tensor]:
    """What to take the gradient of: each cell's largest answer, or one answer after the other."""
    n = out.shape[1]
    eye = torch.eye(n, device=out.device)
    return [eye[out.argmax(1)]] if own else [eye[k].expand(len(out), n) for k in range(n)]


def _grad(out: Tensor, x: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    """Gradient at the sources; zeros where `out` does not depend on them."""
    if not out.requires_grad:
        return [torch.zeros_like(values) for values in x]
    return torch.autograd.grad(
        out, x, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _times_input(shares, x, means, present, answer) -> list[np.ndarray]:
    """Gradients [share][output][source] times input minus mean: per source `(S, B, K, F)`."""
    result = []
    for j, i in enumerate(answer.sources):
        grads = torch.stack([torch.stack([g[j] for g in outputs], 1) for outputs in shares])
        away = torch.where(present[:, i, None], x[j].detach() - means[j], 0.0)
        result.append((grads * away[:, None]).cpu().numpy())
    return result


def share_names(answer) -> list[str]:
    """Names of the shares that the expert-resolved gradient is split into."""
    sizes = answer.network.config
    return ["linear part", "no expert", *expert_names(sizes.members, sizes.n_experts)]


def expert_names(members: int, n_experts: int) -> list[str]:
    """Names of all experts; expert 3 of one member is another one than that of the next."""
    one = [f"expert {e}" for e in range(n_experts)]
    return one if members == 1 else [f"member {k} {name}" for k in range(members) for name in one]


# --- integrated gradients, routing ---


def integrated_gradients(answer, mdata, background, own, budget, progress):
    """Yield, per batch, `(1, B, K, F)` of each source; straight line from the training mean."""
    means = answer.means(background)

    def asked(*arguments):
        *x, present, cotangent = arguments
        return (answer(*x, present=present) * cotangent).sum(1)

    explainer = IntegratedGradients(asked)
    for x, present in _bar(answer.batches(mdata), progress):
        with torch.no_grad():
            cotangents = _cotangents(answer(*x, present=present), own)
        base = [
            torch.where(present[:, i, None], mean, values)
            for i, mean, values in zip(answer.sources, means, x, strict=True)
        ]
        parts = [
            explainer.attribute(
                tuple(x), tuple(base), n_steps=budget, method="gausslegendre",
                additional_forward_args=(present, c), internal_batch_size=8 * len(x[0]),
            )
            for c in cotangents
        ]  # fmt: skip
        yield [
            torch.stack([part[j].float() for part in parts], 1)[None].detach().cpu().numpy()
            for j in range(len(x))
        ]


def routing_relevance(answer, mdata, background, own, budget, progress):
    """Yield, per batch, `(1, B, K, F)` of each source: what the router's choices alone say.

    A token's relevance for a group is the mean over its gates of log(usage of that expert, at that
    token, by cells of the group / by all cells), the pointwise mutual information of expert and
    group; for a translation, which has no groups, log(gate / usage by all). The features of a patch
    share its relevance equally: routing does not tell them apart.
    """
    reference = mdata if background is None else background
    gates, named = [], []
    for x, present in answer.batches(reference):
        g, out = _gates(answer, x, present)
        gates.append(g)
        named.append(out.argmax(1))
    gates, named = torch.cat(gates), torch.cat(named)
    usual = gates.mean(0) + 0.01  # (M, P, E); a floor of one per cent keeps the logarithm finite
    groups = None
    if answer.target is None:
        members = [gates[named == k] for k in range(len(answer.outputs))]
        groups = torch.stack([g.mean(0) + 0.01 if len(g) else usual for g in members])
    for x, present in _bar(answer.batches(mdata), progress):
        g, out = _gates(answer, x, present)
        if groups is None:
            tokens = (
                (g * ((g + 0.01) / usual).log()).sum(-1)[:, None].expand(-1, out.shape[1], -1, -1)
            )
        else:
            tokens = torch.einsum("bmpe,kmpe->bkmp", g, (groups / usual).log())
        if own:
            tokens = tokens[torch.arange(len(tokens)), out.argmax(1)][:, None]
        yield [_spread(answer, i, tokens[:, :, i], x[j]) for j, i in enumerate(answer.sources)]


@torch.no_grad()
def _gates(answer, x, present) -> tuple[Tensor, Tensor]:
    """Gates of the last layer over all members' experts `(B, M, P, K*E)`, and answers `(B, K)`."""
    full, read = answer._arguments(x, present)
    view = "joint" if answer.target is None else "alone"
    z = [None if v is None else answer._scores(i, v) for i, v in enumerate(full)]
    z = [None if v is None else v[None, :, : answer.network.n_features[i]] for i, v in enumerate(z)]
    routing = answer.network.encode(z, read[None], view).routing[-1]
    gates = torch.zeros_like(routing.probs).scatter(-1, routing.experts, routing.weights)
    gates = gates.permute(1, 2, 3, 0, 4).flatten(3) / len(gates)
    return gates * read[:, :, None, None], answer(*x, present=present)


def _spread(answer, i: int, tokens: Tensor, x: Tensor) -> np.ndarray:
    """Relevance of tokens `(B, K, P)` shared among their features, `(1, B, K, F)`."""
    n_patches, n_features = answer.network.n_patches, x.shape[1]
    size = -(-n_features // n_patches)
    patch = torch.arange(n_features, device=x.device) // size
    count = torch.bincount(patch, minlength=tokens.shape[-1]).clamp(min=1)
    return (tokens / count)[:, :, patch][None].cpu().numpy()


EXPLAINERS = {
    "expert_gradient_x_input": expert_gradient_x_input,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "routing": routing_relevance,
}


def _bar(batches, progress: bool):
    return tqdm(batches, desc="explaining", unit="batch", disable=not progress, leave=False)
