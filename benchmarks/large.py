"""Cells that stay on disk: what it costs to train on them and to ask the model, by their number."""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest.mock import patch

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

import scmoe
from benchmarks.common import rounded, seconds
from scmoe import networks
from scmoe.record import peak_memory

SIZES = (10_000, 30_000, 100_000, 1_000_000)
COMPARED = 100_000  # also trained on in memory
CAP = 4 * 2**30  # bytes of its own that a process may hold; the largest file has more
GENES, PROTEINS, GROUPS, LATENT = 2000, 100, 20, 12
BLOCK = 20_000  # cells simulated at a time


def large(tiny: bool) -> dict[str, pd.DataFrame]:
    """Sparse counts of RNA and dense ones of protein, each size in a process of its own.

    One epoch over nine tenths of the cells, then groups and latents of the rest, and its RNA from
    protein, written to disk. A process that asks for more memory than the cap fails.
    """
    sizes, rows = (300, 600) if tiny else SIZES, []
    compared = sizes[0] if tiny else COMPARED
    with tempfile.TemporaryDirectory() as folder:
        for n in sizes:
            file = simulate(n, Path(folder) / f"{n}.h5mu")
            for backed in (True, False) if n == compared else (True,):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                    given = file, backed, torch.get_num_threads()
                    rows.append(alone.submit(_measure, *given).result())
            file.unlink()
    return {"Cells on disk": pd.DataFrame(rows)}


def simulate(n: int, path: Path, seed: int = 0) -> Path:
    """Write Poisson counts of ``GROUPS`` groups with common factors, a block of cells at a time."""
    rng = np.random.default_rng(seed)
    centres = 1.2 * rng.normal(size=(GROUPS, LATENT))
    genes, proteins = (s * rng.normal(size=(LATENT, f)) for s, f in ((0.3, GENES), (0.4, PROTEINS)))
    group, cells = rng.integers(GROUPS, size=n), pd.Index([f"c{i}" for i in range(n)])
    obs = pd.DataFrame(index=cells)
    mod = {
        name: ad.AnnData(sp.csr_matrix((n, f), dtype=np.float32), obs, pd.DataFrame(index=names))
        for name, f, names in (
            ("rna", GENES, [f"g{i}" for i in range(GENES)]),
            ("protein", PROTEINS, [f"p{i}" for i in range(PROTEINS)]),
        )
    }
    mdata = md.MuData(mod)
    mdata.obs["cell_type"] = pd.Categorical([f"type {g}" for g in group])
    mdata.write_h5mu(path)
    with h5py.File(path, "r+") as file:
        rna, size = file["mod/rna/X"], 0
        del rna["data"], rna["indices"], file["mod/protein/X"]
        for name, kind in (("data", "f4"), ("indices", "i4")):
            rna.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**18,))
        dense = file.create_dataset(
            "mod/protein/X", (n, PROTEINS), "f4", chunks=(min(n, 2048), PROTEINS)
        )
        dense.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for start in range(0, n, BLOCK):
            its = group[start : start + BLOCK]
            latent = centres[its] + 0.7 * rng.normal(size=(len(its), LATENT))
            drawn = sp.csr_matrix(rng.poisson(np.exp(np.clip(latent @ genes - 1.3, -6, 2.5))))
            rate = np.exp(np.clip(latent @ proteins + 1.5, -3, 5))
            dense[start : start + len(its)] = rng.poisson(rate)
            for name in ("data", "indices"):
                rna[name].resize((size + drawn.nnz,))
                rna[name][size:] = getattr(drawn, name)
            rna["indptr"][start + 1 : start + len(its) + 1] = drawn.indptr[1:] + np.int64(size)
            size += drawn.nnz
    return path


def _measure(file: Path, backed: bool, threads: int) -> dict:
    torch.set_num_threads(threads)
    if backed:
        _cap(CAP)
    warnings.simplefilter("ignore")
    config, took, said = scmoe.Config().replace(epochs=1, max_steps=None), {}, {}
    model, fit = scmoe.ScMoE(config=config), networks.fit

    def timed(*given, **options):
        took["epoch"] = seconds(lambda: said.update(network=fit(*given, **options)))
        return said["network"]

    def opened():
        mdata = scmoe.data.read(file, backed=backed)
        said["split"] = scmoe.data.split_mudata(mdata, "cell_type", test=0.1)

    took["opening"] = seconds(opened)
    split = said["split"]
    with patch.object(networks, "fit", timed):
        whole = seconds(lambda: model.fit(split, device="cpu", progress=False))

    def answers():
        groups = model.predict(split.test)["group"].astype(str)
        said["right"] = (groups == split.test.obs["cell_type"].astype(str)).mean()
        model.get_latent_representation(split.test)
        out = np.lib.format.open_memmap(
            file.with_suffix(".npy"), "w+", np.float32, (split.test.n_obs, GENES)
        )
        model.translate(split.test, "rna", "protein", out=out)

    took["answers"] = seconds(answers)
    n = split.train.n_obs + split.val.n_obs
    return {
        "cells": n + split.test.n_obs,
        "values": "on disk" if backed else "in memory",
        "file, GB": rounded(file.stat().st_size / 1e9),
        "opening, s": rounded(took["opening"]),
        "transform, components and linear part, s": rounded(whole - took["epoch"]),
        "an epoch, s": rounded(took["epoch"]),
        "trained on, cells a second": rounded(n / took["epoch"]),
        "answers for a tenth, s": rounded(took["answers"]),
        "accuracy": rounded(said["right"]),
        "peak memory, GB": rounded(peak_memory() / 1e9),
        "cap, GB": rounded(CAP / 1e9) if backed else None,
    }


def _cap(n_bytes: int) -> None:
    """Let the system refuse this process more memory of its own, where it can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
