"""Simulated stand-ins for the three measured data sets, for when their files are not at hand.

Each has the modalities, labels and units of its original and is generated, not copied: only
published summaries enter (group names and sizes, sparsity, scales, how well simple methods do).
Every stand-in follows the same causal order. A cell's group sits in a tree (class, then group),
a continuous state varies within the group, and each modality reads both through its own loadings
and its own measurement: sequencing depth and overdispersed counts for transcripts, Bernoulli
draws for open chromatin, correlated residuals for electrophysiology, and redundant sizes of
neurites for morphology. No result on a stand-in is a statement about biology.
"""

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

from scmoe.data.catalog import BMMC_BATCHES, MOP_BATCHES
from scmoe.data.cells import make_mudata
from scmoe.data.niche import recompute_niche

# Cells per group of the originals. Patch-seq: morpho-electric-transcriptomic (MET) types.
PATCHSEQ_SIZES = {
    "Lamp5": [41, 2],
    "Pvalb": [5, 30, 9, 38, 3],
    "Sncg": [17, 3],
    "Sst": [15, 17, 24, 14, 12, 17, 9, 17, 13, 10, 3, 54, 23],
    "Vip": [21, 12, 3, 16, 20],
}
PATCHSEQ_GROUPS = {
    c: {f"{c}-MET-{i + 1}": n for i, n in enumerate(sizes)} for c, sizes in PATCHSEQ_SIZES.items()
}
N_TRANSCRIPTOMIC_TYPES = 52
N_AXES = 10  # of the phenotype the three modalities share; ephys and morph each see some of them
# DBiT-seq: pixels per tissue region, and how many of them the published split tests on.
DBITSEQ_GROUPS = [101, 104, 155, 151, 207, 90, 21, 7, 12, 55, 23, 6, 4]
DBITSEQ_TEST = [20, 21, 31, 30, 42, 18, 4, 1, 3, 11, 4, 2, 1]
# Bone marrow: lineage -> {cell type: rough share in per cent}. Shares differ between donors.
ATACSEQ_GROUPS = {
    "T and NK": {
        "CD4+ T naive": 11, "CD4+ T activated": 14, "CD8+ T": 16, "CD8+ T naive": 3,
        "NK": 9, "ILC": 1.5,
    },
    "B": {"Naive CD20+ B": 5, "Transitional B": 3, "B1 B": 2, "Plasma cell": 1, "Lymph prog": 3},
    "myeloid": {
        "CD14+ Mono": 15, "CD16+ Mono": 2.5, "cDC2": 2.5, "pDC": 1.5, "G/M prog": 2,
        "ID2-hi myeloid prog": 1,
    },
    "erythroid": {
        "HSC": 1.5, "MK/E prog": 1.5, "Proerythroblast": 2.5, "Erythroblast": 5, "Normoblast": 2.5,
    },
}  # fmt: skip


def standin(name: str, seed: int = 0) -> MuData:
    """Simulate a stand-in for one of the measured data sets, in the units of its files.

    ``dbitseq``, ``patchseq``, ``atacseq`` or ``mop``, else a ValueError; the cells depend on the
    seed alone. Labels and what else a split needs (batches, coordinates, the published split) are
    in the global ``obs``; ``uns["standin"]`` says what it is and how it compares in size.
    """
    if name not in STANDINS:
        raise ValueError(f"no stand-in for {name!r}: choose one of {', '.join(STANDINS)}")
    simulate, size = STANDINS[name]
    mdata = simulate(np.random.default_rng([seed, list(STANDINS).index(name)]))
    mdata.uns["standin"] = f"simulated stand-in for {name} (seed {seed}), {size}"
    return mdata


def _assemble(modalities: dict[str, tuple], obs: dict, cells: list[str]) -> MuData:
    """MuData of ``{modality: (X, feature names or their stem)}``, annotated by the global obs."""
    obs = pd.DataFrame(obs, index=cells)
    obs = obs.astype({c: "category" for c in obs if obs[c].dtype == object})
    mod = {}
    for name, (X, names) in modalities.items():
        names = _names(names, X.shape[1]) if isinstance(names, str) else names
        mod[name] = AnnData(X, obs[[]], pd.DataFrame(index=names))
    return make_mudata(mod, obs)


