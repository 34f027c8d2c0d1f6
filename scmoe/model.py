"""What the user holds: fit on a split, then predict, translate, embed, route, save, load."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file

from scmoe import paper
from scmoe.config import Config, Task
from scmoe.data import DataError, Split, Transform
from scmoe.fit import EVAL_BATCH, calibrate, fit
from scmoe.nn.cells import Cells
from scmoe.nn.linear import LinearPath, fit_linear_path
from scmoe.nn.network import Network

FORMAT = 2  # of a saved model


class ScMoE:
    """Sparse mixture of experts for several modalities of the same cells.

    Identifies groups from any subset of the modalities seen in training and translates between
    modalities without ever reading the target.

    Parameters
    ----------
    task
        ``supervised`` learns the labels of ``split.label_key``; ``unsupervised`` sees no label at
        all and finds as many groups as the split has (their number is given, nothing else).
    config
        ``None`` for the strict recipe, or :func:`scmoe.preset`.
    seed
        Drives initialisation, order, noise and dropout.

    Attributes
    ----------
    history_ : DataFrame, one row an epoch.
    groups_, modalities_, label_key_, transform_, info_ : what it was fitted to.
    """

    method = "scMoE"

    def __init__(self, task: Task = "supervised", config: Config | None = None, seed: int = 0):
        if task not in ("supervised", "unsupervised"):
            raise ValueError(f"task={task!r} must be 'supervised' or 'unsupervised'.")
        self.task, self.config, self.seed = task, config or Config(), seed

    # --- training ---

    def fit(
        self,
        split: Split,
        device: str = "auto",
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> ScMoE:
        """Train on ``split.train``, choose on ``split.val``; ``split.test`` is not touched.

        Parameters
        ----------
        split
            From :func:`scmoe.data.load` or :func:`scmoe.data.split_mudata`.
        device
            ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        progress
            Show a bar (or one line an epoch in logs).
        checkpoint
            Folder to save to and to resume from; the same call continues a run that was cut off.

        Raises
        ------
        scmoe.data.DataError
            If the data cannot be used; before any training.
        """
        device = _device(device)
        supervised = self.task == "supervised"
        schedule = self.config.train
        if schedule.own_scaling:
            self.transform_ = paper.transform(split, schedule.hold_out)
        else:
            self.transform_ = Transform().fit(split.train)
        self.modalities_ = list(split.modalities)
        self.label_key_ = split.label_key
        known = [str(g) for g in split.groups]
        self.groups_ = known if supervised else [str(i) for i in range(len(known))]
        self.info_ = dict(
            dataset=split.name,
            data_source=split.data_source,
            protocol="paper" if self.config.train.target_visible else "strict",
            fold=split.fold,
            seed=self.seed,
        )
        train, val = (self._measured(part) for part in (split.train, split.val))
        both = [_stack(*parts) for parts in zip(train, val, strict=True)]
        run = partial(self._train, device=device, progress=progress, checkpoint=checkpoint)
        watch = paper.test_ari(self, split, device) if schedule.test_chooses_epoch else None
        if not schedule.hold_out:
            self.network_, self.history_, self.test_chosen_ = run(
                "fit", both, None, schedule, watch
            )
            return self
        refit = schedule.refit and len(split.val) > 0
        # clusters have no say in choosing the epoch, and the refit finds its own
        needed = supervised or watch is not None or not refit
        self.network_, self.history_, self.test_chosen_ = run(
            "choose", train, val, schedule, watch, groups=needed
        )
        calibrate(self.network_, Cells(*val, device), supervised)
        if refit:
            chosen = self.network_
            best = int(self.history_["epoch"][self.history_["val_loss"].argmin()])
            schedule = replace(schedule, epochs=best, patience=None)
            self.network_, _, _ = run("refit", both, None, schedule)
            self.network_.group_scale.copy_(chosen.group_scale)
            self.network_.pair_scale.copy_(chosen.pair_scale)
        return self

    def _measured(self, mdata: md.MuData):
        """Matrices, which cells have which modality, and labels (None when not to be seen)."""
        labels = self._numbers(mdata) if self.task == "supervised" else None
        return *self._matrices(self.transform_.transform(mdata)), labels

    def _train(
        self, stage, cells, val, schedule, watch=None, groups=True, *, device, progress, checkpoint
    ):
        """One network on ``cells``, stopped on ``val`` (None: after all epochs).

        Without ``groups``, none are learned: no cluster is looked for.
        Returns the network, its history and the watched weights; see :func:`scmoe.fit.fit`.
        """
        x, present, labels = cells
        linear, crossfit = None, None
        if self.config.model.linear_path:
            n_groups = len(self.groups_) if groups else 0
            linear, crossfit = fit_linear_path(x, present, labels, n_groups, seed=self.seed)
            crossfit = crossfit.to(device)
        network = self._network([m.shape[1] for m in x], linear).to(device)
        history, watched = fit(
            network,
            Cells(x, present, labels, device),
            None if val is None else Cells(*val, device),
            schedule,
            supervised=self.task == "supervised",
            modalities=self.modalities_,
            seed=self.seed,
            crossfit=crossfit,
            input_noise=self._input_noise(x),
            watch=watch,
            progress=progress,
            checkpoint=None if checkpoint is None else Path(checkpoint) / stage,
            fingerprint=_fingerprint(self.config, self.task, x, labels),
        )
        return network, history, watched

    def _numbers(self, mdata: md.MuData) -> np.ndarray:
        """Group numbers ``(N,)``; -1 for a label that training did not have."""
        return pd.Index(self.groups_).get_indexer(mdata.obs[self.label_key_].astype(str))

    def _network(self, n_features: list[int], linear: LinearPath | None) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Network(self.config.model, n_features, len(self.groups_), linear)

    def _input_noise(self, x) -> list[float] | None:
        """Standard deviation of each modality's noise: its setting times its overall variance."""
        scales = self.config.train.input_noise
        if not scales:
            return None
        named = zip(self.modalities_, x, strict=True)
        return [scales[m] * float(np.var(v)) if m in scales else 0.0 for m, v in named]

    # --- what it gives ---

    def predict(self, mdata: md.MuData) -> pd.DataFrame:
        """Group of every cell, from whichever of the trained modalities ``mdata`` has.

        Returns
        -------
        DataFrame by cell name: column ``group`` and a probability per group.
        """
        cells = self.tensors(mdata)
        logits = self._run(lambda b: self.network_.predict_groups(b.x, b.present), cells)
        probabilities = torch.as_tensor(logits).double().softmax(1).numpy()
        table = pd.DataFrame(probabilities, index=mdata.obs_names, columns=self.groups_)
        table.insert(0, "group", np.array(self.groups_)[probabilities.argmax(1)])
        return table

    def translate(
        self,
        mdata: md.MuData,
        target: str,
        source: str | list[str],
        units: str = "measured",
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict modality ``target`` from ``source``; the target is never read.

        Parameters
        ----------
        target
            A modality seen in training; ``mdata`` need not have it.
        source
            One modality, or several.
        units
            ``measured`` for the units the data came in, all features; ``scaled`` for the space that
            :meth:`transform` gives.
        out
            Array ``(n_cells, n_features)`` to write into, for instance a memory map.

        Returns
        -------
        Array ``(n_cells, n_features)``; rows of cells without any source modality are NaN.
        """
        sources = [source] if isinstance(source, str) else list(source)
        self._check_modalities([target, *sources])
        if target in sources:
            raise ValueError(
                f"target {target!r} is also a source; a translation must not read its target."
            )
        if units not in ("measured", "scaled"):
            raise ValueError(f"units={units!r} must be 'measured' or 'scaled'.")
        cells = self.tensors(mdata, sources)
        index = self.modalities_.index(target)

        def run(batch):
            values = self.network_.translate(batch.x, batch.present, index)
            values = (
                torch.where(batch.present.any(1, keepdim=True), values, torch.nan).cpu().numpy()
            )
            return values if units == "scaled" else self.transform_.inverse(values, target)

        return self._run(run, cells, out)

    def transform(self, mdata: md.MuData) -> md.MuData:
        """``mdata`` as the network sees it: filtered, scaled, features named."""
        return self.transform_.transform(mdata)

    def get_latent_representation(self, mdata: md.MuData) -> np.ndarray:
        """Latent of every cell ``(n_cells, d)``, for ``obsm["X_scmoe"]``.

        The mean of the modalities' latents, beside the leading principal components of every
        modality where there is a linear path.
        """

        def run(b):
            parts = [self.network_.encode(b.x, b.present).fused]
            if (linear := self.network_.linear) is not None:
                parts.append(linear.embedding(b.x, b.present))
            return torch.cat(parts, 1)

        return self._run(run, self.tensors(mdata))

    def get_routing(self, mdata: md.MuData) -> ad.AnnData:
        """Which experts every token of every cell went to.

        Returns
        -------
        AnnData, cells x (layer, modality, patch, expert): gate weights in ``X`` (0 where the expert
        was not chosen), router probabilities over all experts in ``layers["probability"]``.
        """
        cells = self.tensors(mdata)
        n_experts, layers = self.config.model.n_experts, []
        for number in range(self.config.model.n_layers):

            def run(b, number=number):
                encoded = self.network_.encode(b.x, b.present)
                routing = encoded.routing[number]
                gates = torch.zeros_like(routing.probs).scatter(
                    -1, routing.experts, routing.weights
                )
                both = (
                    torch.stack([gates, routing.probs], 1) * encoded.present[:, None, :, None, None]
                )
                return both.flatten(2)  # (B, 2, M*P*E)

            layers.append(self._run(run, cells))
        gates, probs = (np.concatenate([v[:, i] for v in layers], 1) for i in (0, 1))
        patches = range(self.network_.n_patches)
        names = ("layer", "modality", "patch", "expert")
        values = range(len(layers)), self.modalities_, patches, range(n_experts)
        var = pd.MultiIndex.from_product(values, names=names).to_frame(index=False)
        var.index = [
            f"{m} p{p} e{e}" + (f" l{n}" if len(layers) > 1 else "") for n, m, p, e in var.values
        ]
        adata = ad.AnnData(gates, obs=mdata.obs.copy(), var=var)
        adata.layers["probability"] = probs
        return adata

    def without_experts(self) -> ScMoE:
        """The same model with the network switched off: the linear path alone."""
        if self.network_.linear is None:
            raise ValueError("This model has no linear path (config.model.linear_path is False).")
        model = copy.copy(self)
        model.network_ = copy.deepcopy(self.network_)
        model.network_.group_scale.zero_()
        model.network_.pair_scale.zero_()
        model.method = f"{self.method} linear path"
        return model

    # --- files ---

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a folder with ``model.safetensors`` and ``model.json``, complete or not at all.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is False.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another path or pass overwrite=True.")
        settings, arrays = self.transform_.state()
        tensors = {
            f"network.{k}": v.cpu().contiguous() for k, v in self.network_.state_dict().items()
        }
        tensors |= {f"test_chosen.{k}": v.cpu() for k, v in (self.test_chosen_ or {}).items()}
        tensors |= {f"transform.{k}": torch.as_tensor(v) for k, v in arrays.items()}
        linear = self.network_.linear
        note = dict(
            format=FORMAT,
            task=self.task,
            seed=self.seed,
            config=self.config.to_dict(),
            groups=self.groups_,
            modalities=self.modalities_,
            label_key=self.label_key_,
            info=self.info_,
            n_features=self.network_.n_features,
            linear=None if linear is None else linear.sizes(),
            transform=settings,
            history=json.loads(self.history_.to_json(orient="records", double_precision=15)),
        )
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            save_file(tensors, partial / "model.safetensors")
            (partial / "model.json").write_text(json.dumps(note, indent=1))
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> ScMoE:
        """Read a saved model; nothing in it is executed.

        Raises
        ------
        FileNotFoundError, ValueError
            If ``path`` holds no model, or one of another format.
        """
        path = Path(path)
        if not (path / "model.json").is_file():
            raise FileNotFoundError(f"{path} holds no model.json: not a model saved by ScMoE.save.")
        note = json.loads((path / "model.json").read_text())
        if note.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {note.get('format')}; this version reads {FORMAT}."
            )
        tensors = load_file(path / "model.safetensors")
        model = cls(note["task"], Config.from_dict(note["config"]), note["seed"])
        model.groups_, model.modalities_ = note["groups"], note["modalities"]
        model.label_key_, model.info_ = note["label_key"], note["info"]
        arrays = {k: v.numpy() for k, v in _below(tensors, "transform.").items()}
        model.transform_ = Transform.from_state(note["transform"], arrays)
        linear = None if note["linear"] is None else LinearPath(**note["linear"])
        model.network_ = model._network(note["n_features"], linear)
        model.network_.load_state_dict(_below(tensors, "network."))
        model.network_.to(_device(device)).eval()
        model.test_chosen_ = _below(tensors, "test_chosen.") or None
        model.history_ = pd.DataFrame(note["history"])
        return model

    # --- tensors ---

    def tensors(self, mdata: md.MuData, modalities: list[str] | None = None) -> Cells:
        """Measured cells as the network's input; only ``modalities`` are read (default: all)."""
        if not hasattr(self, "network_"):
            raise RuntimeError(
                "This model is not fitted; call fit(split) or ScMoE.load(path) first."
            )
        wanted = modalities or [m for m in self.modalities_ if m in mdata.mod]
        self._check_modalities(wanted)
        if missing := [m for m in wanted if m not in mdata.mod]:
            raise DataError(
                f"modality {missing[0]!r} is not in this MuData (it has {', '.join(mdata.mod)})."
            )
        if not wanted:
            raise DataError(
                f"None of the modalities seen in training ({', '.join(self.modalities_)}) is in "
                f"this MuData (it has {', '.join(mdata.mod)})."
            )
        x, present = self._matrices(self.transform_.transform(mdata, wanted), mdata.obs_names)
        return Cells(x, present, device=self.network_.position.device)

    def _check_modalities(self, names: list[str]) -> None:
        if unknown := [m for m in names if m not in self.modalities_]:
            raise DataError(
                f"modality {unknown[0]!r} was not seen in training; known: "
                f"{', '.join(self.modalities_)}."
            )

    def _matrices(self, mdata: md.MuData, cells: pd.Index | None = None):
        """Per modality ``(N, F_m)`` over all cells, and which cells have it ``(N, M)``."""
        cells = mdata.obs_names if cells is None else cells
        present = np.zeros((len(cells), len(self.modalities_)), dtype=bool)
        matrices: list = [None] * len(self.modalities_)
        for i, name in enumerate(self.modalities_):
            if name not in mdata.mod:
                continue
            part = mdata.mod[name]
            row = cells.get_indexer(part.obs_names)
            present[row, i] = True
            if len(row) == len(cells) and (row == np.arange(len(cells))).all():
                matrices[i] = part.X
            elif sp.issparse(part.X):
                place = sp.csr_matrix((np.ones(len(row), np.float32), (row, np.arange(len(row)))),
                                      (len(cells), len(row)))  # fmt: skip
                matrices[i] = place @ part.X
            else:
                matrices[i] = np.zeros((len(cells), part.n_vars), np.float32)
                matrices[i][row] = part.X
        return matrices, present

    @torch.no_grad()
    def _run(self, function, cells: Cells, out: np.ndarray | None = None) -> np.ndarray:
        """``function`` of every batch, rows stacked in the order of the cells."""
        self.network_.eval()
        start = 0
        for batch in cells.batches(EVAL_BATCH):
            values = function(batch)
            values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
            if out is None:
                out = np.empty((len(cells), *values.shape[1:]), dtype=values.dtype)
            out[start : start + len(values)] = values
            start += len(values)
        return out


def _below(tensors: dict, prefix: str) -> dict:
    """Tensors whose name starts with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _stack(first, second):
    """Training cells above validation cells: matrices, masks or labels."""
    if isinstance(first, list):
        return [_stack(a, b) for a, b in zip(first, second, strict=True)]
    if first is None:
        return None
    stack = sp.vstack if sp.issparse(first) else np.concatenate
    return stack([first, second], **({"format": "csr"} if sp.issparse(first) else {}))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device={name!r} was asked for, but torch sees no CUDA device; use 'auto' or 'cpu'."
        )
    return device


def _fingerprint(config: Config, task: str, matrices: list, labels: np.ndarray | None) -> str:
    """Short name of what a checkpoint belongs to: architecture, task and training cells."""
    digest = hashlib.sha256(json.dumps([config.to_dict(), task]).encode())
    for matrix in matrices:
        values = matrix.data if sp.issparse(matrix) else matrix
        digest.update(np.ascontiguousarray(values))
    if labels is not None:
        digest.update(np.ascontiguousarray(labels))
    return digest.hexdigest()[:16]
