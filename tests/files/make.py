"""Made the files beside it, once with each version of AnnData and MuData: `python make.py NAME`.

`old` is anndata 0.10.9, mudata 0.3.1, pandas 2.1; `new` anndata 0.13.4, mudata 0.4.1, pandas 3.1.
"""

import sys

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

N = 12
cells = [f"cell{i}" for i in range(N)]
obs = pd.DataFrame(
    {
        "leiden": np.arange(N) % 3,
        "doublet": np.arange(N) == 5,
        "age": pd.array([None, *range(1, N)], dtype="Int64"),
        "donor": pd.Categorical(["d1", "d2"] * 6, ["d2", "d1"]),
        "note": [None if i % 3 == 0 else f"n{i % 3}" for i in range(N)],
    },
    index=cells,
)
rna = ad.AnnData(
    sp.csr_matrix(np.arange(N * 6).reshape(N, 6) % 7, dtype=np.float32),
    obs=obs,
    var=pd.DataFrame({"symbol": list("ABCDEF")}, index=[f"gene{i}" for i in range(6)]),
)
rna.raw = rna[:, :4].copy()
rna.obsm["X_pca"] = np.arange(N * 2.0).reshape(N, 2)
X = np.arange(9 * 3, dtype=np.float32).reshape(9, 3) / 2
X[1, 2] = np.nan
protein = ad.AnnData(X, pd.DataFrame(index=cells[:9]), pd.DataFrame(index=["CD3", "CD4", "CD8"]))
rna.write_h5ad(f"{sys.argv[1]}.h5ad")
mdata = md.MuData({"rna": rna, "protein": protein})
mdata.obs["batch"] = pd.Categorical(["b1"] * 6 + ["b2"] * 6)
mdata.uns["about"] = "made for tests"
mdata.write_h5mu(f"{sys.argv[1]}.h5mu")
