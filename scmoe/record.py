"""What a run leaves behind: checked parameters, a trained model and one `metrics.json`."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from scipy import sparse
from threadpoolctl import threadpool_info, threadpool_limits

from scmoe import data
from scmoe.config import Config, preset
from scmoe.keep import DAMAGED, digest, read_json, recover, set_aside, write_json
from scmoe.metrics import COLUMNS
from scmoe.networks import choose_device
from scmoe.parameters import check_names, check_values

PACKAGE = Path(__file__).parent
TRAINS = [  # the sources that decide a trained model
    "data", "nn", "config.py", "fit.py", "step.py", "method.py", "parts.py", "clusters.py",
    "networks.py", "baselines/linear.py", "model.py",
]  # fmt: skip
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# what dyngen's cells are simulated by, and the values that mean the data set itself
SIMULATION = dict(backbone="linear", setting="default", cells=500, genes=100, simulation=0)
VERSIONS = ["scmoe", "torch", "numpy", "scipy", "pandas", "scikit-learn", "anndata", "mudata"]


@dataclass
class Run:
    """One run of a notebook: its checked parameters, and the folder it writes into.

    Attributes
    ----------
    dataset
        Name of the data set.
    task
        And all other parameters of the notebook, under their names. `modalities` is None (all) or
        a list; `out_dir` is a path, which is made when there is something to write.
    extra
        What one notebook has beyond these parameters, by name.
    split
        The cells, after `load`.
    seconds
        What took how long, by name.
    """

    dataset: str
    task: str = "supervised"
    protocol: str = "strict"
    fold: int | str = 0
    seed: int = 0
    epochs: int | None = None
    modalities: list[str] | None = None
    device: str = "auto"
    threads: int | None = None
    data_root: str | None = None
    allow_standin: bool = True
    out_dir: str | Path | None = None
    profile: str = "quick"
    extra: dict = field(default_factory=dict, repr=False)
    split: data.Split | None = field(default=None, repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    trained: str = field(default="in the notebook", repr=False)
    started: float = field(default_factory=time.perf_counter, repr=False)

    def __post_init__(self):
        """Check the parameters and choose the folder."""
        if isinstance(self.modalities, str):
            self.modalities = [name.strip() for name in self.modalities.split(",")]
        check_values(self)
        if self.out_dir is None:
            parts = [self.dataset, self.task, self.protocol, f"fold{self.fold}", f"seed{self.seed}"]
            self.out_dir = Path("runs", "-".join([*parts, *(self.modalities or [])]))
        self.out_dir = Path(self.out_dir)

    @property
    def parameters(self) -> dict:
        """The parameters as they can be written to JSON."""
        common = {name: getattr(self, name) for name in PARAMETERS} | {"out_dir": str(self.out_dir)}
        return common | json.loads(json.dumps(self.extra, default=str))

    @contextmanager
    def clock(self, name: str):
        """Add the seconds that a block takes to `seconds[name]`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def load(self) -> data.Split:
        """Load this run's cells, cut by its fold and seed (see `scmoe.data.load`).

        A run whose further parameters ask for another simulation simulates that one.
        """
        other = {k: self.extra[k] for k, v in SIMULATION.items() if self.extra.get(k, v) != v}
        with self.clock("load"):
            if other:
                self.split = data.load_simulated(self.fold, self.seed, self.modalities, **other)
                return self.split
            self.split = data.load(
                self.dataset, fold=self.fold, seed=self.seed, root=self.data_root,
                modalities=self.modalities, allow_standin=self.allow_standin,
            )  # fmt: skip
        return self.split

    def config(self) -> Config:
        """Give the configuration that the protocol has for this data set, with `epochs` if set."""
        config = preset(self.dataset, self.protocol)
        return config if self.epochs is None else config.replace(epochs=self.epochs)

    def fit(self, model, split: data.Split, progress: bool = True):
        """Train `model`, or load the one that an identical run left in `out_dir`.

        Identical means: the same parameters, configuration, data checksums, sources of the
        package and PyTorch. One that is damaged is renamed, with a warning, and trained anew.
        A run that was killed while training resumes from its checkpoint.

        Returns
        -------
        The fitted model.
        """
        stamp_file, folder = self.out_dir / "made_from.json", self.out_dir / "model"
        stamp = self._stamp(model, split)
        if (loaded := self._left(type(model), stamp_file, stamp, folder)) is not None:
            return loaded
        stamp_file.unlink(missing_ok=True)
        of = digest(json.dumps(stamp, sort_keys=True))[:12]
        checkpoint = self.out_dir / f"checkpoint-{of}"
        with self.clock("fit"):
            model.fit(split, device=self.device, progress=progress, checkpoint=checkpoint)
        self.trained = "trained"
        model.save(folder, overwrite=True)
        write_json(stamp_file, {"made_from": stamp, "seconds": self.seconds["fit"]})
        shutil.rmtree(checkpoint, ignore_errors=True)
        return model

    def _left(self, kind: type, stamp_file: Path, stamp: dict, folder: Path):
        """Give the model that an identical run left; what is damaged is renamed, and said so."""
        recover(folder)
        device = choose_device(self.device)
        try:
            left = read_json(stamp_file) if stamp_file.exists() else {}
            if left.get("made_from") == stamp and folder.is_dir():
                loaded, seconds = kind.load(folder, device=device), float(left["seconds"])
                self.trained, self.seconds["fit"] = "loaded", seconds
                return loaded
            whole = not folder.exists() or (folder / "model.json").is_file()
            why = "" if whole else f"{folder} holds no model."
        except (FileNotFoundError, *DAMAGED) as error:
            why = f"{stamp_file} or the model beside it is damaged: {error}"
        if why:
            aside = [set_aside(path).name for path in (stamp_file, folder) if path.exists()]
            warnings.warn(f"{why} Now {', '.join(aside)}; it is trained anew.", stacklevel=3)
        return None

    def _stamp(self, model, split) -> dict:
        unread = {"data_root", "allow_standin", "out_dir", "profile", "modalities"}
        stamp = {name: value for name, value in self.parameters.items() if name not in unread}
        stamp |= {
            "dataset": split.name,
            "modalities": list(split.modalities),
            "data_source": split.data_source,
            "checksums": split.checksums or _digest(split),
            "config": model.config.to_dict(),
            "seed": model.seed,
            "cuda": self.device != "cpu" and torch.cuda.is_available(),
            "threads": torch.get_num_threads(),
            "sources": source_hash(),
            "torch": torch.__version__,
        }
        return json.loads(json.dumps(stamp))

    def finish(self, records: pd.DataFrame, **further) -> Path:
        """Write `metrics.json` into `out_dir`: the records and where they come from.

        The file appears whole or not at all. Scores that are undefined (R² of a modality that
        does not vary in the test cells, say) are left out of the records and listed as
        `undefined` in the provenance.

        Parameters
        ----------
        records
            The table of `scmoe.evaluate`, or several below each other.
        further
            More to say of where they come from, ready for JSON.

        Returns
        -------
        The path of the file.
        """
        missing = [name for name in COLUMNS if name not in records]
        if missing:
            raise ValueError(f"the records lack the columns {missing}; see scmoe.evaluate")
        finite = np.isfinite(records["value"].to_numpy(float))
        self.seconds["total"] = time.perf_counter() - self.started
        content = {
            "records": _rows(records[finite]),
            "provenance": self._provenance() | {"undefined": _rows(records[~finite])} | further,
        }
        return write_json(self.out_dir / "metrics.json", content, allow_nan=False)

    def _provenance(self) -> dict:
        cuda = torch.cuda.is_available() and self.device != "cpu"
        split = self.split
        return {
            "dataset": self.dataset,
            "parameters": self.parameters,
            "data_source": split and split.data_source,
            "notes": list(split.notes) if split else [],
            "checksums": dict(split.checksums) if split else {},
            "model": self.trained,
            "commit": _commit(),
            "sources": source_hash(),
            "versions": {"python": platform.python_version()} | versions(VERSIONS),
            "platform": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "threads": {"torch": torch.get_num_threads()}
            | {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "peak_memory_mb": round(peak_memory() / 1e6, 1),
            "peak_device_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6, 1)
            if cuda
            else 0.0,
        }


PARAMETERS = [f.name for f in fields(Run) if f.repr and f.name != "dataset"]


def start_run(dataset: str, namespace: Mapping, extra: Sequence[str] = ()) -> Run:
    """Check a notebook's parameters, and set seeds and threads by them.

    Parameters
    ----------
    dataset
        Name of the data set, `"patchseq"` say.
    namespace
        The notebook's `globals()`. Besides the parameters' values, IPython's record of the cells
        that ran is read: a name that papermill injected and no notebook knows is an error here
        (papermill itself only warns).
    extra
        Names of the parameters that only this notebook has.

    Raises
    ------
    ValueError
        When a parameter is unknown (the message has the known ones and the nearest), or of the
        wrong type or range.
    """
    check_names(namespace.get("In", []), [*PARAMETERS, *extra])
    given = {name: namespace[name] for name in PARAMETERS if name in namespace}
    run = Run(dataset, **given, extra={name: namespace[name] for name in extra})
    if run.threads is not None:
        torch.set_num_threads(run.threads)
        threadpool_limits(run.threads)
    random.seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002 -- shap and scikit-learn still draw from it
    torch.manual_seed(run.seed)
    return run


def read_records(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Gather the records of many runs.

    Parameters
    ----------
    paths
        A folder (every `metrics.json` at any depth below it), a file, or several of either.

    Returns
    -------
    One row per score: the columns `scmoe.metrics.COLUMNS` and `run`, the path of its file.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"no records at {path}: nothing has run there yet")
        for file in sorted(path.rglob("metrics.json")) if path.is_dir() else [path]:
            try:
                found += [row | {"run": str(file)} for row in read_json(file)["records"]]
            except DAMAGED as error:
                raise ValueError(f"{file} is damaged ({error}): run its notebook again") from error
    return pd.DataFrame(found, columns=[*COLUMNS, "run"])


def source_hash(names: Sequence[str] = tuple(TRAINS)) -> str:
    """Give the hash of files and folders: those of the package that decide a trained model.

    Names are relative to the package. Only statements count: docstrings, comments and layout
    change no number.
    """
    found = hashlib.sha256()
    for name in names:
        path = PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            found.update(Path(os.path.relpath(file, PACKAGE)).as_posix().encode())
            found.update(ast.unparse(tree).encode())
    return found.hexdigest()[:16]


def _digest(split: data.Split) -> str:
    """Hash of the cells that a model is trained on, for data that come from no file."""
    held = []
    for part in (split.train, split.val):
        held.append(part.obs.to_csv())
        for name, cells in part.mod.items():
            X = cells.X if sparse.issparse(cells.X) else np.asarray(cells.X)
            held += [name, *cells.obs_names, *cells.var_names, X]
    return digest(held)[:16]


def _rows(records: pd.DataFrame) -> list[dict]:
    """Records as plain Python values, undefined ones as None."""
    rows = records[COLUMNS].astype(object).where(records[COLUMNS].notna(), None).to_dict("records")
    plain = {np.integer: int, np.floating: float}
    return [
        {k: next((f(v) for t, f in plain.items() if isinstance(v, t)), v) for k, v in row.items()}
        for row in rows
    ]


def _commit() -> str | None:
    """Give the commit of the sources, with "+" when they were changed since; None outside git."""

    def git(*arguments):
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "record.py")  # else a repository around an install
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    found = {d.name: d.version for d in importlib.metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def peak_memory() -> int:
    """Give the most bytes of memory that this process has held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
