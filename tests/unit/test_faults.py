"""What is injected, where, and what must come: the right answer, or one clear error.

First files of every kind, damaged as bytes in every way of `BYTES`; then what only one kind of file
can suffer; then arguments, and names that look like code. Elsewhere: what stops a writer
(`test_keep`, `test_resume`), a run resumed (`test_engine`, `test_record`), servers (`test_fetch`).
"""

import json
import os
import re
import shutil
import socket
import tarfile
import tempfile
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from IPython.display import HTML
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file

import scmoe
from scmoe import page, plot
from scmoe.checkpoint import Checkpoint
from scmoe.data import DataError, Transform, read, split_mudata, write
from scmoe.data.check import DataWarning
from scmoe.data.fetch import read_note
from scmoe.data.screen import reading
from scmoe.data.unpack import unpack
from scmoe.keep import digest
from scmoe.metrics import COLUMNS
from scmoe.record import Run
from tests.conftest import make_tiny
from tests.unit.test_model import CONFIG, fitted
from tests.unit.test_user_files import N, both, cite

# --- any file, damaged as bytes -------------------------------------------------------------------


def to_bytes(change: Callable[[bytes], bytes]):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flipped(place: Callable[[int], int]):
    """One bit of the byte at that place."""

    def change(b):
        i = place(len(b))
        return b[:i] + bytes([b[i] ^ 1]) + b[i + 1 :]

    return to_bytes(change)


def instead(make: Callable[[Path], object]):
    return lambda path: (path.unlink(), make(path))


