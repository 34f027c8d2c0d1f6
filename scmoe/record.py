"""What a run leaves behind: checked parameters, a trained model and one `metrics.json`."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import psutil
import torch
from pydantic import Field
from threadpoolctl import threadpool_info, threadpool_limits

from scmoe import data
from scmoe.config import Config, Count, Protocol, Task, check_fields, preset
from scmoe.keep import DAMAGED, read_json, write_json
from scmoe.metrics import COLUMNS

PACKAGE = Path(__file__).parent
TRAINS = [  # the sources that decide a trained model
    "data", "nn", "config.py", "fit.py", "step.py", "ranks.py", "method.py", "parts.py",
    "clusters.py", "networks.py", "baselines/linear.py", "model.py",
]  # fmt: skip
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# what dyngen's cells are simulated by, and the values that mean the data set itself
SIMULATION = dict(backbone="linear", setting="default", cells=500, genes=100, simulation=0)
Natural = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[0-9]*[A-Za-z][A-Za-z0-9_.-]*$")]  # a part of a file's name
Names = Annotated[list[str], Field(min_length=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Place = Annotated[str, Field(min_length=1)] | Path | None
VERSIONS = ["scmoe", "torch", "numpy", "scipy", "pandas", "scikit-learn", "anndata", "mudata"]


@dataclass
class Run:
    """One run of a notebook: its checked parameters, and the folder it writes into.

    `modalities` is None (all) or a list, also given as text with commas; `out_dir` is made when
    there is something to write; `extra` has what one notebook has beyond the common parameters;
    `split` are the cells, after `load`; `seconds` say what took how long, by name.
    """

    dataset: str
    task: Task = "supervised"
    protocol: Protocol = "strict"
    fold: Natural | Name = 0
    seed: Natural = 0
    epochs: Count | None = None
    modalities: Names | None = None
    device: Device = "auto"
    threads: Count | None = None
    data_root: Place = None
    allow_standin: bool = True
    out_dir: Place = None
    profile: Literal["quick", "full"] = "quick"
    extra: dict = field(default_factory=dict, repr=False)
    split: data.Split | None = field(default=None, repr=False)
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    trained: str = field(default="in the notebook", repr=False)
    started: float = field(default_factory=time.perf_counter, repr=False)

    def __post_init__(self):
        """Check the parameters and choose the folder."""
        if isinstance(self.modalities, str):
            self.modalities = [name.strip() for name in self.modalities.split(",")]
        check_fields(self)
        names = self.modalities or []
        known = data.DATASETS[self.dataset].modalities if self.dataset in data.DATASETS else names
        if len(set(names)) < len(names) or not set(names) <= set(known) - {""}:
            raise ValueError(f"parameter modalities={names}: each once, and among {known}")
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

    def finish(self, records: pd.DataFrame, **further) -> Path:
        """Write `metrics.json` into `out_dir`: records, and where they come from; give its path.

        Records are the table of `scmoe.evaluate`, or several below each other. Scores that are
        undefined (R² of a modality that does not vary in the test cells, say) are listed apart, as
        `undefined` in the provenance; `further` is more to say there.
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

    Besides the parameters' values in `namespace`, the notebook's `globals()`, IPython's record of
    the cells that ran is read: a name that papermill injected and no notebook knows is an error
    here (papermill itself only warns). `extra` names parameters that only this notebook has.

    Raises
    ------
    ValueError
        When a parameter is unknown (the message has the known ones and the nearest), or of the
        wrong type or range.
    """
    _check_names(namespace.get("In", []), [*PARAMETERS, *extra])
    given = {name: namespace[name] for name in PARAMETERS if name in namespace}
    run = Run(dataset, **given, extra={name: namespace[name] for name in extra})
    if run.threads is not None:
        torch.set_num_threads(run.threads)
        threadpool_limits(run.threads)
    random.seed(run.seed)
    np.random.seed(run.seed)  # noqa: NPY002 -- shap and scikit-learn still draw from it
    torch.manual_seed(run.seed)
    return run


def _check_names(cells: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that the parameters cell, or what papermill put below it, assigns unasked."""
    template, injected = [], []
    for cell in cells:  # in a live session they run many times: the last time counts
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a cell magic
            continue
        targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if len(set(names) & set(known)) > len(known) / 2:
            template, injected = names, []
        elif cell.startswith("# Parameters\n"):
            injected = names
    for name in [*template, *injected]:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"unknown parameter {name!r}.{hint} The parameters are {', '.join(known)}."
            )


def read_records(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Gather the records of runs: of files, and of every `metrics.json` below folders.

    Gives one row per score: the columns `scmoe.metrics.COLUMNS` and `run`, the path of its file.
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


def _rows(records: pd.DataFrame) -> list[dict]:
    """Records as plain Python values, undefined ones as None."""
    plain = records[COLUMNS].astype(object)
    return plain.where(records[COLUMNS].notna(), None).to_dict("records")


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
