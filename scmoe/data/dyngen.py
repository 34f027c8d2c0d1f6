"""Simulated cells with a known regulatory network: chromatin, pre-mRNA, mRNA and protein.

Follows the design of dyngen (Cannoodt et al., Nat Commun 12:3942, 2021), written anew: a backbone
of modules drives transcription factors, these drive target genes, housekeeping genes go their own
way. Promoters are regulated by thermodynamic binding; molecules are made and lost at random; cells
are captured along the way and measured with noise. Units of time are hours.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from scmoe.data.backbones import BACKBONES, Backbone
from scmoe.data.cells import make_mudata
from scmoe.data.instruments import MODALITIES, SETTINGS, measure

STEP = 0.25  # hours; the fastest half-life, that of splicing, is five times as long
HORIZON = 400.0  # hours by which every backbone has reached its last milestone
CELLS_PER_TRAJECTORY = 5  # far enough apart in time to share little noise
CHUNK = 256  # trajectories advanced together: bounds memory and fits the cache
BINDING = 0.35  # protein of half binding, as a share of the regulator's highest level
COOPERATIVITY = 2  # Hill coefficient of binding
FEW = 8  # times fewer transcripts of rival genes than of others: noise that decides early
DIFFERS_LOG2 = 1.0  # a feature truly differs where its group means are a factor of two apart


@dataclass
class Network:
    """Genes, who regulates whom, and the rates of each gene's life (all arrays `(n_genes, 1)`)."""

    genes: pd.DataFrame  # index name; role, module
    edges: pd.DataFrame  # regulator, target, sign, sites
    regulators: np.ndarray  # (n_tf,) rows of the transcription factors
    activating: np.ndarray  # (n_genes, n_tf) binding sites
    repressing: np.ndarray
    basal: np.ndarray  # activity of the unbound promoter
    transcription: np.ndarray  # pre-mRNA per hour at full activity
    splicing: np.ndarray
    decay: np.ndarray  # of mRNA
    translation: np.ndarray
    turnover: np.ndarray  # of protein

    @property
    def ceiling(self) -> np.ndarray:
        """Protein level of a fully active gene, `(n_genes, 1)`."""
        return self.transcription * self.translation / (self.decay * self.turnover)

    def activity(self, protein: np.ndarray) -> np.ndarray:
        """Chance that each promoter is active, `(n_genes, n)`, given proteins `(n_genes, n)`.

        Sites are bound independently, with odds (protein / half binding) ** cooperativity. Active
        is a promoter with an activator, or at its basal rate without one, and with no repressor.
        """
        level = protein[self.regulators] / (BINDING * self.ceiling[self.regulators])
        log_free = np.log1p(level**COOPERATIVITY)
        unbound = np.exp(-self.activating @ log_free)
        return (1 - (1 - self.basal) * unbound) * np.exp(-self.repressing @ log_free)


