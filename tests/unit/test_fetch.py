"""Downloads come whole or not at all, from a server that is slow, broken, busy or hostile."""

import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import threading
import time
import zipfile
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scmoe.data.__main__ import main
from scmoe.data.catalog import COLLECTION, DATASETS
from scmoe.data.check import DataError
from scmoe.data.download import CHUNK, FetchError, Http
from scmoe.data.fetch import RECORD, fetch, is_from_zenodo
from scmoe.data.unpack import UnsafeArchiveError, unpack

HASTY = Http(timeout=(2, 0.5), attempts=3, backoff=0.01)
PATCHSEQ = DATASETS["patchseq"].files


class Zenodo(BaseHTTPRequestHandler):
    """The two answers of Zenodo's API that matter, with faults that tests ask for.

    `server.faults[key]` is a list of faults for the file (or "record"), one taken per request.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        key = "record"
        if self.path != f"/api/records/{RECORD}":
            key = unquote(self.path.removeprefix(f"/api/records/{RECORD}/files/"))
            key = key.removesuffix("/content")
        server.log.append((self.command, key, self.headers.get("Range")))
        if server.moved and key != "record":
            return self._answer(302, b"", {"Location": server.moved})
        fault = server.faults[key].pop(0) if server.faults.get(key) else None
        if isinstance(fault, int):
            return self._answer(fault, b"", {"Retry-After": server.retry_after})
        if key == "record":
            return self._answer(200, json.dumps(server.record()).encode())
        if key not in server.files:
            return self._answer(404, b'{"status": 404}')
        self._send_file(server.files[key], fault)

    do_HEAD = do_GET

    def _send_file(self, body, fault):
        start = 0
        if (asked := self.headers.get("Range")) and fault != "ignore range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return self._answer(416, b"")
        part, headers = body[start:], {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._answer(206 if start else 200, part, headers, fault)

    def _answer(self, status, body, headers=(), fault=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.released.wait(5)
            self.close_connection = True
        elif fault == "slow":
            for piece in range(0, len(body), len(body) // 5 + 1):
                self.wfile.write(body[piece : piece + len(body) // 5 + 1])
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Zenodo)
        self.files, self.faults, self.log, self.wrong = {}, {}, [], set()
        self.retry_after, self.moved = "0", None
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/api"

    def record(self):
        return {
            "id": RECORD,
            "files": [
                {
                    "key": key,
                    "size": len(body),
                    "checksum": "md5:" + ("0" * 32 if key in self.wrong else md5(body).hexdigest()),
                    "links": {"self": f"{self.url}/records/{RECORD}/files/{key}/content"},
                }
                for key, body in self.files.items()
            ],
        }

    def asked(self, key):
        return [wanted for command, name, wanted in self.log if name == key and command == "GET"]


@pytest.fixture
def zenodo(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def h5ads(tmp_path_factory):
    """Tiny files by the names of the Patch-seq and DBiT-seq sets."""
    folder, bodies = tmp_path_factory.mktemp("h5ad"), {}
    for i, name in enumerate((*PATCHSEQ, *DATASETS["dbitseq"].files)):
        obs = pd.DataFrame({"cell_type": ["a", "b"] * 20}, index=[f"c{k}" for k in range(40)])
        values = np.random.default_rng(i).normal(size=(40, 500)).astype(np.float32)
        ad.AnnData(values, obs).write_h5ad(folder / name)
        bodies[name] = (folder / name).read_bytes()
    return bodies


@pytest.fixture
def patchseq(h5ads):
    return {name: h5ads[name] for name in PATCHSEQ}


def get(zenodo, root, name="patchseq", **options):
    options = {"yes": True, "url": zenodo.url, "progress": False, "http": HASTY} | options
    return fetch(name, root, **options)


def resumed(body):
    """The range asked for after half of a file: all but the last unfinished chunk was kept."""
    return f"bytes={len(body) // 2 // CHUNK * CHUNK}-"


def assert_clean(root, name="patchseq", parts=0):
    """No file of the set is there, and of the attempt only resumable parts are left."""
    assert not list((root / COLLECTION).glob(f"{DATASETS[name].folder}/*"))
    left = [p for p in (root / COLLECTION / ".download").glob("*") if p.name != "lock"]
    assert [p.suffix for p in left] == [".part"] * parts


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return out.getvalue()


def tarred(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for member, body in members:
            member = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return out.getvalue()


def test_loose_files_arrive_byte_for_byte_and_are_known_to_be_zenodos(zenodo, patchseq, tmp_path):
    zenodo.files = patchseq | {"README.md": b"not asked for"}
    folder = get(zenodo, tmp_path)
    assert folder == tmp_path / COLLECTION / "patchseq"
    assert {name: (folder / name).read_bytes() for name in PATCHSEQ} == patchseq
    assert all(is_from_zenodo(folder / name) for name in PATCHSEQ)
    assert not zenodo.asked("README.md")
    noted = json.loads((folder / "fetched.json").read_text())
    assert noted[PATCHSEQ[0]]["from"] == f"10.5281/zenodo.{RECORD}"
    assert noted[PATCHSEQ[0]]["md5"] == md5(patchseq[PATCHSEQ[0]]).hexdigest()
    assert [p.name for p in (tmp_path / COLLECTION / ".download").iterdir()] == ["lock"]


def test_what_is_there_is_not_downloaded_again_and_the_users_own_files_are_left_alone(
    zenodo, patchseq, tmp_path
):
    zenodo.files = patchseq
    own = tmp_path / COLLECTION / "patchseq" / PATCHSEQ[0]
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own")
    folder = get(zenodo, tmp_path)
    assert own.read_bytes() == b"my own" and not is_from_zenodo(own)
    assert is_from_zenodo(folder / PATCHSEQ[1])
    asked = len(zenodo.log)
    get(zenodo, tmp_path)
    assert len(zenodo.log) == asked


def test_a_fetched_file_that_changed_is_fetched_again(zenodo, patchseq, tmp_path):
    zenodo.files = patchseq
    folder = get(zenodo, tmp_path)
    body = bytearray(patchseq[PATCHSEQ[1]])
    body[-1] ^= 1
    (folder / PATCHSEQ[1]).write_bytes(body)
    assert not is_from_zenodo(folder / PATCHSEQ[1])
    get(zenodo, tmp_path)
    assert (folder / PATCHSEQ[1]).read_bytes() == patchseq[PATCHSEQ[1]]
    assert len(zenodo.asked(PATCHSEQ[0])) == 1 and len(zenodo.asked(PATCHSEQ[1])) == 2


@pytest.mark.parametrize("fault", ["slow", "cut", "stall", 503, 429])
def test_a_passing_fault_is_survived(zenodo, patchseq, tmp_path, fault):
    zenodo.files, key = patchseq, PATCHSEQ[0]
    zenodo.faults = {key: [fault], "record": [fault] if isinstance(fault, int) else []}
    folder = get(zenodo, tmp_path)
    assert (folder / key).read_bytes() == patchseq[key]
    again = {"slow": [], "cut": [resumed(patchseq[key])], "stall": [resumed(patchseq[key])]}
    assert zenodo.asked(key)[1:] == again.get(fault, [None])


def test_a_server_that_does_not_resume_is_read_from_the_start(zenodo, patchseq, tmp_path):
    zenodo.files, key = patchseq, PATCHSEQ[0]
    zenodo.faults = {key: ["cut", "ignore range"]}
    assert (get(zenodo, tmp_path) / key).read_bytes() == patchseq[key]


def test_too_many_requests_waits_as_long_as_it_is_told(zenodo, patchseq, tmp_path):
    zenodo.files, zenodo.faults, zenodo.retry_after = patchseq, {"record": [429]}, "1"
    start = time.monotonic()
    get(zenodo, tmp_path)
    assert time.monotonic() - start >= 1


def test_a_server_that_asks_for_an_hour_is_not_waited_for(zenodo, patchseq, tmp_path):
    zenodo.files, zenodo.faults, zenodo.retry_after = patchseq, {PATCHSEQ[0]: [429]}, "3600"
    with pytest.raises(FetchError, match="wait 3600 s"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)


def test_a_download_cut_off_for_good_is_resumed_by_the_next_call(zenodo, patchseq, tmp_path):
    zenodo.files, key = patchseq, PATCHSEQ[0]
    zenodo.faults = {key: ["cut", 503, 503, 503]}
    with pytest.raises(FetchError, match="run it again to go on"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path, parts=1)
    unfinished = tmp_path / COLLECTION / ".download"
    (unfinished / "unpacked" / "patchseq").mkdir(parents=True)  # as if killed meanwhile
    assert (get(zenodo, tmp_path) / key).read_bytes() == patchseq[key]
    assert zenodo.asked(key)[-1] == resumed(patchseq[key])
    assert [p.name for p in unfinished.iterdir()] == ["lock"]


def test_a_spoilt_partial_file_does_not_spoil_the_result(zenodo, patchseq, tmp_path):
    zenodo.files, key = patchseq, PATCHSEQ[0]
    zenodo.faults = {key: ["cut", 503, 503, 503]}
    with pytest.raises(FetchError):
        get(zenodo, tmp_path)
    (part,) = (tmp_path / COLLECTION / ".download").glob("*.part")
    part.write_bytes(b"x" * part.stat().st_size)
    assert (get(zenodo, tmp_path) / key).read_bytes() == patchseq[key]


def test_a_wrong_checksum_is_refused_and_deleted(zenodo, patchseq, tmp_path):
    zenodo.files, zenodo.wrong = patchseq, {PATCHSEQ[0]}
    with pytest.raises(FetchError, match="another checksum"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)


def test_a_missing_file_and_a_missing_record_are_told_apart(zenodo, patchseq, tmp_path):
    zenodo.files = patchseq
    record = zenodo.record()
    zenodo.files, zenodo.record = {}, lambda: record
    with pytest.raises(FetchError, match=f"{PATCHSEQ[0]}.* answered 404"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)
    with pytest.raises(FetchError, match=f"records/{RECORD} answered 404"):
        get(zenodo, tmp_path, url=zenodo.url + "/elsewhere")
    with pytest.raises(FetchError, match="Max retries exceeded"):
        get(zenodo, tmp_path, url="http://127.0.0.1:9/api")


def test_a_record_without_the_files_says_what_it_has(zenodo, tmp_path):
    zenodo.files = {"notes.txt": b"nothing else"}
    with pytest.raises(FetchError, match="neither .* nor an archive; it has: notes.txt"):
        get(zenodo, tmp_path)
    zenodo.files = {"collection.zip": zipped({"other/x.h5ad": b"x"})}
    with pytest.raises(FetchError, match="does not hold adata_RNA_TEM.h5ad"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)


def test_a_page_in_place_of_a_file_is_refused(zenodo, patchseq, tmp_path):
    zenodo.files = patchseq | {PATCHSEQ[2]: b"<html>please log in</html>"}
    with pytest.raises(FetchError, match="not an h5ad file"):
        get(zenodo, tmp_path)
    assert not list((tmp_path / COLLECTION / "patchseq").glob("*"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_one_archive_gives_every_set_that_it_holds(zenodo, h5ads, tmp_path, kind):
    members = {
        f"{COLLECTION}/{'patchseq' if name in PATCHSEQ else 'DBiTSeq'}/{name}": body
        for name, body in h5ads.items()
    } | {f"__MACOSX/._{PATCHSEQ[0]}": b"junk", f"other/{PATCHSEQ[0]}": b"not this one"}
    archive = zipped(members) if kind == "zip" else tarred(members.items())
    zenodo.files = {f"{COLLECTION}.{kind}": archive}
    zenodo.faults = {f"{COLLECTION}.{kind}": ["cut"]}
    folder = get(zenodo, tmp_path)
    get(zenodo, tmp_path, "dbitseq")
    assert len(zenodo.asked(f"{COLLECTION}.{kind}")) == 2  # cut and resumed, for both sets
    for name, body in h5ads.items():
        path = (folder if name in PATCHSEQ else folder.with_name("DBiTSeq")) / name
        assert path.read_bytes() == body and is_from_zenodo(path)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".download", "DBiTSeq", "patchseq"]


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name, target):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return out.getvalue()


EVIL = {
    "absolute.zip": lambda: zipped({"/tmp/evil": b"x"}),
    "parent.zip": lambda: zipped({"patchseq/../../evil": b"x"}),
    "backslash.zip": lambda: zipped({"patchseq\\..\\..\\evil": b"x"}),
    "drive.zip": lambda: zipped({"C:/evil": b"x"}),
    "link.zip": lambda: zip_link("patchseq/evil", "/etc/passwd"),
    "bomb.zip": lambda: zipped({"patchseq/adata_RNA_TEM.h5ad": bytes(40 << 20)}),
    "absolute.tar": lambda: tarred([("/tmp/evil", b"x")]),
    "parent.tar": lambda: tarred([("../evil", b"x")]),
    "symlink.tar": lambda: tarred([(link("patchseq/evil", "/etc/passwd"), b"")]),
    "hardlink.tar": lambda: tarred([(link("evil", "/etc/passwd", tarfile.LNKTYPE), b"")]),
    "device.tar": lambda: tarred([(link("evil", "", tarfile.CHRTYPE), b"")]),
    "bomb.tar": lambda: tarred([("patchseq/adata_RNA_TEM.h5ad", bytes(40 << 20))]),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_with_an_evil_member_is_refused_as_a_whole(zenodo, patchseq, tmp_path, name):
    zenodo.files = {name: EVIL[name]()}
    with pytest.raises(UnsafeArchiveError, match="refused"):
        get(zenodo, tmp_path / "deep" / "root")
    assert_clean(tmp_path / "deep" / "root")
    assert not list(tmp_path.rglob("evil*"))


def test_an_evil_member_after_good_ones_leaves_nothing(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"good": b"x", "../evil": b"x"}))
    with pytest.raises(UnsafeArchiveError):
        unpack(archive, lambda names: {"good": tmp_path / "good"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_a_damaged_archive_is_refused(zenodo, patchseq, tmp_path):
    body = zipped({f"patchseq/{name}": data for name, data in patchseq.items()})
    for damaged in (body[: len(body) // 2], b"no archive at all", body[:200] + b"?" + body[201:]):
        zenodo.files = {"patchseq.zip": damaged}
        with pytest.raises(FetchError, match="damaged or no archive"):
            get(zenodo, tmp_path)
        assert_clean(tmp_path)


def packed(mode):
    """An archive in that compression, of three members with long names."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for i in range(3):
            info = tarfile.TarInfo(f"d/{'x' * 120}{i}")
            info.size = 3000
            archive.addfile(info, io.BytesIO(os.urandom(info.size)))
    return out.getvalue()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_cut_or_changed_anywhere_is_refused_or_read(mode, tmp_path):
    body, archive = packed(mode), tmp_path / "a.tar"
    rng = np.random.default_rng(0)
    refused = 0
    for cut in rng.integers(0, len(body), 60):
        for damaged in (body[:cut], body[:cut] + bytes(rng.bytes(4)) + body[cut + 4 :]):
            archive.write_bytes(damaged)
            out = Path(tempfile.mkdtemp(dir=tmp_path))
            try:
                unpack(archive, lambda names, out=out: {n: out / n[-1] for n in names})
            except FetchError:
                refused += 1
    assert refused > 20


def test_a_member_without_a_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("Q", b"1")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"Q", b"\0"))
    with pytest.raises(FetchError, match="damaged or no archive"):
        unpack(tmp_path / "a.zip", lambda names: {})


def test_an_archive_of_many_members_is_gone_through_once_or_is_refused(tmp_path, monkeypatch):
    archive, seen, parse = tmp_path / "a.tar", [], tarfile.TarInfo.frombuf.__func__
    monkeypatch.setattr(
        tarfile.TarInfo, "frombuf", classmethod(lambda *args: seen.append(1) or parse(*args))
    )
    archive.write_bytes(tarred((f"{i}", b"") for i in range(12_000)))
    unpack(archive, lambda names: {})
    assert 12_000 <= len(seen) <= 12_010
    monkeypatch.setattr("scmoe.data.unpack.MAX_MEMBERS", 10_000)
    with pytest.raises(UnsafeArchiveError, match="10,001 members; refused"):
        unpack(archive, lambda names: {})
    monkeypatch.setattr("scmoe.data.unpack.MAX_SECONDS", -1)
    with pytest.raises(UnsafeArchiveError, match="takes over"):
        unpack(archive, lambda names: {})


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(10_240))
    with pytest.raises(UnsafeArchiveError, match="header of 1,073,741,824 bytes; refused"):
        unpack(tmp_path / "a.tar", lambda names: {})


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(checksum="md5:/tmp/x"),
        lambda file: file.update(checksum="md5:" + "0" * 31),
        lambda file: file.update(checksum="md5:" + "0" * 32 + "\n"),
        lambda file: file.update(checksum="sha1:" + "0" * 40),
        lambda file: file.update(checksum=3),
        lambda file: file.update(size=-1),
        lambda file: file.update(size=[1]),
        lambda file: file.update(key="/"),
        lambda file: file.update(links={"self": 3}),
    ],
)
def test_a_record_of_impossible_files_is_refused(zenodo, patchseq, tmp_path, change):
    zenodo.files = patchseq
    record = zenodo.record()
    change(record["files"][0])
    zenodo.record = lambda: record
    with pytest.raises(FetchError, match="lists a file"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)


@pytest.mark.parametrize("record", [[1], "x", 3, None, {"files": 3}, {"files": [3]}, {}])
def test_a_record_of_another_shape_is_refused(zenodo, tmp_path, record):
    zenodo.record = lambda: record
    with pytest.raises(FetchError, match="lists (no files|a file)"):
        get(zenodo, tmp_path)


@pytest.mark.parametrize(
    "noted", ["[]", '{"adata_RNA_TEM.h5ad": 3}', "{", '{"adata_RNA_TEM.h5ad": {"md5": 3}}']
)
def test_a_damaged_note_beside_the_files_counts_as_none(zenodo, patchseq, tmp_path, noted):
    zenodo.files = patchseq
    folder = get(zenodo, tmp_path)
    (folder / "fetched.json").write_text(noted)
    assert not is_from_zenodo(folder / PATCHSEQ[0])
    assert get(zenodo, tmp_path) == folder


def test_plain_http_is_refused_also_where_a_server_sends_us_there(zenodo, patchseq, tmp_path):
    with pytest.raises(FetchError, match="plain http, which is not safe; use https"):
        get(zenodo, tmp_path, url="http://example.org/api")
    zenodo.files = patchseq
    zenodo.moved = "http://example.org/elsewhere"
    with pytest.raises(FetchError, match="example.org/elsewhere is plain http"):
        get(zenodo, tmp_path)
    assert_clean(tmp_path)


def test_nothing_is_downloaded_without_consent(zenodo, patchseq, tmp_path, monkeypatch, capsys):
    zenodo.files = patchseq
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        with pytest.raises(FetchError, match="not downloaded|--yes"):
            get(zenodo, tmp_path, yes=False)
    assert "0.4 MB" in capsys.readouterr().out
    assert not zenodo.asked(PATCHSEQ[0]) and not list(tmp_path.iterdir())
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    get(zenodo, tmp_path, yes=False)
    assert zenodo.asked(PATCHSEQ[0])


def test_the_command_line_says_what_went_wrong_in_one_line(zenodo, patchseq, tmp_path, monkeypatch):
    monkeypatch.setenv("SCMOE_ZENODO_URL", zenodo.url)
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    zenodo.files = {"notes.txt": b"nothing else"}
    assert main(["fetch", "patchseq", "--root", str(tmp_path), "--yes"]) == 1
    assert err.getvalue().startswith("error: ") and err.getvalue().count("\n") == 1
    zenodo.files = patchseq
    assert main(["fetch", "patchseq", "--root", str(tmp_path), "--yes"]) == 0


def test_the_command_line_lists_what_is_here(tmp_path, capsys):
    assert main(["list", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in DATASETS) and "False" in out


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="name='mnist': it takes one of dyngen"):
        fetch("mnist", tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking")
@pytest.mark.filterwarnings("ignore:.*fork")  # the child uses nothing that another thread holds
def test_two_processes_started_together_download_once(zenodo, patchseq, tmp_path):
    zenodo.files, zenodo.faults = patchseq, {PATCHSEQ[0]: ["slow"] * 2}
    start = multiprocessing.get_context("fork")
    both = [start.Process(target=get, args=(zenodo, tmp_path)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [len(zenodo.asked(name)) for name in PATCHSEQ] == [1, 1, 1]
    assert is_from_zenodo(tmp_path / COLLECTION / "patchseq" / PATCHSEQ[0])
