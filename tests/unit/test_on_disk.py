"""Cells that stay in their file: the same answers as in memory, without reading the file whole."""

import mudata
import numpy as np
import pytest
from anndata import AnnData

import scmoe
from scmoe import data, parts
from scmoe.data.blocks import Rows, in_file, matrix, row_blocks
from tests.conftest import make_tiny

CONFIG = scmoe.Config().replace(members=2, d=16, n_experts=2, hidden=16, epochs=2, batch_size=16)


@pytest.fixture(params=["h5mu", "zarr", "mudata's own reader"])
def both(request, tmp_path, monkeypatch):
    """The same cells, in memory and in a file; blocks are of few rows."""
    monkeypatch.setattr("scmoe.data.blocks.BLOCK_ENTRIES", 400)
    monkeypatch.setattr(parts, "SAMPLE", 40)
    path = tmp_path / ("cells.zarr" if request.param == "zarr" else "cells.h5mu")
    cells = make_tiny(120)
    (cells.write_zarr if request.param == "zarr" else cells.write_h5mu)(path)
    own = request.param.startswith("mudata")
    left = mudata.read_h5mu(path, backed="r") if own else data.read(path, backed=True)
    return data.read(path), left


def test_a_split_leaves_cells_in_their_file_and_the_model_is_the_same(both, tmp_path):
    models, splits = [], []
    for cells in both:
        split = data.split_mudata(cells, "cell_type", seed=0)
        splits.append(split)
        models.append(scmoe.ScMoE(config=CONFIG).fit(split, "cpu", progress=False))
    memory, disk = splits
    assert all(in_file(adata) for adata in disk.train.mod.values())
    assert not any(in_file(adata) for adata in memory.train.mod.values())
    ours, theirs = models
    assert ours.predict(memory.test).equals(theirs.predict(disk.test))
    assert ours.predict(both[0]).equals(theirs.predict(both[1]))
    table = [scmoe.evaluate(m, s.test, "cell_type") for m, s in zip(models, splits, strict=True)]
    assert table[0].equals(table[1])
    told = ours.translate(memory.test, "rna", "protein")
    out = np.lib.format.open_memmap(tmp_path / "rna.npy", "w+", np.float32, told.shape)
    theirs.translate(disk.test, "rna", "protein", out=out)
    np.testing.assert_array_equal(out, told)


def test_cells_that_lack_a_modality_stay_in_their_file_too(tmp_path):
    cells = make_tiny(60)
    mod = {name: cells[name].copy() for name in cells.mod}
    mod["rna"] = mod["rna"][5:].copy()
    path = data.write(mudata.MuData(mod), tmp_path / "cells.h5mu")
    parts_of = [
        data.split_mudata(cells, None, test=["cell3", "cell7", "cell20"], seed=0).test
        for cells in (data.read(path), data.read(path, backed=True))
    ]
    for name in mod:
        memory, disk = (part[name] for part in parts_of)
        assert in_file(disk) and memory.n_obs == disk.n_obs == (2 if name == "rna" else 3)
        rows = memory.obs_names.get_indexer(disk.obs_names)
        X, other = (getattr(a.X, "toarray", lambda a=a: a.X)() for a in (memory, disk))
        np.testing.assert_array_equal(X[rows], other)


def test_of_a_file_no_more_than_a_block_is_read_at_once(monkeypatch):
    monkeypatch.setattr("scmoe.data.blocks.BLOCK_ENTRIES", 40)
    read = []

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            if isinstance(rows, slice):
                read.append(len(range(*rows.indices(len(self)))))
            return np.asarray(self)[rows]

    X = np.arange(400.0).reshape(100, 4)
    rows = np.array([1, 2, 55, 56, 99, 30])
    np.testing.assert_array_equal(Rows(X.view(Watched), rows)[:], X[rows])
    assert max(read) <= 10 and sum(read) < 10
    assert [len(block) for _, block in row_blocks(Rows(X, np.arange(0, 100, 4)))] == [10, 10, 5]


@pytest.mark.parametrize("order", [[3, 1, 90, 4, 4, 0], [], list(range(100))])
def test_rows_come_in_the_order_asked_for(both, order):
    memory, disk = both
    for name, adata in disk.mod.items():
        n = adata.n_obs
        wanted = np.array([row % n for row in order], int)
        found = Rows(adata.X, wanted)[:]
        expected = memory[name].X[memory[name].obs_names.get_indexer(adata.obs_names)][wanted]
        dense = [getattr(X, "toarray", lambda X=X: X)() for X in (found, expected)]
        np.testing.assert_array_equal(*dense)


def test_some_features_of_a_file_are_read_into_memory(both):
    adata = next(iter(both[1].mod.values()))
    few = AnnData(adata.X, adata.obs, adata.var)[:, :3]
    assert not in_file(few) and matrix(few).shape == (adata.n_obs, 3)
