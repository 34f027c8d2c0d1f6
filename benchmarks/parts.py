"""A training step by part, ours beside the naive row; and whether torch.compile pays.

    python -m benchmarks.parts

Each part goes forward and backward by itself on the input that it has in a step of the preset.
"""

from __future__ import annotations

import time

import pandas as pd
import torch

from benchmarks import common
from benchmarks.naive import ddc
from scmoe.nn import losses
from scmoe.step import Step

ROUNDS = {"dyngen": 9, "dbitseq": 7, "patchseq": 3, "atacseq": 7}
COMPILED = ("dyngen",)  # the one that launches bind most


def backward(function, *inputs):
    """A call of ``function`` that goes forward and backward."""
    inputs = [
        v.detach().requires_grad_() if torch.is_tensor(v) and v.is_floating_point() else v
        for v in inputs
    ]

    def run():
        out = function(*inputs)
        (out if out.dim() == 0 else out.square().mean()).backward()

    return run


def seen(module, *inputs):
    """What each module below ``module`` is given in one call."""
    given, hooks = {}, []
    for part in module.modules():
        hook = part.register_forward_pre_hook(lambda m, x: given.setdefault(m, []).append(x))
        hooks.append(hook)
    module(*inputs)
    for hook in hooks:
        hook.remove()
    return given


def ours(pair: common.Pair) -> dict:
    """Parts of our step, as calls."""
    network, size = pair.network.train(), pair.config.train.batch_size
    index = torch.arange(size)
    batch = pair.train.batch(index[None])
    layer = network.layers[0]
    holder = torch.nn.Module()
    holder.network, holder.forward = network, lambda: network.encode(batch.x, batch.present)
    given = seen(holder)
    encoded = network.encode(batch.x, batch.present)
    tokens = layer.norm1(encoded.embedded)
    (mixed,), (routed,) = given[layer.experts], given[layer.router]
    fold = common.held_by_none(pair.train)
    step = Step(network, pair.config.train, pair.train, fold, pair.supervised)
    adam = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    pair.step()(index)  # leaves gradients
    logits, hidden = network.group_logits(encoded), network.clustering_space(encoded)

    def decoders(latents):
        return torch.stack(step._decoder_losses(batch, encoded._replace(latents=latents))).sum()

    return {
        "batch": lambda: pair.train.batch(index[None]),
        "embedding": backward(lambda: network._embed(batch.x, batch.present)[0]),
        "attention": backward(lambda x: layer._attend(x, None), tokens),
        "router": backward(lambda x, p: layer.router(x, p).weights, *routed),
        "experts": backward(layer.experts, *mixed),
        "decoders and their loss": backward(decoders, encoded.latents),
        "clustering loss": backward(losses.ddc, logits[0], hidden[0]),
        "optimiser": adam.step,
    }


def naive(pair: common.Pair) -> dict:
    """Parts of the naive step, as calls."""
    row = pair.naive
    network = row.network.train()
    size = pair.config.train.batch_size
    data = row.train_loader.dataset
    collate = torch.utils.data.default_collate
    xs, labels = collate([data[i] for i in range(size)])
    given = seen(network, xs)
    moe, gates = network.moe, list(network.moe.gates)
    row.step(xs, labels)
    *_, logits, hidden, _ = network(xs)
    latents = [given[network.decoders[0]][j][0] for j in range(len(xs))]

    def embedding():
        patches = [given[e][0][0] for e in network.embed]
        parts = [e(p) for e, p in zip(network.embed, patches, strict=True)]
        return torch.cat(parts, 1)

    def decoders(*latents):
        pairs = [(d(z), x) for d, x in zip(network.decoders, xs, strict=True) for z in latents]
        return sum(torch.nn.functional.mse_loss(y, x) for y, x in pairs)

    def gated(gate, x):
        return gate(x)[1]

    def each(function, calls):
        runs = [backward(lambda *a, m=module: function(m, *a), *inputs) for module, inputs in calls]
        return lambda: [run() for run in runs]

    def experts(_, x, number):
        return moe(x, number)

    parts = {
        "batch": lambda: collate([data[i] for i in range(size)]),
        "embedding": backward(embedding),
        "attention": backward(network.attention, *given[network.attention][0]),
        "router": each(gated, [(g, x) for g in gates for x in given[g]]),
        "router and experts": each(experts, [(moe, x) for x in given[moe]]),
        "decoders and their loss": backward(decoders, *latents),
        "clustering loss": backward(
            lambda a, h: ddc(a.softmax(1), h, row.n_groups), logits, hidden
        ),
        "optimiser": row.optimiser.step,
        "step": lambda: row.step(xs, labels),
    }
    return parts


