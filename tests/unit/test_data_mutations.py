"""Whatever happened to a MuData on its way here: it is used, or refused with a DataError."""

import functools
import itertools
import tempfile
import warnings
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from scmoe.data import DataError, Transform, check, split_mudata
from tests.conftest import make_tiny

DTYPES = ["float16", "float32", "float64", "int8", "int64", "uint16", "bool", "object", "U3",
          "complex64"]  # fmt: skip
LAYOUTS = [sp.csr_matrix, sp.csc_matrix, sp.csr_array, np.asfortranarray]
FOLDER, NUMBER = tempfile.TemporaryDirectory(), itertools.count()
SPECIAL = [np.nan, np.inf, -np.inf, -1.0, 0.0, 0.5, 1e30, 1e300, 1e-300]


def _dense(X):
    return X.toarray() if sp.issparse(X) else np.array(X)


def cast(adata, draw):
    dtype = draw(st.sampled_from(DTYPES))
    adata.X = _dense(adata.X).astype(dtype)


def store(adata, draw):
    adata.X = draw(st.sampled_from(LAYOUTS))(_dense(adata.X))


def put_special(adata, draw):
    X = _dense(adata.X).astype(np.float64)
    value = draw(st.sampled_from(SPECIAL))
    where = draw(st.sampled_from(["one value", "a cell", "a feature", "everywhere"]))
    rows, columns = {
        "one value": (0, 0),
        "a cell": (0, slice(None)),
        "a feature": (slice(None), 0),
        "everywhere": (slice(None), slice(None)),
    }[where]
    if X.size:
        X[rows, columns] = value
    adata.X = sp.csr_matrix(X) if draw(st.booleans()) else X


def repeat_names(adata, draw):
    names = draw(st.sampled_from(["obs_names", "var_names"]))
    values = list(getattr(adata, names))
    values[-1:] = values[:1]
    setattr(adata, names, values)


def rename(adata, draw):
    names = draw(st.sampled_from(["obs_names", "var_names"]))
    setattr(adata, names, [f"new{i}" for i in range(len(getattr(adata, names)))])


def remove_x(adata, draw):
    adata.X = None


def claim(adata, draw):
    adata.uns["kind"] = draw(
        st.sampled_from(["counts", "peaks", "protein", "binary", "scaled", "nonsense", 3])
    )


IN_PLACE = [cast, store, put_special, repeat_names, rename, remove_x, claim]


def take_part(adata, draw):
    rows = draw(st.sampled_from([slice(0, 0), slice(0, 1), slice(0, 40), slice(None, None, -1)]))
    columns = draw(st.sampled_from([slice(None), slice(0, 0), slice(0, 1), slice(None, None, -1)]))
    part = adata[rows, columns]
    return part if draw(st.booleans()) else part.copy()


def transpose(adata, draw):
    return adata.T.copy()


def back(adata, draw):
    path = Path(FOLDER.name) / f"{next(NUMBER)}.h5ad"
    adata.write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


REPLACING = [take_part, transpose, back]


def relabel(mdata, draw):
    n = mdata.n_obs
    values = {
        "constant": ["one"] * n,
        "singles": [f"group{i}" for i in range(n)],
        "int": np.arange(n) % 3,
        "float": np.arange(n) % 3 / 2,
        "missing": [None, "a", "b"] * n,
        "bool": np.arange(n) % 2 == 0,
        "absent": None,
    }
    values = values[draw(st.sampled_from(list(values)))]
    if values is None:
        del mdata.obs["cell_type"]
    else:
        mdata.obs["cell_type"] = list(values[:n])


base = functools.cache(make_tiny)


@st.composite
def mutated(draw):
    """A small MuData after up to three accidents."""
    mdata = base(draw(st.sampled_from([6, 30])))
    mod = {name: adata.copy() for name, adata in mdata.mod.items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(list(mod)))
        accident = draw(st.sampled_from(IN_PLACE + REPLACING))
        try:
            if accident in REPLACING:
                mod[name] = accident(mod[name], draw)
            else:
                mod[name] = mod[name].copy()
                accident(mod[name], draw)
        except Exception:  # not even AnnData takes that
            mod[name] = mdata.mod[name].copy()
    try:
        changed = mudata.MuData(mod)
    except Exception:  # nor MuData
        reject()
    changed.obs["cell_type"] = mdata.obs["cell_type"].reindex(changed.obs_names).astype(object)
    if draw(st.booleans()):
        relabel(changed, draw)
    if draw(st.integers(0, 4)) == 0:
        changed.mod[name] = mdata.mod[name][: mdata.n_obs // 2]  # and not told the MuData
    return changed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(mdata=mutated(), key=st.sampled_from(["cell_type", None]))
def test_a_mutated_mudata_is_used_or_refused_with_a_data_error(mdata, key):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(mdata, key)
            split = split_mudata(mdata, key)
            transform = Transform().fit(split.train)
            scaled = transform.transform(split.test)
        except DataError:
            return
    for name, adata in scaled.mod.items():
        assert adata.X.dtype == np.float32
        values = adata.X.data if sp.issparse(adata.X) else adata.X
        assert np.isfinite(values).all()
        measured = split.train.mod[name].X
        known = slice(None) if sp.issparse(measured) else ~np.isnan(measured.astype(float)).all(0)
        assert np.isfinite(transform.inverse(adata.X, name)[:, known]).all()
        pd.testing.assert_index_equal(adata.var_names, transform.features[name], check_names=False)
