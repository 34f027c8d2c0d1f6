"""Other authors' methods: run where installed, plainly refused where missing or out of place."""

import importlib.util

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmoe
from benchmarks.record import peers
from scmoe.data import DataError, split_mudata

PEERS = [peers.MOFA, peers.UniVI, peers.TotalVI, peers.MultiVI]
ALL = {"muon": peers.WNN, "matilda": peers.Matilda, **{p.package: p for p in PEERS}}


def counted(n_cells: int = 400) -> md.MuData:
    """Three groups of cells, of unlike size, with RNA, protein and peak counts."""
    rng = np.random.default_rng(0)
    group = rng.choice(3, n_cells, p=[0.5, 0.3, 0.2])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])

    def modality(names, level):
        means = np.exp(rng.normal(level, 1, (3, len(names))))[group]
        X = sparse.csr_matrix(rng.poisson(means).astype(np.float32))
        return ad.AnnData(X, obs, pd.DataFrame(index=names))

    mdata = md.MuData(
        {
            "rna": modality([f"gene{i}" for i in range(60)], 0),
            "protein": modality([f"protein{i}" for i in range(10)], 2),
            "atac": modality([f"chr1:{i * 100}-{i * 100 + 50}" for i in range(80)], -1),
        }
    )
    mdata.obs["cell_type"] = [f"type{g}" for g in group]
    return mdata


@pytest.fixture(scope="module")
def split():
    return split_mudata(counted())


@pytest.mark.parametrize("package", ALL)
def test_a_missing_library_is_named_with_the_way_to_install_it(package, split, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"scmoe\[peers\]") as error:
        ALL[package]().fit(split)
    assert package in str(error.value)


def installed(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


def needing_it(methods):
    return [pytest.param(m, marks=installed(m.package), id=m.method) for m in methods]


@pytest.mark.slow
@pytest.mark.parametrize("method", needing_it([*PEERS, peers.Matilda]))
def test_a_peer_finds_groups_that_are_plain_to_see(method, split):
    model = method().fit(split)
    table = scmoe.evaluate(model, split.test)
    assert table.set_index("metric")["value"]["accuracy"] >= 0.9
    probabilities = model.predict(split.test)[model.groups_]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", needing_it([peers.MOFA, peers.UniVI]))
def test_a_peer_translates_without_reading_the_target(method, split):
    model = method("unsupervised").fit(split)
    source = md.MuData({"rna": split.test["rna"]})
    predicted = model.translate(source, "protein", "rna")
    assert np.array_equal(predicted, model.translate(split.test, "protein", "rna"))
    table = scmoe.evaluate(model, split.test)
    assert table[table["metric"] == "r2"]["value"].mean() > 0.1
    assert set(table["task"]) == {"unsupervised", "translation"}


@installed("mofapy2")
def test_one_fit_serves_both_tasks(split):
    both = peers.MOFA().fit(split).for_task("unsupervised", split)
    alone = peers.MOFA("unsupervised").fit(split)
    pd.testing.assert_frame_equal(both.predict(split.test), alone.predict(split.test))


@pytest.mark.slow
@installed("muon")
def test_weighted_nearest_neighbours_find_groups(split):
    table = scmoe.evaluate(peers.WNN().fit(split), split.test)
    assert table.set_index("metric")["value"]["ari"] >= 0.9


@installed("scvi")
def test_count_models_refuse_what_is_not_counts(tiny):
    with pytest.raises(DataError, match="protein.*not counts"):
        peers.TotalVI().fit(split_mudata(tiny))
    with pytest.raises(DataError, match="peak counts.*morph"):
        peers.MultiVI().fit(split_mudata(tiny))


@installed("mofapy2")
def test_cells_that_lack_a_modality_are_refused(tiny):
    gaps = md.MuData({"rna": tiny["rna"], "morph": tiny["morph"][10:].copy()})
    gaps.obs["cell_type"] = tiny.obs["cell_type"]
    with pytest.raises(DataError, match="morph"):
        peers.MOFA().fit(split_mudata(gaps))


@installed("matilda")
def test_matilda_refuses_data_without_rna(tiny):
    tiny = md.MuData({"morph": tiny["morph"], "protein": tiny["protein"]})
    tiny.obs["cell_type"] = [f"type{i % 3}" for i in range(60)]
    with pytest.raises(DataError, match="RNA"):
        peers.Matilda().fit(split_mudata(tiny))