def measure_preset(name: str, tiny: bool) -> list[dict]:
    """Rows of one preset: milliseconds of each part."""
    pair = common.pair(name, tiny)
    index, run = torch.arange(pair.config.train.batch_size), pair.step()
    calls = {("ours", k): v for k, v in (ours(pair) | {"step": lambda: run(index)}).items()}
    calls |= {("naive", k): v for k, v in naive(pair).items()}
    taken = common.interleaved(calls, 1 if tiny else ROUNDS[name])
    taken = {key: 1000 * value for key, value in taken.items()}
    taken["naive", "experts"] = (
        taken.pop(("naive", "router and experts")) - taken["naive", "router"]
    )
    taken["naive", "step"] += taken["naive", "batch"]
    parts = [k for which, k in calls if which == "ours" and k != "step"]
    for which in ("ours", "naive"):
        whole = taken[which, "step"]
        taken[which, "the rest"] = whole - sum(taken[which, k] for k in parts)
    return [
        {
            "preset": name,
            "part": k,
            "naive, ms": common.rounded(taken["naive", k]),
            "scmoe, ms": common.rounded(taken["ours", k]),
            "scmoe, share": common.rounded(taken["ours", k] / taken["ours", "step"], 2),
        }
        for k in [*parts, "the rest", "step"]
    ]


def compiled(name: str, tiny: bool) -> dict:
    """One preset's step with the losses compiled, against eager."""
    pair = common.pair(name, tiny)
    index = torch.arange(pair.config.train.batch_size)[None]
    fold = common.held_by_none(pair.train)
    step = Step(pair.network.train(), pair.config.train, pair.train, fold, pair.supervised)
    forward = torch.compile(lambda i: step(i)[0].sum())
    row = {"preset": name}
    start = time.perf_counter()
    try:
        for _ in range(3):
            forward(index).backward()
    except Exception as error:  # no compiler, or something it cannot do
        return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
    row["seconds to compile"] = common.rounded(time.perf_counter() - start)
    calls = {
        "eager": lambda: step(index)[0].sum().backward(),
        "compiled": lambda: forward(index).backward(),
    }
    taken = common.interleaved(calls, 1 if tiny else 9)
    row |= {f"{k}, ms forward and backward": common.rounded(1000 * v) for k, v in taken.items()}
    saved = taken["eager"] - taken["compiled"]
    steps = row["seconds to compile"] / saved if saved > 0 else float("inf")
    epochs = steps / max(1, round(len(pair.train) / pair.config.train.batch_size))
    row["epochs until it pays"] = common.rounded(epochs)
    row["epochs of the preset"] = pair.config.train.epochs
    return row


def measure(tiny: bool = False) -> dict[str, pd.DataFrame]:
    """Tables: parts of a step, and compilation."""
    rows = [row for name in common.SHAPES for row in measure_preset(name, tiny)]
    compilations = [compiled(name, tiny) for name in (() if tiny else COMPILED)]
    return {
        "A training step by part": pd.DataFrame(rows),
        "torch.compile on a CPU": pd.DataFrame(compilations),
    }


if __name__ == "__main__":
    common.main("parts", measure)
