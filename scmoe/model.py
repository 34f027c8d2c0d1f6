"""What the user holds: a blend of experts and a linear ensemble; fit, predict, translate, save."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from scmoe.baselines.linear import THREADED_CELLS, Linear, quiet
from scmoe.config import Config, Task
from scmoe.data import Split, Transform
from scmoe.keep import DAMAGED, digest, probe, read_json, recover, replaced
from scmoe.method import Components
from scmoe.networks import Experts, Features, below, choose_device
from scmoe.parts import Known, OutOfFold, Part
from scmoe.ranks import world

FORMAT = 4  # of a saved model
PRIOR_CELLS = 20.0  # how many cells speak for equal weights of both parts


class ScMoE(Part):
    """Sparse mixture of experts for several modalities of the same cells.

    Identifies groups from any subset of the modalities seen in training and translates between
    modalities without ever reading the target. A blend of two parts: ``experts``, an ensemble of
    networks, and ``linear``, an ensemble of linear and kernel methods. What each is worth in each
    task is one weight, fitted to training cells that the parts had held out.

    Parameters
    ----------
    task
        ``supervised`` learns the labels of ``split.label_key``; ``unsupervised`` sees no label at
        all and finds as many groups as the split has (their number is given, nothing else).
    config
        ``None`` for the strict recipe, or :func:`scmoe.preset`. The ``paper`` presets are the
        published network alone, without a linear part.
    seed
        Drives initialisation, order, noise and dropout.

    Attributes
    ----------
    experts, linear : the two parts, each a method with this same interface (``linear`` is None in
        the ``paper`` protocol); routing and ``history_`` are those of ``experts``.
    weights_ : DataFrame, what each part counts for: task, target, source, part, weight.
    groups_, modalities_, label_key_, transform_, info_ : what it was fitted to.
    """

    method = "scMoE"

    def __init__(self, task: Task = "supervised", config: Config | None = None, seed: int = 0):
        self.experts = Experts(task, config, seed)
        super().__init__(None, seed)
        self.task, self.config = task, self.experts.config
        self.linear = None
        if self.experts.published:
            self.method = self.experts.method
        else:
            self.linear = Linear(task=task, seed=seed)

    def _prepare(self, split: Split) -> Known:
        known = self.experts._prepare(split)
        self._share(self.experts)
        return known

    def _fit(self, known: Known, device, progress, checkpoint) -> OutOfFold | None:
        if self.linear is None:
            self.experts._fit(known, device, progress, checkpoint)
            self.weights_ = self._tidy({task: 1.0 for task in [None, *self.pairs]})
            return None
        self.linear._share(self.experts)
        if len(known.fold) < THREADED_CELLS or torch.get_num_threads() < 2 or world() > 1:
            ours = self.experts._fit(known, device, progress, checkpoint)
            other = self.linear._fit(known, device, progress, None)
        else:  # operations are too small to share: each part has a thread of its own
            with quiet(), threadpool_limits(1):
                linear = _beside(self.linear.fit_known, known)
                ours = self.experts._fit(known, device, progress, checkpoint)
                other = linear.result()
        known = known.few()
        self.experts._finish(known, ours)
        self.linear._finish(known, other)
        w = _group_weight(known, ours.groups, other.groups)
        weight, mixed = {None: w}, OutOfFold(w * ours.groups + (1 - w) * other.groups, {})
        for pair in self.pairs:
            w = weight[pair] = self._pair_weight(known, pair, ours, other)
            mixed.pairs[pair] = w * ours.pairs[pair] + (1 - w) * other.pairs[pair]
        self.weights_ = self._tidy(weight)
        return mixed

    def _pair_weight(self, known: Known, pair, ours: OutOfFold, other: OutOfFold) -> float:
        """Weight of the experts in one translation, by least squares, drawn towards a half."""
        target, source = (self.modalities_.index(name) for name in pair)
        rows = known.both(target, source) & known.held_out
        base = other.pairs[pair][rows]
        apart = ours.pairs[pair][rows] - base
        left = known.target(pair[0], rows) - base
        norm = np.square(apart).sum(1)
        prior = PRIOR_CELLS * norm.mean() if rows.any() else 1.0
        return float(np.clip(
            ((apart * left).sum() + prior / 2) / max(norm.sum() + prior, 1e-12), 0, 1
        ))  # fmt: skip

    def _tidy(self, weight: dict) -> pd.DataFrame:
        rows = []
        for pair, ours in weight.items():
            task, target, source = (self.task, "", "") if pair is None else ("translation", *pair)
            rows.append((task, target, source, "experts", ours))
            if self.linear is not None:
                rows.append((task, target, source, "linear", 1 - ours))
        return pd.DataFrame(rows, columns=["task", "target", "source", "part", "weight"])

    def weight(self, target: str = "", source: str = "") -> float:
        """What the experts count for in one translation, or (without names) in groups."""
        table = self.weights_
        row = (
            (table["target"] == target) & (table["source"] == source) & (table["part"] == "experts")
        )
        return float(table.loc[row, "weight"].iloc[0])

    # --- what it gives ---

    def _components_of(self, matrices: dict, has: dict) -> dict:
        return self.experts._components_of(matrices, has)

    def _log_probabilities(self, scores, present) -> np.ndarray:
        ours = self.experts._log_probabilities(scores, present)
        if self.linear is None:
            return ours
        w = self.weight()
        return w * ours + (1 - w) * self.linear._log_probabilities(scores, present)

    def _pair(self, scores: np.ndarray, target: str, source: str) -> np.ndarray:
        ours = self.experts._pair(scores, target, source)
        if self.linear is None:
            return ours
        w = self.weight(target, source)
        return w * ours + (1 - w) * self.linear._pair(scores, target, source)

    def get_latent_representation(self, mdata: md.MuData) -> np.ndarray:
        """Latent of every cell ``(n_cells, d)`` by the experts, for ``obsm["X_scmoe"]``."""
        return self.experts.get_latent_representation(mdata)

    def get_routing(self, mdata: md.MuData) -> ad.AnnData:
        """Which experts every token of every cell went to; see :meth:`Experts.get_routing`."""
        return self.experts.get_routing(mdata)

    @property
    def history_(self) -> pd.DataFrame:
        """The experts' training, one row an epoch."""
        return self.experts.history_

    # --- files ---

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a folder with ``model.safetensors`` and ``model.json``, complete or not at all.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is False, or if what is there is no model.
        """
        path = Path(path)
        _check_place(path, overwrite)
        transform, arrays = self.transform_.state()
        tensors = {f"transform.{k}": torch.as_tensor(v) for k, v in arrays.items()}
        experts, ours = self.experts.state()
        tensors |= {f"experts.{k}": v.detach().cpu().contiguous() for k, v in ours.items()}
        linear = None
        if self.linear is not None:
            linear, theirs = self.linear.state()
            tensors |= {f"linear.{k}": torch.as_tensor(v) for k, v in theirs.items()}
        components = {}
        for i, (name, part) in enumerate(self.components_.items()):
            components[name] = {"n": part.n}
            if isinstance(part, Components):
                components[name] |= {"scale": part.scale, "variance": part.variance}
                tensors[f"components.{i}.mean"] = torch.as_tensor(part.mean)
                tensors[f"components.{i}.axes"] = torch.as_tensor(np.ascontiguousarray(part.axes))
        fusion, rare = {}, {type(self).__name__: list(map(float, self.rare_))}
        for part in self._parts():
            name = type(part).__name__
            tensors[f"stack.{name}.gram"] = torch.as_tensor(part.gram_)
            tensors[f"stack.{name}.cross"] = torch.as_tensor(part.cross_)
            rare[name] = list(map(float, part.rare_))
            if part is not self:
                fusion[name] = [[list(s), list(map(float, w))] for s, w in part.fusion_.items()]
        note = dict(
            format=FORMAT, task=self.task, seed=self.seed, config=self.config.to_dict(),
            groups=self.groups_, modalities=self.modalities_, label_key=self.label_key_,
            info=self.info_, rare=rare, weights=self.weights_.to_dict("records"),
            transform=transform, components=components, fusion=fusion, experts=experts,
            linear=linear,
        )  # fmt: skip
        note["tensors"] = digest({k: v.numpy() for k, v in tensors.items()})
        note["sha256"] = digest(json.dumps(note))
        with replaced(path) as new:
            new.mkdir()
            save_file(tensors, new / "model.safetensors")
            (new / "model.json").write_text(json.dumps(note, indent=1))
            _check_place(path, overwrite)  # by now another process may have been here

    def _parts(self) -> list[Part]:
        """Itself and its parts, as far as they weigh sources."""
        return [part for part in (self, self.experts, self.linear) if hasattr(part, "gram_")]

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> ScMoE:
        """Read a saved model; nothing in it is executed.

        Raises
        ------
        FileNotFoundError
            If ``path`` holds no model.
        ValueError
            If it is one of another format, or damaged: what was saved is known by its SHA-256.
        """
        path, device = Path(path), choose_device(device)
        if not path.exists():
            recover(path)
        if not (path / "model.json").is_file():
            raise FileNotFoundError(f"{path} holds no model.json: not a model saved by ScMoE.save.")
        note, tensors = _read(path)
        try:
            return cls._of(note, tensors, device)
        except torch.OutOfMemoryError:
            raise
        except (*DAMAGED, ArithmeticError, RuntimeError) as error:
            raise _damaged(path / "model.json", f"{type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, note: dict, tensors: dict[str, torch.Tensor], device) -> ScMoE:
        model = cls(note["task"], Config.from_dict(note["config"]), note["seed"])
        model.groups_, model.modalities_ = note["groups"], note["modalities"]
        model.label_key_, model.info_, model.seed_ = note["label_key"], note["info"], note["seed"]
        arrays = {k: v.numpy() for k, v in below(tensors, "transform.").items()}
        model.transform_ = Transform.from_state(note["transform"], arrays)
        model.rare_ = np.array(note["rare"]["ScMoE"])
        model.weights_ = pd.DataFrame(note["weights"])
        model.components_ = {}
        for i, (name, its) in enumerate(note["components"].items()):
            maps = {k: v.numpy() for k, v in below(tensors, f"components.{i}.").items()}
            sizes = {k: v for k, v in its.items() if k != "n"}
            model.components_[name] = Components(**maps, **sizes) if maps else Features(its["n"])
        model.experts._share(model)
        model.experts.restore(note["experts"], below(tensors, "experts."), device)
        if model.linear is not None:
            model.linear._share(model)
            model.linear.restore(
                note["linear"], {k: v.numpy() for k, v in below(tensors, "linear.").items()}
            )
        for part in (model, model.experts, model.linear):
            if stack := below(tensors, f"stack.{type(part).__name__}."):
                part.gram_, part.cross_ = stack["gram"].numpy(), stack["cross"].numpy()
                part.rare_ = np.array(note["rare"][type(part).__name__])
            if weights := note["fusion"].get(type(part).__name__):
                part.fusion_ = {tuple(subset): np.array(w) for subset, w in weights}
        return model


def _beside(function: Callable, *given) -> Future:
    """Run a function on a thread of its own, for which a caller that is stopped does not wait."""
    future = Future()

    def run():
        try:
            future.set_result(function(*given))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _check_place(path: Path, overwrite: bool) -> None:
    """Refuse to save over anything but a model, and over that only when told to."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another path or pass overwrite=True.")
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not (path / "model.json").is_file():
        raise FileExistsError(
            f"{path} holds no model, and nothing else is overwritten; choose another path."
        )


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Note and tensors of a model's folder, if they are what was saved."""
    file = path / "model.json"
    try:
        note = read_json(file)
        found, of_note = note.get("format"), note.pop("sha256", None)
        whole = of_note == digest(json.dumps(note))
    except DAMAGED as error:
        raise _damaged(file, str(error)) from error
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}; this version reads {FORMAT}: fit the model again, or "
            "load it with the version that saved it."
        )
    if not whole:
        raise _damaged(file, "its content is not what was saved")
    file = path / "model.safetensors"
    try:
        probe(file)
        tensors = load_file(file)
        arrays = {name: value.numpy() for name, value in tensors.items()}
    except (SafetensorError, FileNotFoundError, *DAMAGED) as error:
        raise _damaged(file, str(error)) from error
    if digest(arrays) != note["tensors"]:
        raise _damaged(file, "its content is not what was saved with model.json")
    bad = [k for k, v in arrays.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if bad:
        raise _damaged(file, f"{bad[0]} holds values that are not finite")
    return note, tensors


def _damaged(file: Path, why: str) -> ValueError:
    return ValueError(f"{file} is damaged ({why}): restore it from a copy, or fit the model again.")


def _group_weight(known: Known, ours: np.ndarray, other: np.ndarray) -> float:
    """Weight of the experts' log-probabilities with the least log-loss, drawn towards a half."""
    rows = np.flatnonzero((known.labels >= 0) & known.held_out)
    ours, other, labels = ours[rows], other[rows], known.labels[rows]

    def loss(w):
        logs = log_softmax(w * ours + (1 - w) * other, 1)
        return PRIOR_CELLS * (w - 0.5) ** 2 - logs[np.arange(len(rows)), labels].sum()

    return float(minimize_scalar(loss, bounds=(0, 1), method="bounded").x)
