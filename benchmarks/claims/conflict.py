"""Does adding modalities set tasks against each other? Scores, and the tasks' gradients.

A ladder adds one modality at a time to the same cells. On each rung the same questions are scored:
the groups from all modalities present, and the translations between the first two. The network is
the experts of the strict one; decoder losses are averaged over pairs,
so that their sum does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from scmoe import baselines, plot
from scmoe.colours import FAINT, title_of
from scmoe.config import Config
from scmoe.data import Split, load, simulate_dyngen, split_mudata
from scmoe.data.cells import keep
from scmoe.metrics import COLUMNS, NAMES, as_records, evaluate
from scmoe.model import ScMoE
from scmoe.networks import Experts
from scmoe.nn import losses
from scmoe.nn.cells import Cells
from scmoe.record import Run

LADDERS = {
    "dyngen": ("mrna", "protein", "pre_mrna", "dna"),
    "dyngen, hard": ("mrna", "protein", "pre_mrna", "dna"),
    "patchseq": ("rna", "ephys", "morph"),
    "dbitseq": ("rna", "protein", "niche"),
}
SPARSE, DENSE = "sparse experts", "dense, equal size"
EARLY, LATE = "logistic regression (early fusion)", "logistic regression (late fusion)"
STRICT = "scMoE, strict"
METHODS = [SPARSE, DENSE, EARLY, LATE, STRICT]
TITLES = {"dyngen": "Dyngen", "dyngen, hard": "Dyngen, hard", "patchseq": "Patch-seq",
          "dbitseq": "DBiT-seq, blocks"}  # fmt: skip
COLOURS = dict(zip(METHODS, ("#332288", "#CC6677", "#DDAA33", "#999933", "#117733"), strict=True))
QUICK_EPOCHS = 10
WATCHED = (1, 5, 10, 20, 40)  # epochs after which gradients are compared
SAME_CELLS = 128  # training cells on which they are


def split_of(ladder: str, seed: int, root=None, allow_standin: bool = True) -> Split:
    """Cells of a ladder with all its modalities; another seed tests on other cells.

    Simulated cells are those of another network for each seed; of Patch-seq it is another fold,
    of DBiT-seq another held-out block of the tissue.
    """
    if ladder.startswith("dyngen"):
        setting = "hard" if "hard" in ladder else "default"
        cells = keep(simulate_dyngen(seed=seed, setting=setting), LADDERS[ladder])
        split = split_mudata(cells, "label", seed=seed)
        return replace(split, name=ladder, fold=seed, data_source="simulated")
    fold = f"block-{seed % 5}" if ladder == "dbitseq" else seed % 10
    return load(ladder, fold, seed, root, LADDERS[ladder], allow_standin)


def rungs(split: Split) -> Iterator[Split]:
    """The same cells with the first modality, the first two, and so on."""
    for n in range(1, len(split.modalities) + 1):
        names = split.modalities[:n]
        parts = {part: keep(getattr(split, part), names) for part in ("train", "val", "test")}
        yield replace(split, **parts)


def networks(epochs: int | None = None) -> dict[str, Config]:
    """The network alone: its experts sparse, or one that is as large as all of them together.

    Small and trained briefly (40 epochs by default), so that a ladder takes a minute.
    """
    d, n_experts = 32, 8
    sparse = Config().replace(
        members=2, d=d, n_experts=n_experts, top_k=2, hidden=2 * d, batch_size=64,
        epochs=epochs or 40, patience=10,
    )  # fmt: skip
    return {SPARSE: sparse, DENSE: sparse.replace(n_experts=1, top_k=1, hidden=2 * d * n_experts)}


def climb(
    ladder: str, seed: int, split: Split, epochs: int | None = None, strict: bool = True
) -> pd.DataFrame:
    """Score every method on every rung, and watch the gradients of the networks.

    Parameters
    ----------
    epochs
        Most epochs of a network; the strict recipe has its own.
    strict
        Score the strict recipe too, which takes most of the time.
    """
    tables = []
    for rung in rungs(split):
        for method, config in networks(epochs).items():
            model = Watched(config=config, seed=seed).fit(rung, "cpu", progress=False)
            found = [evaluate(model, rung.test), model.cosines()]
            tables += [table.assign(method=method) for table in found if len(table)]
        for method, fusion in ((EARLY, "early"), (LATE, "late")):
            fitted = baselines.LogisticRegression(fusion, seed=seed).fit(rung)
            tables.append(evaluate(fitted, rung.test).assign(method=method))
        if strict:
            model = ScMoE("supervised", seed=seed).fit(rung, "cpu", progress=False)
            tables.append(evaluate(model, rung.test).assign(method=STRICT))
    records = pd.concat(tables, ignore_index=True).assign(dataset=ladder, seed=seed)
    first = ["", *split.modalities[:2]]
    same = records["target_modality"].isin(first) & records["source_modality"].isin(first)
    asked = records["metric"].str.fullmatch("accuracy|balanced_accuracy|r2|cosine .*")
    return records[same & asked][COLUMNS]


def measure(run: Run) -> pd.DataFrame:
    """Climb what the profile asks for; a ladder and seed that was climbed already is read.

    Quick: two rungs of DBiT-seq, few epochs. Full: all ladders, five seeds.
    """
    run.split = split_of("dbitseq", run.seed, run.data_root, run.allow_standin)
    if run.profile == "quick":
        two = list(rungs(run.split))[1]
        return climb("dbitseq", run.seed, two, run.epochs or QUICK_EPOCHS, strict=False)
    tables = []
    for seed in range(5):
        for ladder in LADDERS:
            file = run.out_dir / f"{ladder.replace(', ', '-')}-{seed}.csv"
            if not file.exists():
                split = split_of(ladder, seed, run.data_root, run.allow_standin)
                run.out_dir.mkdir(parents=True, exist_ok=True)
                climb(ladder, seed, split, run.epochs).to_csv(file, index=False)
            tables.append(pd.read_csv(file, keep_default_na=False))
    return pd.concat(tables, ignore_index=True)


def by_rung(records: pd.DataFrame) -> pd.DataFrame:
    """Give one value per ladder, method, metric, number of modalities `n` and seed.

    Translations are averaged over the two that every rung from the second on has.
    """
    table = records.assign(n=records["modalities"].str.count(r"\+") + 1)
    keys = ["dataset", "method", "metric", "n", "seed"]
    return table.groupby(keys, sort=False)["value"].mean().reset_index()


def interval(values) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval by Student's t (NaN for a single value)."""
    values = np.asarray(values, float)
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return mean, mean - half, mean + half


