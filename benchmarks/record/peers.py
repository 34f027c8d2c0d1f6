"""Other authors' methods, through their own libraries (`pip install 'scmoe[peers]'`).

Each is trained as its authors advise, on the same split and transform; a library that models
counts gets the counts. A method without a classifier of its own gets the same one as every other:
logistic regression on its latent space (k-means where no label may be seen). A method that cannot
be used on a data set says why, as a `DataError`, before it trains.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import torch
from mudata import MuData
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scmoe.baselines.clustering import N_NEIGHBORS, Leiden
from scmoe.clusters import communities
from scmoe.data import DataError, Split
from scmoe.data.blocks import matrix, row_blocks, values
from scmoe.method import Method, Translator

FEW_CELLS = 5000
N_LATENT = 20
RNA, PROTEIN, PEAKS = ("rna", "mrna", "gex"), ("protein", "adt"), ("atac", "peaks")


def require(package: str, method: str):
    """Import what only one method needs; the `ImportError` says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{method} needs {package}, which is not installed: pip install 'scmoe[peers]'"
        ) from error


class _Peer(Method):
    """A latent space from a library, and groups from that; `task` as for `scmoe.ScMoE`."""

    package: str

    def __init__(
        self,
        task: str = "supervised",
        modalities: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__(modalities, seed)
        if task not in ("supervised", "unsupervised"):
            raise ValueError(f"task={task!r} must be 'supervised' or 'unsupervised'")
        self.task = task

    def fit(self, split: Split):
        """Fit to training cells, early stopping on validation cells where the method has it.

        A library that is not installed is an `ImportError`, a method that does not apply to these
        modalities a `DataError`.
        """
        library = require(self.package, self.method)
        self._start(split)
        self._check(split)
        with _quiet():
            self._train(library, split)
        return self._fit_groups(split)

    def for_task(self, task: str, split: Split):
        """Give a copy for the other task: the latent space saw no label, and is kept."""
        other = copy.copy(self)
        other.task = task
        other._start(split)
        other._check(split)
        return other._fit_groups(split)

    def _check(self, split: Split) -> None:
        for part in (split.train, split.val):
            for m in self.modalities_:
                if part[m].n_obs < part.n_obs:
                    raise DataError(f"{self.method} needs every cell in modality '{m}'")

    def _fit_groups(self, split: Split):
        parts = (split.train, split.val)
        latent = np.concatenate([self.get_latent_representation(part) for part in parts])
        if self.task == "unsupervised":  # a latent space's own scale is part of what it says
            self.head_ = KMeans(len(self.groups_), n_init=20, random_state=self.seed_).fit(latent)
            return self
        labels = np.concatenate([part.obs[split.label_key].astype(str) for part in parts])
        self.head_ = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self.head_.fit(latent, labels)
        return self

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell: column ``group``, then a probability per group."""
        latent = self.get_latent_representation(mdata)
        if self.task == "unsupervised":
            probabilities = np.eye(len(self.groups_))[self.head_.predict(latent)]
        else:
            probabilities = self.head_.predict_proba(latent)
        return self._group_table(probabilities, mdata.obs_names)

    def _scaled(self, mdata: MuData, modalities: Sequence[str]) -> dict[str, np.ndarray]:
        """Scaled values `(n_cells, n_features)` by modality, dense: the libraries ask for that."""
        matrices, present = self._matrices(mdata, modalities)
        if lacking := [m for m in modalities if not present[m].all()]:
            raise DataError(f"{self.method} needs every cell in modality '{lacking[0]}'")
        return {m: x.toarray() if sparse.issparse(x) else x for m, x in matrices.items()}

    def _role(self, names: Sequence[str], what: str) -> str:
        """The modality that plays a part, found by its name."""
        found = [m for m in self.modalities_ if m.lower() in names]
        if not found:
            raise DataError(
                f"{self.method} needs {what}: a modality called {' or '.join(names)}; "
                f"there are: {', '.join(self.modalities_)}"
            )
        return found[0]


class MOFA(Translator, _Peer):
    """MOFA+ (Argelaguet et al. 2020): factors shared by all modalities, Gaussian on scaled values.

    New cells' factors are their posterior mean given the fitted weights and noise, from whichever
    modalities are there; a translation is those factors times the target's weights.
    """

    method, package = "MOFA+", "mofapy2"

    def _train(self, library, split: Split) -> None:
        entry_point = require("mofapy2.run.entry_point", self.method).entry_point()
        parts = [self._scaled(part, self.modalities_) for part in (split.train, split.val)]
        views = {m: np.concatenate([part[m] for part in parts]) for m in self.modalities_}
        self.means_ = {m: x.mean(0) for m, x in views.items()}
        entry_point.set_data_options(scale_views=False)
        entry_point.set_data_matrix(
            [[views[m] - self.means_[m]] for m in self.modalities_], views_names=self.modalities_
        )
        entry_point.set_model_options(factors=N_LATENT)
        entry_point.set_train_options(iter=500, seed=self.seed_, quiet=True)
        entry_point.build()
        entry_point.run()
        nodes = entry_point.model.nodes
        weights = [w["E"] for w in nodes["W"].getExpectations()]
        precision = [t["E"][0] for t in nodes["Tau"].getExpectations()]
        self.weights_ = dict(zip(self.modalities_, weights, strict=True))  # (n_features, k)
        self.precision_ = dict(zip(self.modalities_, precision, strict=True))  # (n_features,)

    def _factors(self, mdata: MuData, modalities: Sequence[str]) -> np.ndarray:
        k = next(iter(self.weights_.values())).shape[1]
        precision, evidence = np.eye(k), np.zeros((mdata.n_obs, k))
        for m, x in self._scaled(mdata, modalities).items():
            weighted = self.weights_[m] * self.precision_[m][:, None]
            precision += weighted.T @ self.weights_[m]
            evidence += (x - self.means_[m]) @ weighted
        return np.linalg.solve(precision, evidence.T).T

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Factors `(n_cells, k)`."""
        return self._factors(mdata, self._available(mdata))

    def _told(self, mdata, target, sources):
        """From the factors of the sources."""
        predicted = self._factors(mdata, sources) @ self.weights_[target].T + self.means_[target]
        return lambda rows: predicted[rows], np.ones(len(predicted), bool)


class UniVI(Translator, _Peer):
    """UniVI (Ashford et al. 2026): a variational autoencoder per modality, fused by experts.

    Gaussian likelihoods on scaled values (Bernoulli for 0/1 peaks), the authors' layers and
    annealing, early stopping on validation cells.
    """

    method, package = "UniVI", "univi"

    def _train(self, univi, split: Split) -> None:
        workflows = require("univi.workflows", self.method)
        parts = [self._annotated(part, self.modalities_) for part in (split.train, split.val)]
        kinds = self.transform_.kinds
        likelihoods = {m: "bernoulli" if kinds[m] == "binary" else "gaussian" for m in kinds}
        configs = [
            univi.ModalityConfig(m, x.n_vars, [256, 128], [128, 256], likelihood=likelihoods[m])
            for m, x in parts[0].items()
        ]
        config = univi.UniVIConfig(
            N_LATENT, configs, beta=1.25, gamma=4.35, encoder_dropout=0.1,
            decoder_dropout=0.05, kl_anneal_start=50, kl_anneal_end=85, align_anneal_start=75,
            align_anneal_end=110,
        )  # fmt: skip
        training = univi.TrainingConfig(
            n_epochs=400, lr=1e-3, weight_decay=1e-4, early_stopping=True, patience=50,
            best_epoch_warmup=110, seed=self.seed_,
        )  # fmt: skip
        size = min(256, split.train.n_obs // 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            self.model_ = univi.UniVIMultiModalVAE(config)
            loaders = (
                workflows.make_loader(
                    parts[0], batch_size=size, shuffle=True, drop_last=True, seed=self.seed_
                ),
                workflows.make_loader(parts[1], batch_size=1024),
            )
            univi.UniVITrainer(self.model_, *loaders, training).fit()
        self.model_.eval()

    def _annotated(self, mdata: MuData, modalities: Sequence[str]) -> dict[str, ad.AnnData]:
        scaled = self._scaled(mdata, modalities)
        obs = pd.DataFrame(index=mdata.obs_names)
        return {m: ad.AnnData(x.astype(np.float32), obs) for m, x in scaled.items()}

    def _latent(self, mdata: MuData, modalities: Sequence[str]) -> np.ndarray:
        parts = self._annotated(mdata, modalities)
        with torch.no_grad():
            inputs = {m: torch.as_tensor(part.X) for m, part in parts.items()}
            encoded = self.model_.encode_modalities(inputs)
            return self.model_.mixture_of_experts(*encoded)[0].numpy()

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Mean of the fused posterior `(n_cells, n_latent)`."""
        return self._latent(mdata, self._available(mdata))

    def _told(self, mdata, target, sources):
        """Encode the sources, decode the target."""
        evaluation = require("univi.evaluation", self.method)
        latent = self._latent(mdata, sources)
        predicted = evaluation.decode_from_latent(self.model_, latent)[target]
        return lambda rows: predicted[rows], np.ones(len(predicted), bool)


class _CountModel(_Peer):
    """A model of scvi-tools: RNA counts beside another modality's, groups from its latent space.

    No translation: what it decodes are rates, which have no place in scaled units.
    """

    package = "scvi"
    model: str
    names: tuple[str, ...]
    what: str
    keys: dict[str, str]  # what the library calls the modalities

    def _check(self, split: Split) -> None:
        self.roles_ = {
            "rna": self._role(RNA, "RNA counts"),
            "other": self._role(self.names, self.what),
        }
        self.modalities_ = list(self.roles_.values())
        super()._check(split)
        for m in self.modalities_:
            blocks = (values(block) for _, block in row_blocks(matrix(split.train[m])))
            if not all((block == np.rint(block)).all() and (block >= 0).all() for block in blocks):
                raise DataError(
                    f"{self.method} models counts, but modality '{m}' of {split.name} is not counts"
                )

    def _train(self, scvi, split: Split) -> None:
        scvi.settings.seed = self.seed_
        kind = getattr(scvi.model, self.model)
        cells = self._counts([split.train, split.val])
        kind.setup_mudata(cells, modalities=self.keys)
        n, sizes = split.train.n_obs, {"n_latent": N_LATENT}
        parts = {"external_indexing": [np.arange(n), np.arange(n, cells.n_obs), np.array([], int)]}
        if self.model == "MULTIVI":
            sizes |= {"n_genes": cells["rna"].n_vars, "n_regions": cells["other"].n_vars}
            parts = {"datasplitter_kwargs": parts}
        if self.model == "MULTIVI" and n < FEW_CELLS:
            parts["lr"] = 1e-3  # its 500 epochs at the default 1e-4 are too few steps
        self.model_ = kind(cells, **sizes)
        self.model_.train(early_stopping=True, accelerator="cpu", **parts)

    def _counts(self, parts: list[MuData]) -> MuData:
        """The two modalities as measured, kept features only, under the names the library gets."""
        joined = {}
        for role, m in self.roles_.items():
            features = self.transform_.features[m]
            joined[role] = ad.concat([part[m][part.obs_names, features].copy() for part in parts])
            joined[role].X = sparse.csr_matrix(joined[role].X, dtype=np.float32)
        if self.model == "TOTALVI":  # its protein background is fitted by a dense mixture
            joined["other"].X = joined["other"].X.toarray()
        joined["other"].var_names = "other:" + joined["other"].var_names
        cells = MuData(joined)
        cells.obs["_indices"] = np.arange(cells.n_obs)  # MultiVI looks for it in new cells too
        return cells

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Mean of the posterior `(n_cells, n_latent)`."""
        with _quiet():
            return self.model_.get_latent_representation(self._counts([mdata]))


class TotalVI(_CountModel):
    """totalVI (Gayoso et al. 2021): RNA and protein counts."""

    method, model = "totalVI", "TOTALVI"
    names, what = PROTEIN, "protein counts"
    keys = {"rna_layer": "rna", "protein_layer": "other"}


class MultiVI(_CountModel):
    """MultiVI (Ashuach et al. 2023): RNA counts and peaks."""

    method, model = "MultiVI", "MULTIVI"
    names, what = PEAKS, "peak counts"
    keys = {"rna_layer": "rna", "atac_layer": "other"}


class Matilda(Method):
    """Matilda (Liu et al. 2023): a multi-task network for RNA, with protein, peaks or both.

    It takes values as measured, and scales whatever cells it is given by their own statistics.
    It reports each cell's most probable group; the rest of its probability is shared equally.
    """

    method, package = "Matilda", "matilda"

    def fit(self, split: Split) -> Matilda:
        """Fit to training and validation cells: the number of epochs is fixed (the authors' 30)."""
        matilda = require(self.package, self.method)
        self._start(split)
        names = {"rna": RNA, "adt": PROTEIN, "atac": PEAKS}
        self.roles_ = {
            role: next(m for m in self.modalities_ if m.lower() in known)
            for role, known in names.items()
            if any(m.lower() in known for m in self.modalities_)
        }
        if "rna" not in self.roles_:
            raise DataError(f"Matilda needs RNA; there are: {', '.join(self.modalities_)}")
        self.modalities_ = list(self.roles_.values())
        parts = [self._inputs(part) for part in (split.train, split.val)]
        labels = [part.obs[split.label_key].astype(str) for part in (split.train, split.val)]
        together = {role: np.concatenate([p[role] for p in parts]) for role in self.roles_}
        with _quiet():
            self.model_ = matilda.train(
                **together, labels=np.concatenate(labels), seed=self.seed_ + 1, device="cpu"
            )
        return self

    def _inputs(self, mdata: MuData) -> dict[str, np.ndarray]:
        parts = {}
        for role, m in self.roles_.items():
            if lacking := mdata.n_obs - mdata[m].n_obs:
                raise DataError(f"Matilda needs every cell in modality '{m}'; {lacking} lack it")
            X = mdata[m][mdata.obs_names, self.transform_.features[m]].X
            parts[role] = np.asarray(X.toarray() if sparse.issparse(X) else X, np.float32)
            if parts[role].min() < 0:
                raise DataError(f"Matilda takes logarithms, but modality '{m}' has values below 0")
        return parts

    def predict(self, mdata: MuData) -> pd.DataFrame:
        """Group of every cell: column ``group``, then a probability per group."""
        matilda = require(self.package, self.method)
        with _quiet():
            result = matilda.task(
                **self._inputs(mdata), model=self.model_, classification=True, query=True
            )
        found = result.predictions.sort_values("cell_id")
        best = pd.Index(self.groups_).get_indexer(found["predicted"].astype(str))
        sure = found["probability"].to_numpy().clip(1 / len(self.groups_), 1)
        rest = (1 - sure) / (len(self.groups_) - 1)
        probabilities = np.repeat(rest[:, None], len(self.groups_), 1)
        probabilities[np.arange(len(best)), best] = sure
        return self._group_table(probabilities, mdata.obs_names)


class WNN(Leiden):
    """Leiden communities of muon's weighted nearest neighbours (Hao et al. 2021).

    A new cell's probabilities are the shares of its nearest cells in each modality, weighted by
    the modality weights of those cells. Needs `muon`, and every cell in every modality.
    """

    method = "weighted nearest neighbours + Leiden"

    def _cluster(self, blocks):
        muon, scanpy = require("muon", "WNN"), require("scanpy", "WNN")
        cells = [str(i) for i in range(len(next(iter(blocks.values()))))]
        parts = {m: ad.AnnData(z, pd.DataFrame(index=cells)) for m, z in blocks.items()}
        for part in parts.values():
            scanpy.pp.neighbors(part, N_NEIGHBORS, use_rep="X", random_state=self.seed_)
        mdata = MuData(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            muon.pp.neighbors(mdata, n_neighbors=N_NEIGHBORS, random_state=self.seed_)
        self._blocks_ = blocks
        self.weights_ = {m: mdata.obs[f"{m}:mod_weight"].to_numpy() for m in blocks}
        graph = mdata.obsp["connectivities"]
        self.clusters_ = communities(graph + graph.T, len(self.groups_), self.seed_)

    def _assign(self, blocks):
        total = 0
        for m, known in self._blocks_.items():
            near = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(known))).fit(known)
            weight = self.weights_[m][near.kneighbors(blocks[m], return_distance=False)].mean(1)
            total = total + weight[:, None] * self._votes(known, blocks[m])
        return total / total.sum(1, keepdims=True)


@contextlib.contextmanager
def _quiet():
    """Keep libraries from printing, warning and drawing bars into a page."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        stack.callback(logging.disable, level)
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield
