"""A note beside downloaded files that says what they are and where they came from."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pooch

from scmoe.keep import DAMAGED, read_json, write_json

NAME = "fetched.json"


def describe(path: Path, origin: str) -> dict:
    """Give the note's entry for a file: size in bytes, MD5, and the file it came from or in."""
    return {"size": path.stat().st_size, "md5": pooch.file_hash(path, alg="md5"), "from": origin}


def write_manifest(folder: Path, source: str, address: str, files: dict[str, dict]) -> None:
    """Note files in a folder, keeping what was noted before from the same source.

    The note appears whole or not at all.
    """
    old = read_manifest(folder)
    kept = old["files"] if old.get("source") == source else {}
    manifest = {
        "source": source,
        "address": address,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": kept | files,
    }
    write_json(folder / NAME, manifest)


def read_manifest(folder: Path) -> dict:
    """Read a folder's note; empty where there is none, or none that can be read."""
    try:
        manifest = read_json(folder / NAME)
        entries = manifest["files"].values()
        return manifest if all(isinstance(entry, dict) for entry in entries) else {}
    except (OSError, *DAMAGED):
        return {}


def unchanged(path: Path, noted: dict | None) -> bool:
    """Tell whether a file is byte for byte the one noted."""
    return (
        noted is not None
        and path.is_file()
        and path.stat().st_size == noted.get("size")
        and pooch.file_hash(path, alg="md5") == noted.get("md5")
    )


def is_from_zenodo(path: str | os.PathLike) -> bool:
    """Tell whether a file is, byte for byte, one that `scmoe.data.fetch` got from Zenodo.

    Compares size and MD5 with the note in the same folder; False where there is none.
    """
    path = Path(path)
    manifest = read_manifest(path.parent)
    return manifest.get("source") == "zenodo" and unchanged(path, manifest["files"].get(path.name))