def _genes(n_genes: int, modules: list[str]) -> pd.DataFrame:
    """Name the genes: a sixth are TFs, one or more a module; of the rest, 3 in 10 keep house."""
    n_tf = max(len(modules), n_genes // 6)
    n_housekeeping = (n_genes - n_tf) * 3 // 10
    rows = [(f"{modules[i % len(modules)]}_TF{i // len(modules) + 1}", "tf") for i in range(n_tf)]
    rows += [(f"Target{i + 1}", "target") for i in range(n_genes - n_tf - n_housekeeping)]
    rows += [(f"HK{i + 1}", "housekeeping") for i in range(n_housekeeping)]
    genes = pd.DataFrame(rows, columns=["gene", "role"]).set_index("gene").rename_axis(None)
    factor = genes.role == "tf"
    genes["module"] = np.where(factor, genes.index.str.partition("_").get_level_values(0), "")
    return genes


def _wire(backbone: Backbone, genes: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Edges from the modules' first TFs to the TFs that follow, and from any TF to targets."""
    factors = genes.index[genes.role == "tf"]
    rows = [
        (f"{source}_TF1", factor, sign, 2 if sign > 0 else 3)
        for source, module, sign in backbone.edges
        for factor in factors[genes.module[factors] == module]
    ]
    stage = genes.module[factors].str.rstrip("0123456789")
    weight = (stage.map(backbone.share) / stage.map(stage.value_counts())).to_numpy()
    for target in genes.index[genes.role == "target"]:
        chosen = rng.choice(len(factors), min(1 + rng.poisson(0.4), 3), replace=False, p=weight)
        for position, factor in enumerate(factors[np.sort(chosen)]):
            represses = rng.random() < (0.9 if position else 0.03)  # what comes later, ends it
            sign = -1 if represses and stage[factor] != "Burn" else 1
            rows.append((factor, target, sign, int(rng.integers(1, 4))))
    return pd.DataFrame(rows, columns=["regulator", "target", "sign", "sites"])


def _basal(genes: pd.DataFrame, activated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Activity of each promoter when nothing is bound, `(n_genes,)`.

    Genes with activators leak; those without are on; housekeeping genes mostly idle, as they do
    in dyngen's output, and a few are busy.
    """
    basal = np.where(activated, np.where(genes.role == "tf", 0.0, 1e-4), 1.0)
    housekeeping = (genes.role == "housekeeping").to_numpy()
    idle = 10 ** (-4.5 + 2.7 * rng.random(housekeeping.sum()) ** 2.2)
    busy = rng.uniform(0.5, 1, idle.size)
    basal[housekeeping] = np.where(rng.random(idle.size) < 0.22, busy, idle)
    return basal


def _network(n_genes: int, backbone: Backbone, rng: np.random.Generator) -> Network:
    """Draw genes, wiring and kinetics."""
    genes = _genes(n_genes, backbone.modules)
    edges = _wire(backbone, genes, rng)
    first = edges.drop_duplicates("target").set_index("target").regulator
    targets = genes.index[genes.role == "target"]
    genes.loc[targets, "module"] = genes.module[first[targets]].to_numpy()

    regulators = np.flatnonzero(genes.role == "tf")
    sites = np.zeros((2, n_genes, len(regulators)), np.float32)  # activating, repressing
    row, column = genes.index.get_indexer(edges.target), genes.index.get_indexer(edges.regulator)
    sites[(edges.sign < 0).astype(int), row, column] = edges.sites
    basal = _basal(genes, sites[0].any(1), rng)

    # Per hour; half-lives of 1.25, 2.5 and 5 hours. Levels are those of dyngen's reference output.
    centres = 14.0, log(2) / 1.25, log(2) / 2.5, 200.0, log(2) / 5
    sds = 0.3, 0.15, 0.2, 0.2, 0.2
    rates = np.array(
        [c * np.exp(sd * rng.standard_normal(n_genes)) for c, sd in zip(centres, sds, strict=True)]
    )
    rivals = genes.index.get_indexer([f"{module}_TF1" for module in backbone.rivals])
    rates[:, rivals] = rates[:, rivals[:1]]
    rates[0, rivals] /= FEW
    rates[3, rivals] *= FEW  # as much protein from fewer transcripts
    columns = np.vstack([basal, rates]).astype(np.float32)[:, :, None]
    return Network(genes, edges, regulators, *sites, *columns)


def _advance(net: Network, state: np.ndarray, active: np.ndarray, rng=None) -> None:
    """One step of `state` (3, n_genes, n): pre-mRNA, mRNA, protein; without `rng`, its mean.

    Transcription, at most a few events a step, is drawn by tau-leaping; splicing, decay and
    translation by the chemical Langevin equation, whose noise vanishes with the molecules.
    """
    pre, mrna, protein = state
    made = net.transcription * active * STEP
    spliced = net.splicing * pre * STEP
    lost = net.decay * mrna * STEP
    translated = net.translation * mrna * STEP
    degraded = net.turnover * protein * STEP
    if rng is not None:
        noise = rng.standard_normal(state.shape, dtype=np.float32)
        protein += np.sqrt(translated + degraded) * noise[2]
        spliced = np.minimum(spliced + np.sqrt(spliced) * noise[0], pre)
        lost = np.minimum(lost + np.sqrt(lost) * noise[1], mrna)
        made = rng.poisson(made)
    pre += made - spliced
    mrna += spliced - lost
    protein += translated - degraded
    np.maximum(state, 0, out=state)


def _gold_standard(net: Network, backbone: Backbone):
    """Noise-free development along every path.

    Returns the states `(n_steps, n_paths, 4, n_genes)` with accessibility first, and per path the
    steps at which its milestones are reached: where their markers, one after the other, first rise
    above half binding.
    """
    n_genes, n_paths = len(net.genes), len(backbone.paths)
    allowed = np.ones((n_genes, n_paths), np.float32)
    for path, silent in enumerate(backbone.silent):
        allowed[net.genes.module.isin(silent) & (net.genes.role == "tf"), path] = 0
    state = np.zeros((3, n_genes, n_paths), np.float32)
    states = []
    for _ in range(int(HORIZON / STEP)):
        active = net.activity(state[2]) * allowed
        _advance(net, state, active)
        states.append(np.concatenate([active[None], state]).transpose(2, 0, 1))
    states, milestones = np.stack(states), []
    for path, stops in enumerate(backbone.paths):
        steps = [-1]
        for milestone, module in stops:
            gene = net.genes.index.get_loc(f"{module}_TF1")
            on = states[:, path, 3, gene] > BINDING * net.ceiling[gene]
            rises = np.flatnonzero(on[1:] & ~on[:-1]) + 1
            if not (rises > steps[-1]).any():
                raise RuntimeError(f"simulated network never reaches milestone {milestone}")
            steps.append(int(rises[rises > steps[-1]][0]))
        milestones.append(steps[1:])
    return states, milestones


def _capture(net: Network, rng, n_cells: int, window: tuple[int, int]):
    """Follow trajectories from empty cells and photograph each at a few moments.

    Returns true states `(4, n_cells, n_genes)` float32, and per cell its trajectory and step.
    """
    n_genes = len(net.genes)
    n_trajectories = ceil(n_cells / CELLS_PER_TRAJECTORY)
    strata = np.arange(CELLS_PER_TRAJECTORY) + rng.random((n_trajectories, CELLS_PER_TRAJECTORY))
    moments = window[0] + strata / CELLS_PER_TRAJECTORY * (window[1] - window[0])
    kept = np.sort(rng.permutation(moments.size)[:n_cells])
    step, trajectory = moments.ravel()[kept].astype(int), kept // CELLS_PER_TRAJECTORY
    order = rng.permutation(n_cells)  # so that neighbouring cells are not one trajectory's
    step, trajectory = step[order], trajectory[order]

    truth = np.empty((4, n_cells, n_genes), np.float32)
    for start in range(0, n_trajectories, CHUNK):
        mine = np.flatnonzero((trajectory >= start) & (trajectory < start + CHUNK))
        mine = mine[np.argsort(step[mine], kind="stable")]
        bounds = np.searchsorted(step[mine], np.arange(step[mine][-1] + 2))
        state = np.zeros((3, n_genes, min(CHUNK, n_trajectories - start)), np.float32)
        for now in range(len(bounds) - 1):
            active = net.activity(state[2])
            _advance(net, state, active, rng)
            cells = mine[bounds[now] : bounds[now + 1]]
            if len(cells):
                column = trajectory[cells] - start
                truth[0, cells] = active[:, column].T
                truth[1:, cells] = state[:, :, column].transpose(0, 2, 1)
    return truth, trajectory, step


def _place(net: Network, backbone: Backbone, gold, milestones, truth: np.ndarray) -> pd.DataFrame:
    """Find each cell's nearest point, by the TFs' molecules, on the noise-free paths.

    Gives the milestones around it, the progress from one to the other, and pseudotime.
    """
    molecules = gold[:, :, 1:, net.regulators]
    scale = molecules.max((0, 1)) + 1e-6
    span = max(steps[-1] - steps[0] for steps in milestones)
    points, names = [], []
    for path, steps in enumerate(milestones):
        stops = zip([name for name, _ in backbone.paths[path]], steps, strict=True)
        for (source, start), (target, end) in pairwise(stops):
            at = np.arange(start, end)
            points.append((molecules[at, path] / scale).reshape(len(at), -1))
            progress = (at - start) / (end - start)
            label, pseudotime = np.where(progress < 0.5, source, target), (at - steps[0]) / span
            names.append(
                {"label": label, "pseudotime": pseudotime, "from": source, "to": target,
                 "progress": progress}
            )  # fmt: skip
    points, nearest = np.concatenate(points), []
    for block in np.array_split(truth[1:], ceil(truth.shape[1] / 2000), axis=1):
        cells = (block[:, :, net.regulators].transpose(1, 0, 2) / scale).reshape(block.shape[1], -1)
        nearest.append(((points**2).sum(1) - 2 * cells @ points.T).argmin(1))
    return pd.concat(map(pd.DataFrame, names), ignore_index=True).iloc[np.concatenate(nearest)]


def simulate_dyngen(
    n_cells: int = 500,
    n_genes: int = 100,
    backbone: str = "linear",
    seed: int = 0,
    setting: str = "default",
) -> MuData:
    """Simulate cells with chromatin accessibility, pre-mRNA, mRNA and protein of the same genes.

    Parameters
    ----------
    n_cells, n_genes
        Cells captured, evenly over the time of development; features of each modality.
    backbone
        `"linear"`, `"bifurcating"`, `"converging"`, `"cycle"` or `"trifurcating"`.
    seed
        The same seed gives the same network and cells.
    setting
        `"default"` (the noise of dyngen), `"hard"` (no single modality suffices) or `"medium"`.

    Returns
    -------
    MuData with modalities `dna` (accessible fraction, 0 to 1) and `pre_mrna`, `mrna`, `protein`
    (molecule counts), each `(n_cells, n_genes)` float32. `obs["label"]` is the nearest milestone,
    `obs["pseudotime"]` runs from 0 to 1. `uns["truth"]` holds tables: `edges` (regulator, target,
    sign, sites), `genes` (role, module), `differs` (feature × modality: do group means differ?)
    and `cells` (pseudotime, position between milestones, trajectory, hour).

    Raises
    ------
    ValueError
        For an unknown backbone or setting, or fewer genes than twice the backbone's modules.

    References
    ----------
    Cannoodt et al., Spearheading future omics analyses using dyngen, Nat Commun 12:3942 (2021).
    """
    for kind, given, known in (("backbone", backbone, BACKBONES), ("setting", setting, SETTINGS)):
        if given not in known:
            raise ValueError(f"unknown {kind} {given!r}: choose one of {', '.join(known)}")
    plan = BACKBONES[backbone]
    if n_genes < 2 * len(plan.modules):
        raise ValueError(f"{backbone} needs n_genes >= {2 * len(plan.modules)}, not {n_genes}")
    if n_cells < 1:
        raise ValueError(f"n_cells must be at least 1, not {n_cells}")

    rng = np.random.default_rng(seed)
    net = _network(n_genes, plan, rng)
    gold, milestones = _gold_standard(net, plan)
    end = max(steps[-1] for steps in milestones) + int(plan.linger / STEP)
    window = min(steps[0] for steps in milestones), end
    truth, trajectory, step = _capture(net, rng, n_cells, window)
    cells = _place(net, plan, gold, milestones, truth)
    cells.index = [f"cell{i + 1}" for i in range(n_cells)]
    cells["trajectory"], cells["hour"] = trajectory, step * STEP
    floor = np.array([0.05, 0.5, 0.5, 500.0])[:, None]  # below this nothing would be measured
    groups = [truth[:, (cells.label == g).to_numpy()].mean(1) for g in sorted(set(cells.label))]
    differs = np.ptp(np.log2(np.stack(groups) + floor), axis=0) > DIFFERS_LOG2

    measured = measure(truth, SETTINGS[setting], rng)
    mdata = make_mudata({m: AnnData(X, cells[[]], net.genes[[]]) for m, X in measured.items()})
    mdata.obs["label"] = pd.Categorical(cells.label)
    mdata.obs["pseudotime"] = cells.pseudotime
    mdata.uns["truth"] = {
        "edges": net.edges,
        "genes": net.genes,
        "differs": pd.DataFrame(differs.T, index=net.genes.index, columns=MODALITIES),
        "cells": cells,
    }
    return mdata