def _gains(table: pd.DataFrame, ladder: str, metric: str, method: str) -> pd.DataFrame:
    """`first` and `all`: a score by seed, with the fewest modalities and with all."""
    chosen = {"dataset": ladder, "metric": metric, "method": method}
    part = table[(table[list(chosen)] == pd.Series(chosen)).all(axis=1)]
    wide = part.pivot(index="seed", columns="n", values="value").dropna()
    return wide.iloc[:, [0, -1]].set_axis(["first", "all"], axis=1) if wide.shape[1] > 1 else wide


def changes(table: pd.DataFrame) -> pd.DataFrame:
    """Give what all further modalities change, paired by seed, with 95 % intervals.

    Accuracy from one modality to all; R² of the same translations from two modalities to all. The
    table is that of `by_rung`.
    """
    rows, keys = [], ["dataset", "metric", "method"]
    asked = table[table["metric"].isin(["accuracy", "r2"])]
    for key in asked[keys].drop_duplicates().itertuples(index=False):
        gain = _gains(table, *key)
        if "all" in gain and len(gain):
            change = interval(gain["all"] - gain["first"])
            rows.append((*key, gain["first"].mean(), gain["all"].mean(), *change, len(gain)))
    names = ["ladder", "metric", "method", "first", "all", "change", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=names)


def spared(table: pd.DataFrame) -> pd.DataFrame:
    """Give how much more sparse experts gain from further modalities than the dense network.

    Above 0: they are spared what the dense network loses. Paired by seed, with 95 % intervals.
    """
    rows = []
    for metric, ladder in product(("accuracy", "r2"), table["dataset"].unique()):
        both = [_gains(table, ladder, metric, method) for method in (SPARSE, DENSE)]
        if all("all" in gain for gain in both):
            sparse, dense = (gain["all"] - gain["first"] for gain in both)
            apart = (sparse - dense).dropna()
            rows.append((ladder, metric, *interval(apart), len(apart)))
    names = ["ladder", "metric", "sparse less dense", "low", "high", "seeds"]
    return pd.DataFrame(rows, columns=names)


def gradients(table: pd.DataFrame) -> pd.DataFrame:
    """Give the cosines found while training: ladder, method, tasks, epoch, n, seed, value."""
    found = table[table["metric"].str.startswith("cosine ")].copy()
    named = found["metric"].str.extract(r"cosine (?P<tasks>.*) @(?P<epoch>\d+)")
    return found.assign(tasks=named["tasks"], epoch=named["epoch"].astype(int))


def turned(table: pd.DataFrame) -> pd.DataFrame:
    """Give the mean cosines of sparse and dense networks, and by how much they differ.

    Tasks × `sparse`, `dense`, their `difference` with its 95 % interval over seeds (`low`, `high`),
    and the share of comparisons in which the cosine is negative.
    """
    rows = {}
    for tasks, part in gradients(table).groupby("tasks"):
        both = part.groupby(["method", "dataset", "n", "seed"])["value"].mean().unstack("method")
        apart = interval((both[SPARSE] - both[DENSE]).groupby("seed").mean())
        rows[tasks] = both[SPARSE].mean(), both[DENSE].mean(), *apart, (part["value"] < 0).mean()
    names = ["sparse", "dense", "difference", "low", "high", "negative"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=names)


