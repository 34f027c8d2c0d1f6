"""From a cell's true molecules to what the instruments report: capture, libraries, drop-out."""

from dataclasses import dataclass

import numpy as np

MODALITIES = ("dna", "pre_mrna", "mrna", "protein")
CLOSED = 1e-3  # accessibility that reads as zero


@dataclass(frozen=True)
class Setting:
    """Technical noise; molecules are pre-mRNA, mRNA and protein."""

    library_sd: float  # of the log library size, which a cell's molecules share
    library_by_content: bool  # cells with more molecules get the larger libraries, rank by rank
    capture: tuple[float, ...]  # mean share seen of open loci, and of each modality's molecules
    cell_sd: float = 0.0  # of the log efficiency, from cell to cell
    value_sd: float = 0.0  # and from value to value
    assay_sd: float = 0.0  # genes are seen with a share exp(-|normal(0, assay_sd)|), by modality
    dropout: float = 0.0  # chance that a count is lost
    dna_precision: float = 400.0  # of the beta distribution around the true accessibility


SETTINGS = {
    # Adjusted to dyngen's reference output, in which libraries rank as the cells' content does.
    "default": Setting(0.71, True, (1.0, 1.0, 1.0, 1.0)),
    # Adjusted so that logistic regression does about equally well, and badly, from each modality.
    "hard": Setting(0.68, False, (0.3, 0.04, 0.02, 1.5e-5), 0.2, 0.3, 1.5, 0.2, 2.0),
    # Between the two, for sets on which nothing was chosen.
    "medium": Setting(0.7, False, (0.6, 0.2, 0.14, 4e-3), 0.1, 0.2, 0.8, 0.1, 20.0),
}


def measure(truth: np.ndarray, setting: Setting, rng) -> dict[str, np.ndarray]:
    """Turn true states `(4, n_cells, n_genes)` into what the instruments report."""
    n_cells, n_genes = truth.shape[1:]
    seen = np.exp(-np.abs(rng.normal(0, setting.assay_sd, (4, n_genes))))
    seen *= np.array(setting.capture)[:, None]
    open_, closed = np.maximum(truth[0], 1e-6), np.maximum(1 - truth[0], 1e-6)
    dna = rng.beta(setting.dna_precision * open_, setting.dna_precision * closed)
    missed = rng.random(dna.shape) >= seen[0]
    dna[(np.minimum(truth[0], dna) < CLOSED) | missed] = 0
    measured = {"dna": dna.astype(np.float32)}
    content = truth[1:].sum((0, 2))
    library = _lognormal(rng, setting.library_sd, content.shape)
    if setting.library_by_content:
        library = np.sort(library)[content.argsort().argsort()]
    size = library / np.maximum(content, 1)
    size = (size / size.mean())[:, None]  # share of its molecules in a cell's library; mean one
    for modality, molecules, share in zip(MODALITIES[1:], truth[1:], seen[1:], strict=True):
        mean = molecules * size * share.astype(np.float32)
        mean *= _lognormal(rng, setting.cell_sd, (n_cells, 1))
        mean *= _lognormal(rng, setting.value_sd, mean.shape)
        mean *= rng.random(mean.shape) >= setting.dropout
        measured[modality] = rng.poisson(mean).astype(np.float32)
    return measured


def _lognormal(rng, sd: float, shape) -> np.ndarray:
    """Factors of mean one."""
    return np.exp(sd * rng.standard_normal(shape, dtype=np.float32) - sd**2 / 2)