BYTES = {
    "cut in half": to_bytes(lambda b: b[: len(b) // 2]),
    "one byte short": to_bytes(lambda b: b[:-1]),
    "empty": to_bytes(lambda b: b""),
    "zeros": to_bytes(lambda b: bytes(len(b))),
    "a bit at the start": flipped(lambda n: 0),
    "a bit in the middle": flipped(lambda n: n // 2),
    "a bit at the end": flipped(lambda n: n - 1),
    "more in front": to_bytes(lambda b: b"\x89PNG\xff" + b),
    "twice": to_bytes(lambda b: b + b),
    "text": to_bytes(lambda b: b"404 not found\n"),
    "a JSON list": to_bytes(lambda b: b"[1]"),
    "deep JSON": to_bytes(lambda b: b'{"a":' * 100_000),
    "a folder": instead(os.mkdir),
    "a pipe": instead(os.mkfifo),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "lost": os.unlink,
}
BITS = ("a bit at the start", "a bit in the middle", "a bit at the end")


@dataclass
class Place:
    """A file, how it is read, and what then comes: `error` with `says`, or `comes`.

    `fine` are faults after which the right content comes all the same, `unseen` those that its
    format has nothing to see by, `again` what a second reading gives.
    """

    file: str
    use: Callable[[Path], object]
    error: type[Exception] | None = None
    says: str = ""
    comes: object = None
    fine: tuple = ()
    unseen: tuple = ()
    again: object = None


def content(cells) -> str:
    """Digest of all names and values."""
    held = [[name, *a.obs_names, *a.var_names, a.X] for name, a in cells.mod.items()]
    return digest(held, list(cells.obs_names), list(cells.obs["cell_type"].astype(str)))


def weights(folder: Path) -> object:
    return scmoe.ScMoE.load(folder / "model", "cpu").experts.state()[1]["network.head.weight"].sum()


def resumed(folder: Path) -> float:
    found = Checkpoint(folder, "this run").load()
    return -1.0 if found is None else float(found[0]["network"]["a"][0])


def unpacked(name: str):
    def use(folder):
        out = Path(tempfile.mkdtemp(dir=folder))
        unpack(folder / name, lambda names: {n: out / Path(n).name for n in names})
        return {file.name: file.read_bytes() for file in out.iterdir()}

    return use


NO_FILE = ("a link to nothing", "lost")
MODEL = "fit the model again|holds no model"
NO_ARCHIVE = "is damaged or no archive|No such file|Is a directory"
UNREADABLE = "cannot read .*{file}|no file .*{file}"
PLACES = {
    "model": Place("model/model.json", weights, (ValueError, FileNotFoundError), MODEL),
    "weights": Place("model/model.safetensors", weights, ValueError, MODEL),
    "checkpoint": Place(
        "checkpoint.safetensors", resumed, UserWarning, "checkpoint.safetensors is damaged",
        fine=NO_FILE, again=-1.0,
    ),
    "records": Place(
        "metrics.json", lambda folder: scmoe.read_records(folder)["value"].sum(), ValueError,
        "metrics.json is damaged .*run its notebook again", unseen=(*BITS, *NO_FILE),
    ),
    "note of a download": Place("fetched.json", read_note, comes={}, unseen=BITS,
                                fine=("one byte short",)),
    "h5mu": Place("cells.h5mu", lambda folder: content(read(folder / "cells.h5mu")), DataError,
                  UNREADABLE, unseen=BITS, fine=("twice",)),
    "h5ad": Place("rna.h5ad", lambda folder: content(read(folder / "rna.h5ad")), DataError,
                  UNREADABLE, unseen=BITS, fine=("twice",)),
    "zarr's notes": Place("rna.zarr/.zmetadata", lambda f: content(read(f / "rna.zarr")),
                          DataError, "cannot read .*rna.zarr", unseen=BITS,
                          fine=("a folder", "lost")),
    "zarr's array": Place("rna.zarr/X/data/.zarray", lambda f: content(read(f / "rna.zarr")),
                          DataError, "cannot read .*rna.zarr", unseen=BITS,
                          fine=("a JSON list", "a folder", "lost")),
    "zarr's values": Place("rna.zarr/X/data/0", lambda folder: content(read(folder / "rna.zarr")),
                           DataError, "cannot read .*rna.zarr", unseen=BITS),
    "zip": Place("a.zip", unpacked("a.zip"), OSError, NO_ARCHIVE, unseen=("a pipe",),
                 fine=("more in front", "twice", "a bit at the end")),
    "tar": Place("a.tar.xz", unpacked("a.tar.xz"), OSError, NO_ARCHIVE, unseen=("a pipe",),
                 fine=("twice", "one byte short", "a bit at the end")),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one file of every kind; and another model, to be mixed up with the first."""
    folder = tmp_path_factory.mktemp("made")
    split = split_mudata(make_tiny(90))
    for seed, name in enumerate(("model", "other")):
        fitted(split, config=CONFIG.replace(epochs=1), seed=seed).save(folder / name)
    Checkpoint(folder, "this run").save({"network": {"a": torch.ones(64)}}, {})
    row = dict.fromkeys(COLUMNS, "a") | {"value": 0.5}
    (folder / "metrics.json").write_text(json.dumps({"records": [row]}))
    noted = {"a.h5ad": {"md5": "0", "from": "10.5281/zenodo.1", "in": "all.zip"}}
    (folder / "fetched.json").write_text(json.dumps(noted) + "\n")
    rna, _ = cite()
    write(both(), folder / "cells.h5mu")
    rna.write_h5ad(folder / "rna.h5ad")
    with anndata.settings.override(zarr_write_format=2):
        rna.write_zarr(folder / "rna.zarr")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("d/a.txt", b"a" * 500)
    with tarfile.open(folder / "a.tar.xz", "w:xz") as archive:
        info = tarfile.TarInfo("d/a.txt")
        info.size = 500
        archive.addfile(info, BytesIO(b"a" * 500))
    return folder


@pytest.fixture(scope="module")
def right(made):
    """What each place gives when nothing has happened to it."""
    return {name: place.use(made) for name, place in PLACES.items()}


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for name, its in PLACES.items() for fault in BYTES if fault not in its.unseen],
)
def test_a_damaged_file_is_named_or_read_as_it_was(name, fault, made, right, tmp_path):
    its, folder = PLACES[name], tmp_path / "made"
    shutil.copytree(made, folder)
    BYTES[fault](folder / its.file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        if fault in its.fine:
            assert its.use(folder) == (its.again or right[name])
        elif its.error is None:
            assert its.use(folder) == its.comes
        else:
            with pytest.raises(its.error, match=its.says.format(file=Path(its.file).name)):
                its.use(folder)
            if its.again is not None:
                assert its.use(folder) == its.again


# --- a model whose parts do not belong together ---------------------------------------------------


def reworked(change, sign=False):
    """Damage model.json as JSON; signed, it is as if it had been saved so."""

    def damage(folder):
        note = json.loads((folder / "model.json").read_text())
        note = change(note) or note
        if sign:
            arrays = {k: v.numpy() for k, v in load_file(folder / "model.safetensors").items()}
            del note["sha256"]
            note["tensors"] = digest(arrays)
            note["sha256"] = digest(json.dumps(note))
        (folder / "model.json").write_text(json.dumps(note))

    return damage


def not_a_number(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["experts.network.head.weight"][0, 0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    reworked(lambda note: None, sign=True)(folder)


DAMAGES = {
    "note a list": reworked(lambda note: [note]),
    "groups reordered": reworked(lambda note: note["groups"].reverse()),
    "parts renamed": reworked(lambda note: note["components"].update(rna=0)),
    "another clip": reworked(lambda note: note["transform"].update(clip=1.0)),
    "no digest": reworked(lambda note: {k: v for k, v in note.items() if k != "sha256"}),
    "unknown setting": reworked(lambda note: note["config"]["model"].update(depth=3), sign=True),
    "no groups": reworked(lambda note: note.pop("groups") and None, sign=True),
    "no task of ours": reworked(lambda note: note.update(task="semi"), sign=True),
    "huge": reworked(lambda note: note["config"]["model"].update(d=4 * 10**9), sign=True),
    "weights of another": lambda folder: shutil.copy(
        folder.parent / "other" / "model.safetensors", folder
    ),
    "not a number": not_a_number,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_with_its_file_and_what_to_do(made, tmp_path, damage):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    scmoe.ScMoE.load(tmp_path / "model", "cpu")
    DAMAGES[damage](tmp_path / "model")
    says = r"model\.(json|safetensors) is damaged \(.+fit the model again"
    with pytest.raises(ValueError, match=says):
        scmoe.ScMoE.load(tmp_path / "model", "cpu")


def test_one_bit_flipped_in_any_tensor_is_found(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    held = json.loads(whole[8:start])
    ends = [its["data_offsets"][1] for name, its in held.items() if name != "__metadata__"]
    for end in ends:
        flipped = bytearray(whole)
        flipped[start + end - 1] ^= 1
        file.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            scmoe.ScMoE.load(tmp_path / "model", "cpu")
    file.write_bytes(whole)
    scmoe.ScMoE.load(tmp_path / "model", "cpu")


def test_a_model_of_an_earlier_format_says_what_to_do(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    reworked(lambda note: note.update(format=3))(tmp_path / "model")
    with pytest.raises(ValueError, match="format 3; this version reads 4: fit the model again"):
        scmoe.ScMoE.load(tmp_path / "model", "cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda meta, arrays: meta["modalities"]["rna"].pop("kind"),
        lambda meta, arrays: meta["modalities"]["rna"].update(kind="pickled"),
        lambda meta, arrays: meta["modalities"]["rna"].update(names=["a"]),
        lambda meta, arrays: meta["modalities"]["rna"].update(per_cell=np.nan),
        lambda meta, arrays: arrays.pop("rna/mean"),
        lambda meta, arrays: arrays.update({"rna/scale": arrays["rna/scale"][:-1]}),
        lambda meta, arrays: arrays.update({"rna/mean": arrays["rna/mean"] * np.nan}),
        lambda meta, arrays: arrays.update({"rna/scale": arrays["rna/scale"] * 0}),
        lambda meta, arrays: arrays.update({"rna/used": arrays["rna/used"].astype(float)}),
    ],
)
def test_a_damaged_transform_is_not_restored(tiny, damage):
    meta, arrays = Transform().fit(tiny).state()
    damage(meta, arrays)
    with pytest.raises(ValueError, match="transform of modality 'rna'"):
        Transform.from_state(meta, arrays)


# --- files that would run code, hang, or bring in another's content -----------------------------


def _link(path, make):
    with h5py.File(path, "a") as file:
        del file["mod/rna/obs/cell_type"]
        file["mod/rna/obs/cell_type"] = make(path)


def _external(path):
    (path.parent / "secret.txt").write_bytes(b"12345678" * N)
    with h5py.File(path, "a") as file:
        del file["obsm/X"]
        secret = [(str(path.parent / "secret.txt"), 0, 8 * N)]
        file.create_dataset("obsm/X", (N, 1), "f8", external=secret)


def _virtual(path):
    layout = h5py.VirtualLayout((N, 1), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (N, 1))
    with h5py.File(path, "a") as file:
        del file["obsm/X"]
        file.create_virtual_dataset("obsm/X", layout)


def _deep(path):
    with h5py.File(path, "a") as file:
        file.create_group("uns/" + "/".join("d" * 500))


HDF5 = {
    "external link": lambda p: _link(p, lambda p: h5py.ExternalLink("other.h5", "/x")),
    "soft link": lambda p: _link(p, lambda p: h5py.SoftLink("/obs")),
    "external storage": _external,
    "virtual storage": _virtual,
    "deep": _deep,
}


@pytest.mark.parametrize("fault", HDF5)
@pytest.mark.parametrize("ending", ["h5mu", "h5ad", "h5"])
def test_an_hdf5_file_that_leads_elsewhere_is_refused(fault, ending, tmp_path):
    m = both()
    m.obsm["X"] = np.zeros((N, 1))
    path = write(m, tmp_path / "cells.h5mu")
    HDF5[fault](path)
    path = path.rename(path.with_suffix(f".{ending}"))
    with pytest.raises(DataError, match=f"cells.{ending}.*(link|another file|too deep)"):
        read(path)


def _changed(array, change):
    def act(file):
        values = change(file[array][...])
        del file[array]
        file[array] = values

    return act


LIES = {
    "a column beyond": _changed("mod/rna/X/indices", lambda v: np.where(v == 3, 10**6, v)),
    "a column below": _changed("mod/rna/X/indices", lambda v: np.where(v == 3, -5, v)),
    "rows that overlap": _changed("mod/rna/X/indptr", lambda v: np.r_[0, v[2], v[1], v[3:]]),
    "rows beyond": _changed("mod/rna/X/indptr", lambda v: np.r_[v[:-1], v[-1] + 10**6]),
    "a category beyond": _changed("obs/cell_type/codes", lambda v: np.where(v == 1, 100, v)),
    "a modality twice": lambda file: file["mod"].attrs.modify("mod-order", ["rna", "rna"]),
    "a modality left out": lambda file: file["mod"].attrs.__setitem__("mod-order", ["rna"]),
    "a column of nothing": lambda file: file["obs"].attrs.__setitem__("column-order", ["ghost"]),
    "itself": lambda file: file["mod/rna/uns"].__setitem__("me", file["mod/rna"]),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("backed", [False, True])
def test_a_file_whose_parts_contradict_each_other_is_refused(lie, backed, tmp_path):
    path = write(both(), tmp_path / "cells.h5mu")
    with h5py.File(path, "a") as file:
        LIES[lie](file)
    with pytest.raises(DataError, match="cells.h5mu: it is damaged|'rna': X cannot be read"):
        scmoe.data.check(read(path, backed=backed))


@pytest.mark.parametrize(("array", "values"), [("indices", 10**6), ("indptr", 5)])
def test_a_sparse_matrix_that_leads_nowhere_is_refused(array, values):
    rna, adt = cite()
    getattr(rna.X, array)[3] = values
    with pytest.raises(DataError, match="'rna': X cannot be read"):
        split_mudata(read({"rna": rna, "protein": adt}))


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.mkdir(p), lambda p: bind(p)])
@pytest.mark.parametrize("ending", ["h5mu", "h5ad", "h5"])
def test_what_is_no_plain_file_is_not_opened(make, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(f"x.{ending}")
    with pytest.raises(DataError, match=f"x.{ending} is a (device or pipe|folder)"):
        read(f"x.{ending}")


def bind(path):
    socket.socket(socket.AF_UNIX).bind(path)


def _zarr(folder, version):
    rna, _ = cite()
    rna.obs["n"] = np.arange(N)
    with anndata.settings.override(zarr_write_format=version):
        rna.write_zarr(folder / "rna.zarr")
    return folder / "rna.zarr"


def _ask_for_codec(path, name):
    for file in path.rglob("*"):
        if file.name in (".zarray", "zarr.json"):
            meta = json.loads(file.read_text())
            if "filters" in meta:
                meta["filters"] = [*(meta["filters"] or []), {"id": name}]
            elif "codecs" in meta:
                meta["codecs"].append({"name": f"numcodecs.{name}", "configuration": {}})
            file.write_text(json.dumps(meta))


@pytest.mark.parametrize("codec", ["pickle", "json2", "something_new"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_zarr_codec_that_might_run_code_is_refused(version, codec, tmp_path):
    path = _zarr(tmp_path, version)
    assert read(path).n_obs == N
    _ask_for_codec(path, codec)
    with pytest.raises(DataError, match=f"codec {codec}.*might run code"):
        read(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "lost", ["X/data", "X/indices", "obs/_index", "var/_index", "obs/cell_type/codes"]
)
def test_a_lost_chunk_is_not_read_as_zeros(version, lost, tmp_path):
    path = _zarr(tmp_path, version)
    chunk = path / lost / ("c/0" if version == 3 else "0")
    chunk.unlink()
    with pytest.raises(DataError, match=f"{lost}, 1 of 1 chunks are missing"):
        read(path)


def test_one_lost_chunk_of_several_is_not_read_as_zeros(tmp_path):
    adata, path = cite()[1], tmp_path / "protein.zarr"
    adata.X = adata.X.toarray()
    adata.write_zarr(path, chunks=(20, 8))
    assert read(path).n_obs == N
    (path / "X/1.0").unlink()
    with pytest.raises(DataError, match="X, 1 of 3 chunks are missing"):
        read(path)


def test_a_column_of_zeros_alone_is_read_and_named(tmp_path):
    path = _zarr(tmp_path, 2)
    (path / "obs/n/0").unlink()
    with pytest.warns(DataWarning, match="no values are stored for obs/n"):
        assert read(path).obs["n"].tolist() == [0] * N


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.symlink("/etc/passwd", p)])
def test_a_zarr_folder_of_anything_but_plain_files_is_refused(make, tmp_path):
    path = _zarr(tmp_path, 2)
    (path / "X/data/0").unlink()
    make(path / "X/data/0")
    with pytest.raises(DataError, match="X/data/0 is a (link|device or pipe)"):
        read(path)


def test_a_file_that_claims_more_values_than_it_can_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file.create_dataset("X", (10**5, 10**5), "f8", chunks=(1000, 1000))
    with pytest.raises(DataError, match="holds 80 GB of values, in 0.0 MB: it is damaged"):
        read(tmp_path / "x.h5ad")


def test_too_little_memory_is_not_called_damage(tmp_path):
    cite()[0].write_h5ad(tmp_path / "x.h5ad")
    said = pytest.raises(DataError, match="not enough memory to read .*x.h5ad")
    with said, reading(tmp_path / "x.h5ad"):
        np.ones(10**14)
    with said, reading(tmp_path / "x.h5ad"):
        raise OSError("Can't read data (memory allocation failed for raw data chunk)")


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test": ["AAAC00000-1", "nobody"]}, "no cells called nobody"),
        ({"test": ("bach", "b2")}, "columns: cell_type, batch; did you mean 'batch'"),
        ({"test": True}, "test=True: it takes a fraction"),
        ({"val": {"batch": "b2"}}, "val=.*: it takes a fraction"),
        ({"seed": 1.5}, "seed=1.5: it takes a whole number"),
        ({"seed": -1}, "seed=-1: it takes a whole number"),
        ({"seed": 2**63}, "seed=.*: it takes a whole number"),
        ({"seed": "a"}, "seed='a': it takes a whole number"),
        ({"label_key": 3}, "label_key=3"),
        ({"label_key": ["batch"]}, r"label_key=\['batch'\]: it takes the name of a column"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named_with_what_it_takes(options, says):
    m = both()
    m.obs["batch"] = ["b1", "b2", "b3"] * 20
    with pytest.raises(DataError, match=says):
        split_mudata(m, **options)


@pytest.mark.parametrize("function", [read, split_mudata, Transform().fit, scmoe.data.check])
@pytest.mark.parametrize("what", [None, 3, {"rna": 3}, "nowhere.h5mu"])
def test_what_holds_no_cells_is_refused(function, what):
    with pytest.raises(DataError):
        function(what)


@pytest.mark.parametrize(
    "options", [{"clip": "ten"}, {"clip": np.inf}, {"clip": True}, {"kinds": 3}]
)
def test_a_transform_refuses_what_it_cannot_do(options):
    with pytest.raises(DataError, match=f"{next(iter(options))}=.*it takes"):
        Transform(**options)


@pytest.mark.parametrize(
    ("ask", "meant"),
    [
        (lambda m: scmoe.data.load("patchsec"), "patchseq"),
        (lambda m: scmoe.data.load("patchseq", modalities=["efys"]), "ephys"),
        (lambda m: scmoe.data.check(m, modalities=["rnaa"]), "rna"),
        (lambda m: split_mudata(m, "cell_typ"), "cell_type"),
        (lambda m: split_mudata(m, test=["AAAC00000"]), "AAAC00000-1"),
        (lambda m: Transform({"Proteins": "counts"}).fit(m), "protein"),
        (lambda m: Transform({"rna": "count"}), "counts"),
        (lambda m: scmoe.baselines.Ridge(["rna", "protien"]).fit(split_mudata(m)), "protein"),
    ],
)
def test_a_near_miss_of_a_name_is_suggested(ask, meant):
    with pytest.raises(DataError, match=f"did you mean '{meant}'"):
        ask(both())


@pytest.mark.parametrize("place", ["a file", "a file/below", "a pipe", "a link", 3])
def test_a_place_that_takes_no_checkpoint_is_refused_before_training(place, tmp_path):
    (tmp_path / "a file").write_text("mine")
    os.mkfifo(tmp_path / "a pipe")
    (tmp_path / "a link").symlink_to("nowhere")
    folder = place if place == 3 else tmp_path / place
    with pytest.raises((OSError, ValueError), match="checkpoint=3|a file|a pipe|a link"):
        Checkpoint(folder, "this run").load()
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_model_saved_at_a_link_to_nothing_takes_its_place(made, tmp_path):
    (tmp_path / "model").symlink_to("nowhere")
    scmoe.ScMoE.load(made / "model", "cpu").save(tmp_path / "model")
    assert scmoe.ScMoE.load(tmp_path / "model", "cpu").groups_


# --- names that look like code --------------------------------------------------------------------

NAMES = [
    "<script>alert(1)</script>", "</td><img src=x onerror=alert(1)>", "[x](javascript:alert(1))",
    "![](https://example.org/x.png)", "$\\frac{$", "$x$ and $y$", "{{ 7 * 7 }}", "{n}", "&lt;b&gt;",
    "`rm -rf ~`", "../../etc/passwd", "# title", "a|b", "%3Cb%3E", "HLA-A/B/C", "naïve ✓",
]  # fmt: skip


def plain(markup: str) -> str:
    """The text that a browser shows of HTML in which nobody's text has become an element."""
    soup = BeautifulSoup(markup, "html.parser")
    assert not soup.find_all(["script", "img", "a", "b", "code", "iframe", "svg"])
    attributes = {name for tag in soup.find_all(True) for name in tag.attrs}
    assert not [name for name in attributes if name.startswith("on") or name in ("href", "src")]
    return " ".join(soup.get_text(" ").split())


@pytest.fixture(scope="module")
def split():
    return split_mudata(make_tiny(60))


SURFACES = {
    "column of a table": lambda name, _: page.table(pd.DataFrame({name: [1]}), "T"),
    "row of a table": lambda name, _: page.table(pd.DataFrame({"a": [1]}, [name]), "T"),
    "value of a table": lambda name, _: page.table(pd.DataFrame({"a": [name]}), "T", folded=True),
    "caption": lambda name, _: page.table(pd.DataFrame({"a": [1]}), name),
    "fold": lambda name, split: page.banner(Run("own"), replace(split, fold=name)),
    "note": lambda name, split: page.banner(Run("own"), replace(split, notes=[name])),
    "modality": lambda name, split: page.banner(
        Run("own"), replace(split, train=scmoe.data.cells.make_mudata({name: split.train["rna"]}))
    ),
    "claim": lambda name, _: HTML(
        MarkdownIt("gfm-like", {"linkify": False}).render(
            scmoe.claim("Best is {best}", holds=True, best=name).data
        )
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("surface", SURFACES)
def test_a_name_is_shown_as_it_is_and_becomes_no_code(surface, name, split):
    assert name in plain(SURFACES[surface](name, split).data)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_shows_a_name_as_it_is(name):
    groups = np.array([name, "b"] * 5)
    fig = plot.confusion(groups, groups[::-1], name)
    fig.savefig(out := BytesIO(), format="svg")
    assert b"<script" not in out.getvalue()
    drawn = [text for text in fig.findobj(plot.Text) if name in text.get_text()]
    assert len(drawn) >= 3 and not any(text.get_parse_math() for text in drawn if "$" in name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_anything_comes_back_from_a_file(name, tmp_path):
    rna, protein = cite()
    rna.obs[name] = range(N)
    cells = read({name: rna, "protein": protein})
    cells.obsm["table"] = pd.DataFrame({name: np.arange(N)}, cells.obs_names)
    back = read(write(cells, tmp_path / "cells.h5mu"))
    assert list(back.mod) == [name, "protein"]
    assert back.obs[name].tolist() == back.obsm["table"][name].tolist() == list(range(N))
    assert [p.name for p in tmp_path.iterdir()] == ["cells.h5mu"]


def test_every_action_of_a_workflow_is_pinned_by_its_commit():
    folder = Path(__file__).parents[2] / ".github" / "workflows"
    used = [line.split("uses:")[1] for file in folder.iterdir()
            for line in file.read_text().splitlines() if "uses:" in line]  # fmt: skip
    assert used and all(re.fullmatch(r" [\w/-]+@[0-9a-f]{40} # v[\d.]+", one) for one in used)


def test_what_make_installs_is_pinned_once_and_each_file_of_it_hashed():
    root = Path(__file__).parents[2]
    pins, found = (root / "constraints.txt").read_text(), (root / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", pins, re.MULTILINE))
    pinned = {re.sub("[._]", "-", name.lower()): version for name, version in pinned.items()}
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:", found, re.MULTILINE))
    assert len(locked) == len(re.findall("^[a-z]", found, re.MULTILINE))
    assert "torch" not in locked  # which build it is is the machine's choice
    assert {name for name in locked if pinned.get(name, locked[name]) != locked[name]} == set()
    needed = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    needed = needed["dependencies"] + sum(
        map(needed["optional-dependencies"].get, ["book", "test"]), []
    )
    assert {re.match("[a-z0-9-]+", name).group() for name in needed} - {"torch"} <= set(locked)
