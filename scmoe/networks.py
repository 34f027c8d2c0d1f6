"""scMoE experts: the ensemble of networks alone, with the interface of any method."""

from __future__ import annotations

import json
import math
import os
import re
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import torch
from mudata import MuData
from sklearn.decomposition import PCA
from torch import Tensor

from scmoe import paper
from scmoe.config import Config, Task
from scmoe.data import Split
from scmoe.data.check import expect_known
from scmoe.fit import fit
from scmoe.keep import digest
from scmoe.nn.cells import Cells
from scmoe.nn.network import Network
from scmoe.parts import Known, OutOfFold, Part, Subset
from scmoe.step import EVAL_BATCH

FEW_CELLS = 1000  # beyond, less of the input is dropped out: the cells themselves are many


class Experts(Part):
    """An ensemble of sparse mixture-of-experts networks, trained end to end on its own losses.

    Each of its members holds out another part of the training cells and is stopped on it; what
    they say is averaged.

    Parameters
    ----------
    task, config, seed
        As of :class:`scmoe.ScMoE`.

    Attributes
    ----------
    network_ : the members, as one :class:`torch.nn.Module`.
    history_ : DataFrame, one row an epoch.
    """

    method = "scMoE experts"

    def __init__(self, task: Task = "supervised", config: Config | None = None, seed: int = 0):
        if task not in ("supervised", "unsupervised"):
            raise ValueError(f"task={task!r} must be 'supervised' or 'unsupervised'.")
        super().__init__(None, seed)
        self.task, self.config = task, config or Config()
        self.n_held_out = self.config.model.members
        self.n_folds = max(self.n_folds, self.n_held_out)
        if self.published:
            self.method = "scMoE published"

    @property
    def published(self) -> bool:
        """Whether this is the published architecture, which reads features as they are."""
        return self.config.model.n_components is None

    def _components_of(self, matrices: dict, has: dict) -> dict:
        return matrices if self.published else super()._components_of(matrices, has)

    def _prepare(self, split: Split) -> Known:
        if not self.published:
            for name in self.config.train.input_noise:  # of the published ones not all may be used
                expect_known("input_noise", name, split.modalities)
            return super()._prepare(split)
        hold_out, own = self.config.train.hold_out, self.config.train.own_scaling
        self._start(split, paper.transform(split, hold_out) if own else None)
        self.info_["protocol"] = "paper"
        matrices, present, labels = self._training_cells(split)
        self.components_ = {m: Features(x.shape[1]) for m, x in matrices.items()}
        self.rare_ = np.zeros(len(self.groups_))
        fold = np.full(len(labels), -1)
        if hold_out:
            fold[split.train.n_obs :] = 0
        if self.task == "unsupervised":
            labels = np.full(len(labels), -1)
        has = np.stack([present[m] for m in self.modalities_], 1)
        known = Known(matrices, has, labels, len(self.groups_), fold, fold >= 0)
        if self.config.train.test_chooses_epoch:
            known.watch = partial(paper.test_ari, self, split)
            labels = split.test.obs[split.label_key].astype(str)
            known.watched = [*self._scores(split.test), list(labels)]
        return known

    def _fit(self, known: Known, device, progress, checkpoint) -> OutOfFold | None:
        device = choose_device(device)
        x = self._read(known.scores)
        cells = Cells(x, known.present, known.labels, device)
        self.network_ = self._network([v.shape[1] for v in x], known.n_groups).to(device)
        if not self.published:
            self.network_.input_dropout *= min(1.0, FEW_CELLS / len(known.fold))
        scales = None if self.published else [
            v.shape[1] / self.components_[m].variance
            for v, m in zip(x, self.modalities_, strict=True)
        ]  # fmt: skip
        features = {name: list(its) for name, its in self.transform_.features.items()}
        names = [self.modalities_, self.groups_, features]
        self.history_, self.test_chosen_ = fit(
            self.network_,
            cells,
            torch.as_tensor(known.fold),
            self.config.train,
            supervised=not self.published or self.task == "supervised",
            modalities=self.modalities_,
            seed=self.seed_,
            scales=scales,
            input_noise=self._input_noise(x),
            watch=known.watch and known.watch(device),
            progress=progress,
            checkpoint=checkpoint,
            fingerprint=_fingerprint(self.config, self.task, x, known, names),
        )
        few = known.few()
        if few is not known:
            cells = Cells(self._read(few.scores), few.present, few.labels, device)
        fused = self._run(lambda b: self._fused(b.x, b.present), cells)
        axes = PCA(min(self.config.model.d, *fused.shape), random_state=self.seed_).fit(fused)
        self.latent_ = axes.mean_.astype("f4"), np.ascontiguousarray(axes.components_, "f4")
        return None if self.published else self._out_of_fold(cells, few)

    def _out_of_fold(self, cells: Cells, known: Known) -> OutOfFold:
        """What each member says of the cells that it held out; 0 where none did."""
        n, m = known.present.shape
        self._fuse(known, lambda rows, subset: self._held_out_views(cells, known, rows, subset))
        groups = self._by_pattern(
            known.present, lambda rows, subset: self._held_out_views(cells, known, rows, subset)
        )
        pairs = {
            (target, source): np.zeros((n, self.components_[target].n_told), np.float32)
            for target, source in self.pairs
        }
        for (target, source), out in pairs.items():
            i, j = self.modalities_.index(target), self.modalities_.index(source)
            for k, part, batch in self._by_member(cells, known, np.arange(n)):
                with torch.no_grad():
                    said = self.network_.translate(batch.x[j], batch.present[..., j], i, j)[k]
                out[part, : said.shape[1]] = said.cpu().numpy()
        return OutOfFold(groups, pairs)

    def _held_out_views(self, cells, known, rows, subset) -> list[np.ndarray]:
        views = np.zeros((self._n_views(subset), len(rows), known.n_groups), np.float32)
        place = np.empty(len(known.fold), int)
        place[rows] = np.arange(len(rows))
        for k, part, batch in self._by_member(cells, known, rows):
            with torch.no_grad():
                views[:, place[part]] = self.views_of_members(batch.x, subset)[:, k].cpu().numpy()
        return list(views)

    def _by_member(self, cells: Cells, known: Known, rows: np.ndarray):
        """Give member, rows and batch, for the cells among ``rows`` that a member holds out."""
        for k in range(self.config.model.members):
            held = rows[known.fold[rows] == k]
            n_parts = -(-len(held) // EVAL_BATCH)  # 0 where it holds out none of them
            for part in np.array_split(held, n_parts) if n_parts else []:
                yield k, part, cells.batch(torch.as_tensor(part)[None])

    def _network(self, widths: list[int], n_groups: int) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Network(self.config.model, widths, n_groups)

    def _input_noise(self, x) -> list[float] | None:
        """Standard deviation of each modality's noise: its setting times its overall variance."""
        scales = self.config.train.input_noise
        if not scales:
            return None
        named = zip(self.modalities_, x, strict=True)
        return [scales[m] * float(np.var(v)) if m in scales else 0.0 for m, v in named]

    def _read(self, scores: dict) -> list:
        """What the network reads, by modality ``(n_cells, q)``; None for one not at hand."""
        q = self.config.model.n_components
        parts = (scores.get(m) for m in self.modalities_)
        return [None if z is None else z[:, :q] if q else z for z in parts]

    # --- what it gives ---

    def _n_views(self, subset: Subset) -> int:
        return len(subset) + (len(subset) > 1)

    def views_of_members(self, x: list, subset: Subset) -> Tensor:
        """Log-probabilities ``(views, K, B, C)``: of each modality alone, then of all together."""
        network = self.network_
        x = [v if i in subset else None for i, v in enumerate(x)]
        first = x[subset[0]]
        present = torch.ones(*first.shape[:2], len(x), dtype=torch.bool, device=first.device)
        alone = network.encode(x, present, "alone")
        views = [network.head(alone.latents[:, :, i]) for i in subset]
        if len(subset) > 1:
            joint = network.encode(x, present) if self.config.model.attention else alone
            views.append(network.group_logits(joint))
        return torch.stack(views).log_softmax(-1)

    def _views(self, scores: dict, subset: Subset) -> list[np.ndarray]:
        present = np.zeros((len(next(iter(scores.values()))), len(self.modalities_)), bool)
        present[:, subset] = True
        cells = self._cells(scores, present)

        def run(batch):
            views = self.views_of_members(batch.x, subset)
            return views.logsumexp(1).transpose(0, 1) - math.log(views.shape[1])

        return list(self._run(run, cells).transpose(1, 0, 2))

    def _log_probabilities(self, scores, present) -> np.ndarray:
        if not self.published:
            return super()._log_probabilities(scores, present)
        network, cells = self.network_, self._cells(scores, present)
        return self._run(
            lambda b: network.group_logits(network.encode(b.x, b.present))[0].log_softmax(1), cells
        )

    def _pair(self, scores: np.ndarray, target: str, source: str) -> np.ndarray:
        i, j = self.modalities_.index(target), self.modalities_.index(source)
        present = np.zeros((scores.shape[0], len(self.modalities_)), bool)
        present[:, j] = True
        cells = self._cells({source: scores}, present)
        said = self._run(
            lambda b: self.network_.translate(b.x[j], b.present[..., j], i, j).mean(0), cells
        )
        return np.pad(said, ((0, 0), (0, self.components_[target].n_told - said.shape[1])))

    def get_latent_representation(self, mdata: MuData) -> np.ndarray:
        """Latent of every cell ``(n_cells, d)``, for ``obsm["X_scmoe"]``.

        Principal components, over training cells, of all members' latents side by side.
        """
        mean, axes = self.latent_
        fused = self._run(lambda b: self._fused(b.x, b.present), self._cells(*self._scores(mdata)))
        return (fused - mean) @ axes.T

    def _fused(self, x, present) -> Tensor:
        """All members' latents side by side ``(B, K*d)``."""
        return self.network_.encode(x, present).fused.transpose(0, 1).flatten(1)

    def get_routing(self, mdata: MuData) -> ad.AnnData:
        """Which experts every token of every cell went to.

        Returns
        -------
        AnnData, cells x (member, layer, modality, patch, expert): gate weights in ``X`` (0 where
        the expert was not chosen), router probabilities over all experts in
        ``layers["probability"]``. Expert 3 of one member is another one than that of the next.
        """
        cells = self._cells(*self._scores(mdata))
        sizes = self.config.model

        def run(b):
            encoded = self.network_.encode(b.x, b.present)
            parts = []
            for routing in encoded.routing:
                gates = torch.zeros_like(routing.probs)
                gates = gates.scatter(-1, routing.experts, routing.weights)
                both = torch.stack([gates, routing.probs], 1)  # (K, 2, B, M, P, E)
                parts.append(both * encoded.present[:, None, :, :, None, None])
            return torch.stack(parts, 2).permute(3, 1, 0, 2, 4, 5, 6).flatten(2)

        both = self._run(run, cells)  # (N, 2, members * layers * M * P * E)
        values = (range(sizes.members), range(sizes.n_layers), self.modalities_,
                  range(sizes.n_patches), range(sizes.n_experts))  # fmt: skip
        names = ("member", "layer", "modality", "patch", "expert")
        var = pd.MultiIndex.from_product(values, names=names).to_frame(index=False)
        var.index = [f"{m} p{p} e{e} n{k} l{n}" for k, n, m, p, e in var.to_numpy()]
        adata = ad.AnnData(both[:, 0], obs=mdata.obs.copy(), var=var)
        adata.layers["probability"] = both[:, 1]
        return adata

    # --- tensors ---

    def tensors(self, mdata: MuData, modalities: list[str] | None = None) -> Cells:
        """Measured cells as the network's input; only ``modalities`` are read (default: all)."""
        return self._cells(*self._scores(mdata, modalities))

    def _cells(self, scores: dict, present: np.ndarray) -> Cells:
        return Cells(self._read(scores), present, device=self.network_.position.device)

    @torch.no_grad()
    def _run(self, function, cells: Cells) -> np.ndarray:
        """``function`` of every batch, rows stacked in the order of the cells."""
        self.network_.eval()
        return np.concatenate([function(b).cpu().numpy() for b in cells.batches(EVAL_BATCH)])

    # --- files ---

    def state(self) -> tuple[dict, dict[str, Tensor]]:
        """What a file keeps beyond what all parts share: settings for JSON, and tensors."""
        tensors = {f"network.{k}": v for k, v in self.network_.state_dict().items()}
        tensors |= {f"test_chosen.{k}": v for k, v in (self.test_chosen_ or {}).items()}
        mean, axes = self.latent_
        tensors |= {"latent.mean": torch.as_tensor(mean), "latent.axes": torch.as_tensor(axes)}
        history = json.loads(self.history_.to_json(orient="records", double_precision=15))
        return {"widths": self.network_.n_features, "history": history}, tensors

    def restore(self, settings: dict, tensors: dict[str, Tensor], device="auto") -> None:
        """Take over what :meth:`state` gave."""
        held = below(tensors, "network.")
        with torch.device("meta"):  # no memory is taken for sizes that no tensor has
            sizes = self._network(settings["widths"], len(self.groups_)).state_dict()
        if {k: v.shape for k, v in sizes.items()} != {k: v.shape for k, v in held.items()}:
            raise ValueError("the network's tensors do not fit its settings")
        self.network_ = self._network(settings["widths"], len(self.groups_))
        self.network_.load_state_dict(held)
        self.network_.to(choose_device(device)).eval()
        self.test_chosen_ = below(tensors, "test_chosen.") or None
        latent = below(tensors, "latent.")
        self.latent_ = latent["mean"].numpy(), latent["axes"].numpy()
        self.history_ = pd.DataFrame(settings["history"])


class Features:
    """In the place of :class:`scmoe.method.Components`: features as they are."""

    def __init__(self, n: int):
        self.n = self.n_told = n

    def __call__(self, X):
        """``X`` itself."""
        return X

    inverse = __call__


def choose_device(name: str | torch.device) -> torch.device:
    """Give the device of that name; ``auto`` is CUDA where there is one.

    Raises
    ------
    ValueError
        If CUDA is asked for where there is none, or any but CUDA and the CPU.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        number = os.environ.get("LOCAL_RANK")  # torchrun's: each process has a GPU of its own
        return torch.device("cuda" if number is None else f"cuda:{number}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        raise ValueError(f"device={name!r} must be 'auto', 'cpu', 'cuda' or 'cuda:<number>'.")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'."
        )
    return device


def below(tensors: dict, prefix: str) -> dict:
    """Tensors whose name starts with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _fingerprint(config: Config, task: str, matrices: list, known: Known, names: list) -> str:
    """Short name of what a checkpoint belongs to: architecture, task, cells, and all names."""
    cells = [*matrices, known.present, known.labels, known.fold, known.watched]
    return digest(json.dumps([config.to_dict(), task, names]), cells)[:16]