def climbing(table: pd.DataFrame, metric: str, title: str) -> Figure:
    """Draw a metric by number of modalities, one panel a ladder, with 95 % intervals."""
    part = table[table["metric"] == metric]
    fig, axes = plot.figure(title, 2, 2, height=5.7)
    for ax, (ladder, modalities) in zip(axes, LADDERS.items(), strict=True):
        for shift, method in enumerate(METHODS):
            rows = part[(part["dataset"] == ladder) & (part["method"] == method)]
            if rows.empty:
                continue
            values = rows.groupby("n")["value"].agg(interval)
            mean, low, high = np.array(values.tolist(), float).T
            error = np.nan_to_num([mean - low, high - mean])
            ax.errorbar(values.index + 0.06 * (shift - 2), mean, error, ms=5, lw=1.2, label=method,
                        fmt=f"{plot.MARKERS[shift]}-", elinewidth=0.8, color=COLOURS[method],
                        )  # fmt: skip
        words = [title_of(modalities[0]), *(f"+ {title_of(name)}" for name in modalities[1:])]
        ax.set_xticks(np.arange(len(words)) + 1, words, fontsize=9)
        ax.set(title=TITLES[ladder], ylabel=NAMES[metric], xlim=(0.7, len(words) + 0.3))
    return plot.legend(fig, 2)


def cosines_by_epoch(table: pd.DataFrame, title: str) -> Figure:
    """Draw the cosine of the tasks' gradients along training, sparse and dense."""
    found = gradients(table)
    fig, axes = plot.figure(title, len(LADDERS), 2, 8.5, sharex=True, sharey=True)
    panels = product(LADDERS, ("groups, translations", "pairs"))
    for ax, (ladder, tasks) in zip(axes, panels, strict=True):
        part = found[(found["dataset"] == ladder) & (found["tasks"] == tasks)]
        for method, line in ((SPARSE, "-"), (DENSE, "--")):
            for n, many, style in ((2, "two", "o"), (part["n"].max(), "all", "s")):
                rows = part[(part["method"] == method) & (part["n"] == n)]
                mean = rows.groupby("epoch")["value"].mean()
                ax.plot(mean.index, mean, line, marker=style, ms=4, color=COLOURS[method],
                        label=f"{method}, {many} modalities")  # fmt: skip
        ax.axhline(0, color=FAINT, lw=0.8, ls=":")
        ax.set_title(f"{TITLES[ladder]}: {tasks}", fontsize=10)
    fig.supxlabel("epoch", fontsize=10)
    fig.supylabel("cosine", fontsize=10)
    return plot.legend(fig, 2)


class Watched(Experts):
    """Compares the gradients of its tasks while it is trained."""

    def _fit(self, known, device, progress, checkpoint):
        some = torch.randperm(len(known.fold), generator=torch.Generator().manual_seed(self.seed))
        cells = Cells(self._read(known.scores), known.present, known.labels, device)
        batch = cells.batch(some[None, :SAME_CELLS])
        self.found_, self.epoch_ = [], 0

        def compare(network) -> float:
            self.epoch_ += 1
            if self.epoch_ in WATCHED:
                for tasks, cosine in gradient_cosines(network, *batch).items():
                    metric = f"cosine {tasks} @{self.epoch_}"
                    self.found_.append(("gradients", metric, "", "", cosine))
            return 0.0

        known.watch = lambda device: compare
        return super()._fit(known, device, progress, checkpoint)

    def cosines(self) -> pd.DataFrame:
        """Records of what was found: nothing, where one modality is one task."""
        return as_records(self.found_, self)


def gradient_cosines(network, x: list[Tensor], present: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare the gradients of the tasks on what they share, the transformer's layers.

    The batch is as :class:`scmoe.nn.cells.Batch` has it, the same for all members; dropout and the
    router's noise are off. Gives the mean cosine of ``groups, translations`` (the sum over all
    pairs of modalities) and of ``pairs`` (every two translations); nothing with one modality.
    """
    network.eval()
    with torch.enable_grad():
        joint, alone = network.encode_both(x, present, present)
        logits = network.group_logits(joint)
        groups = losses.cross_entropy(logits, labels.expand(len(logits), -1)).sum()
        pairs = {}
        for i, j in permutations(range(len(x)), 2):
            both = (present[..., i] & present[..., j]).float()
            error = (network.decode(alone, i)[:, :, j] - x[i]).square().mean(2)  # (K, B)
            pairs[i, j] = (error * both).sum() / both.sum().clamp(min=1)
        if not pairs:
            return {}
        shared, whole = list(network.layers.parameters()), sum(pairs.values())
        tasks = {"groups, translations": {"groups": groups, "all": whole}, "pairs": pairs}
        return {name: cosines(each, shared)["cosine"].mean() for name, each in tasks.items()}


def cosines(tasks: Mapping[object, Tensor], parameters: list[Tensor]) -> pd.DataFrame:
    """Cosine between the gradients of every two losses, one row each.

    A parameter that a loss does not reach counts as a gradient of 0.
    """
    ways = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    gradients = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, **ways)])
        for name, loss in tasks.items()
    }
    rows = [
        (a, b, float(torch.cosine_similarity(gradients[a], gradients[b], dim=0)))
        for a, b in combinations(gradients, 2)
    ]
    return pd.DataFrame(rows, columns=["first", "second", "cosine"])