def _tree(groups: dict[str, dict[str, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names of the groups, the class of each, and their sizes or shares."""
    names = [name for members in groups.values() for name in members]
    parents = np.repeat(np.arange(len(groups)), [len(members) for members in groups.values()])
    return np.array(names), parents, np.array([n for m in groups.values() for n in m.values()])


def _names(stem: str, n: int) -> list[str]:
    return [f"{stem}_{i:04d}" for i in range(1, n + 1)]


def _profiles(parents: np.ndarray, n_features: int, rng, parent: tuple, group: tuple) -> np.ndarray:
    """Each group's offset per feature: its class's markers plus its own, ``(groups, features)``.

    ``parent`` and ``group`` are (share of features that are markers, standard deviation of their
    offset), so groups of one class resemble each other.
    """

    def sparse_normal(rows: int, share: float, sd: float) -> np.ndarray:
        shape = (rows, n_features)
        return rng.normal(0, sd, shape) * (rng.random(shape) < share)

    return sparse_normal(parents.max() + 1, *parent)[parents] + sparse_normal(len(parents), *group)


def _loadings(n_axes: int, n_features: int, sd: float, share: float, rng) -> np.ndarray:
    """Sparse loadings: each axis moves a share of the features, ``(axes, features)``."""
    return _profiles(np.arange(n_axes), n_features, rng, parent=(0, 0), group=(share, sd))


def _log_rate(
    n: int, rng, base: tuple, parents, markers: tuple, group, state: np.ndarray, shifts: list
) -> np.ndarray:
    """Logged rates of n features, ``(cells, n)``: baseline, group, state, batches and depth.

    ``base`` is (mean, standard deviation), ``shifts`` lists (each cell's batch, how much batches
    differ).
    """
    rate = rng.normal(*base, n) + _profiles(parents, n, rng, *markers)[group]
    rate = rate + state @ rng.normal(0, 0.15, (6, n))
    for batch, sd in shifts:
        rate = rate + rng.normal(0, sd, (batch.max() + 1, n))[batch]
    return rate + rng.normal(0, 0.35, (len(group), 1))


def _counts(rate: np.ndarray, dispersion: float, rng) -> np.ndarray:
    """Negative binomial counts: variance = rate + dispersion * rate^2."""
    return rng.poisson(rng.gamma(1 / dispersion, rate * dispersion)).astype(np.float32)


def standardised(x: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the cells; a constant becomes zero."""
    sd = x.std(0)
    return (x - x.mean(0)) / np.where(sd > 0, sd, 1)


def _shuffled(sizes: list[int] | np.ndarray, rng) -> np.ndarray:
    """Group index of every cell, in random order."""
    return rng.permutation(np.repeat(np.arange(len(sizes)), sizes))


# --------------------------------------------------------------------------------- Patch-seq


def _patchseq(rng) -> MuData:
    names, parents, sizes = _tree(PATCHSEQ_GROUPS)
    met = _shuffled(sizes, rng)
    t_type, t_parent = _transcriptomic_types(met, sizes, rng)
    centre = _profiles(parents, N_AXES, rng, parent=(1, 1.2), group=(1, 0.75))
    phenotype = centre[met] + rng.normal(0, 0.55, (len(met), N_AXES))
    modalities = {
        "rna": (_patchseq_rna(t_type, parents[t_parent], phenotype, rng), "gene"),
        "ephys": (_patchseq_ephys(phenotype[:, :7], rng), "ephys"),
        "morph": (_patchseq_morph(phenotype[:, 4:], rng), "morph"),
    }
    classes = np.array(list(PATCHSEQ_GROUPS))[parents[t_parent[t_type]]]
    t_names = [f"{c} T-{t + 1:02d}" for c, t in zip(classes, t_type, strict=True)]
    obs = {"cell_type_TEM": names[met], "cell_type_T": t_names}
    return _assemble(modalities, obs, _names("cell", len(met)))


def _transcriptomic_types(met: np.ndarray, sizes: np.ndarray, rng) -> tuple:
    """Divide the MET types into 52 T types; a tenth of the cells straddle to a neighbour's."""
    n_types = np.ones(len(sizes), dtype=int)
    for _ in range(N_TRANSCRIPTOMIC_TYPES - len(sizes)):  # the next type where cells abound
        n_types[np.argmax(sizes / (n_types + 0.7))] += 1
    t_parent = np.repeat(np.arange(len(sizes)), n_types)
    t_type = np.empty(len(met), dtype=int)
    for g in range(len(sizes)):
        own, cells = np.flatnonzero(t_parent == g), np.flatnonzero(met == g)
        t_type[cells] = rng.permutation(np.resize(own, len(cells)))  # every type gets a cell
    movable = (rng.random(len(met)) < 0.1) & (np.bincount(t_type)[t_type] > 4)
    t_type[movable] = np.clip(t_type[movable] + rng.choice([-1, 1], movable.sum()), 0, 51)
    return t_type, t_parent


def _patchseq_rna(t_type: np.ndarray, parents: np.ndarray, phenotype: np.ndarray, rng):
    """Full-length single-cell reads: log1p of counts per million, half of them zero."""
    n_genes = 1252
    profile = _profiles(parents, n_genes, rng, parent=(0.30, 1.5), group=(0.045, 1.5))
    log_rate = (
        rng.normal(-0.3, 2.1, n_genes).clip(-3.5)
        + profile[t_type]
        + phenotype @ _loadings(N_AXES, n_genes, 0.5, 0.3, rng)
        + rng.normal(0, 0.4, (len(t_type), 1))
    )
    counts = _counts(np.exp(np.minimum(log_rate, 6)), 1.2, rng)
    depth = np.exp(rng.normal(0, 0.15, (len(t_type), 1)))
    return np.log1p(counts * 9.0 * depth).astype(np.float32)


def _patchseq_ephys(phenotype: np.ndarray, rng) -> np.ndarray:
    """Sparse principal components of the voltage traces: correlated scores of unequal scale."""
    n, n_cells = 68, len(phenotype)
    signal = np.tanh(0.35 * phenotype) @ _loadings(phenotype.shape[1], n, 1.3, 0.5, rng)
    residual = rng.normal(size=(n_cells, 9)) @ _loadings(9, n, 0.55, 0.5, rng)
    values = standardised(signal + residual + 0.4 * rng.standard_t(5, (n_cells, n)))
    centre = np.where(rng.random(n) < 0.2, rng.normal(-6, 8, n), rng.normal(0, 0.3, n))
    return (centre + np.exp(rng.normal(-0.1, 0.5, n)) * values).astype(np.float32)


def _patchseq_morph(phenotype: np.ndarray, rng) -> np.ndarray:
    """Sizes and shares of a few neurites: redundant, of unequal scale, some (nearly) constant.

    Of the first 120 features every third is the difference of the two before it, as a width is.
    """
    n, n_cells = 514, len(phenotype)
    shape = phenotype @ _loadings(phenotype.shape[1], 20, 0.7, 0.5, rng)
    shape = standardised(shape + rng.normal(0, 1.5, shape.shape))  # what all features follow from
    values = standardised(shape @ _loadings(20, n, 1.0, 0.2, rng))
    values += 0.5 * rng.normal(size=(n_cells, n))
    scale = np.exp(rng.normal(2, 2, n)) * (rng.random(n) > 0.02)
    features = scale * (3 + values)
    low, high, width = (features[:, k:120:3] for k in range(3))
    width[:] = high - low
    features[:, 120:130] *= rng.random((n_cells, 10)) < 0.05  # what few neurons have
    return features.astype(np.float32)


# ---------------------------------------------------------------------------------- DBiT-seq


def _dbitseq(rng) -> MuData:
    sizes = np.array(DBITSEQ_GROUPS)
    position = _tissue(sizes.sum(), rng)  # (pixels, 2) on the 50 x 50 grid
    region = _regions(position, sizes, rng)
    smooth = np.column_stack([_landscape(4, rng)[tuple(position.T)] for _ in range(8)])
    # (pixels, 8): capture efficiency, then gradients

    n_genes = 568
    parents = np.array([0, 1, 2, 2, 0, 0, 3, 3, 3, 1, 3, 1, 2])
    profile = _profiles(parents, n_genes, rng, parent=(0.15, 0.25), group=(0.08, 0.3))
    gradients = smooth[:, 1:] @ _loadings(7, n_genes, 0.33, 0.5, rng)
    log_depth = 0.55 * smooth[:, :1] + 0.5 * rng.normal(size=(len(region), 1))
    log_rate = rng.gumbel(-1.0, 0.75, n_genes) + profile[region] + gradients + log_depth
    counts = _counts(np.exp(log_rate), 0.12, rng)
    # Depth is known from all transcripts, of which these genes are a part.
    depth = np.exp(log_depth + rng.normal(0, 0.1, log_depth.shape))
    rna = np.log1p(counts / depth).astype(np.float32)

    protein_profile = _profiles(parents, 22, rng, parent=(0.7, 0.04), group=(0.7, 0.03))
    capture = 0.95 * standardised(log_depth) + 0.2 * rng.normal(size=log_depth.shape)
    log_protein = -0.4 + 0.45 * capture * rng.normal(1, 0.08, 22) + protein_profile[region]
    protein = np.exp(log_protein + rng.normal(0, 0.15, log_protein.shape))

    published = np.full(len(region), "train")  # scattered, but of each region as many as published
    for g, n in enumerate(DBITSEQ_TEST):
        published[rng.choice(np.flatnonzero(region == g), n, replace=False)] = "test"
    obs = {
        "cell_type": region.astype(str),
        "array_row": position[:, 0],
        "array_col": position[:, 1],
        "published_split": published,
    }
    modalities = {
        "rna": (rna, "gene"),
        "protein": (protein.astype(np.float32), "protein"),
        "niche": (np.zeros_like(rna), "gene"),
    }
    mdata = _assemble(modalities, obs, [f"{r}x{c}" for r, c in position])
    mdata.obsm["spatial"] = position
    recompute_niche([mdata], mdata)  # from the whole grid, as published
    return mdata


def _tissue(n_pixels: int, rng) -> np.ndarray:
    """Grid positions of a connected, irregular section: the top of a smooth random landscape."""
    grid = np.stack(np.meshgrid(np.arange(50), np.arange(50), indexing="ij"), axis=-1)
    centred = (grid - 24.5) / 24.5
    landscape = 0.35 * _landscape(6, rng)
    landscape -= (centred[..., 0] / 0.95) ** 2 + (centred[..., 1] / 0.75) ** 2
    landscape[rng.random((50, 50)) < 0.02] = -9  # channels that failed
    kept = np.sort(np.argsort(landscape.ravel())[-n_pixels:])
    return grid.reshape(-1, 2)[kept]


def _landscape(width: float, rng) -> np.ndarray:
    """Smooth noise of unit variance on the 50 x 50 grid; ``width`` in pixels."""
    field = gaussian_filter(rng.normal(size=(50, 50)), width)
    return (field - field.mean()) / field.std()


def _regions(position: np.ndarray, sizes: np.ndarray, rng) -> np.ndarray:
    """Contiguous regions of exactly the given sizes, by optimal transport of pixels to seeds."""
    seeds = position[[rng.integers(len(position))]]
    while len(seeds) < len(sizes):  # well apart, yet random: the best of a few candidates
        candidates = position[rng.integers(len(position), size=6)]
        gap = np.linalg.norm(candidates[:, None] - seeds[None], axis=-1).min(1)
        seeds = np.vstack([seeds, candidates[gap.argmax()]])
    cost = ((position[:, None] - seeds[None]) ** 2).sum(-1)  # squared: cells of a power diagram
    slots = np.repeat(np.arange(len(sizes)), sizes)
    return slots[linear_sum_assignment(cost[:, slots])[1]]


# --------------------------------------------------------------------------------- ATAC + gene


def _atacseq(rng) -> MuData:
    names, parents, share = _tree(ATACSEQ_GROUPS)
    batches = np.array(BMMC_BATCHES)
    batch = _shuffled([120] * len(batches), rng)
    donor_share = share * np.exp(rng.normal(0, 0.4, (len(batches), len(names))))
    donor_share /= donor_share.sum(1, keepdims=True)
    group = np.array([rng.choice(len(names), p=donor_share[b]) for b in batch])
    group[rng.choice(len(group), len(names), replace=False)] = np.arange(len(names))  # none absent
    site = np.array([int(b[1]) - 1 for b in batches])[batch]
    state = rng.normal(size=(len(group), 6))
    genes, peaks = (
        _log_rate(n, rng, base, parents, markers, group, state, [(site, sd), (batch, sd / 2)])
        for n, base, markers, sd in (
            (600, (-1.6, 1.3), ((0.25, 1.1), (0.15, 0.9)), 0.25),
            (1000, (-3.9, 0.9), ((0.4, 1.2), (0.2, 1.0)), 0.2),
        )
    )
    opened = rng.random(peaks.shape) < -np.expm1(-np.exp(peaks))  # at least one fragment
    modalities = {
        "atac": (csr_matrix(opened, dtype=np.float32), "peak"),
        "rna": (_normalise_and_scale(_counts(np.exp(genes), 0.4, rng)), "gene"),
    }
    obs = {"cell_type": names[group], "batch": batches[batch]}
    cells = zip(_names("cell", len(group)), batches[batch], strict=True)
    return _assemble(modalities, obs, [f"{cell}-{b}" for cell, b in cells])


# --------------------------------------------------------------------------------------- mop

# Mouse cortex: class -> {type: share in per cent}
MOP_GROUPS = {
    "excitatory": {
        "E2Rasgrf2": 22, "E3Rorb": 14, "E6Tle4": 12, "E4Il1rapl2": 6, "E5Galnt14": 5,
        "E4Thsd7a": 5, "E5Parm1": 3, "E3Rmst": 2.3, "E5Sulf1": 2.2, "Clau": 1.5, "E5Tshz2": 1,
    },
    "inhibitory": {"InP": 2.7, "InS": 2, "InV": 1.5, "InN": 1.5},
    "glia": {"Ast": 4.5, "OliM": 3, "OPC": 1.5, "Mic": 1.5, "OliI": 1, "Endo": 1, "Peri": 1},
    "rest": {"Mis": 11},
}  # fmt: skip


def _mop(rng) -> MuData:
    names, parents, share = _tree(MOP_GROUPS)
    batch = _shuffled([100] * len(MOP_BATCHES), rng)
    sizes = np.maximum(12, share / sum(share.tolist()) * len(batch)).astype(int)
    group = rng.choice(np.repeat(np.arange(len(share)), sizes), len(batch))
    state = rng.normal(size=(len(batch), 6))

    def counted(n: int, *base: float, own: float) -> csr_matrix:
        markers = (0.2, own), (0.1, own)
        rate = _log_rate(n, rng, base, parents, markers, group, state, [(batch, 0.05)])
        return csr_matrix(_counts(np.exp(rate), 0.4, rng))

    rna, atac = counted(300, -2.0, 1.3, own=1.2), counted(1000, -4.6, 0.7, own=0.8)
    peaks = [f"chr1_{1000 * i}_{1000 * i + 300}" for i in range(1, 1001)]
    obs = {"Ident": names[group], "batch": np.array(MOP_BATCHES)[batch]}
    cells = [f"{name}_{i:04d}" for i, name in enumerate(obs["batch"])]
    return _assemble({"rna": (rna, "gene"), "atac": (atac, peaks)}, obs, cells)


def _normalise_and_scale(counts: np.ndarray) -> np.ndarray:
    """Library-size normalise, log1p, standardise over all cells and clip at 4, as the originals."""
    total = counts.sum(1, keepdims=True)
    x = np.log1p(counts * (np.median(total) / np.maximum(total, 1)))
    sd = x.std(0, ddof=1)
    return np.minimum((x - x.mean(0)) / np.where(sd > 0, sd, 1), 4).astype(np.float32)


STANDINS = {  # how it is simulated, and how it compares in size
    "dbitseq": (_dbitseq, "of the size of the original (936 pixels; 568 + 22 + 568 features)"),
    "patchseq": (_patchseq, "of the size of the original (448 cells; 1252 + 68 + 514 features)"),
    "atacseq": (
        _atacseq,
        "smaller than the original: 1,560 of 69,249 cells (1/44), 1,000 of 13,634 peaks (1/14), "
        "600 of 4,000 genes (1/7)",
    ),
    "mop": (
        _mop,
        "smaller than the original: 1,200 of 10,309 nuclei (1/9), 300 of 1,677 genes (1/6), "
        "1,000 of 25,734 peaks (1/26)",
    ),
}
