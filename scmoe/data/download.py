"""Files over HTTP that survive slow, broken and busy connections."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm

CHUNK = 1 << 14  # bytes read at a time; as many may be lost when a connection breaks
BUSY = {408, 429, 500, 502, 503, 504}  # answers that another attempt may change
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


class FetchError(OSError):
    """A download that did not succeed; the message says why and what to do."""


class _Loopback(HTTPAdapter):
    """Plain http, to this machine alone: elsewhere anybody on the way could change the answer."""

    def send(self, request, *args, **options):
        """Send, or refuse; every redirection comes by here too."""
        if urlsplit(request.url).hostname not in ("localhost", "127.0.0.1", "::1"):
            raise FetchError(f"{request.url} is plain http, which is not safe; use https")
        return super().send(request, *args, **options)


class _PassingFault(Exception):
    """Worth another attempt, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Http:
    """How patiently to ask a server; times in seconds.

    `backoff` is the first pause between attempts and doubles with each; a server's Retry-After
    counts instead where it gives one, up to `longest_wait`. `attempts` are those in a row that
    bring no new byte.
    """

    connect_timeout: float = 10
    read_timeout: float = 60
    attempts: int = 6
    backoff: float = 1
    longest_wait: float = 120

    def json(self, url: str) -> dict:
        """Read a JSON document.

        Raises
        ------
        FetchError
            Not there, not JSON, or no answer after all attempts.
        """

        def read() -> dict:
            with self._get(url) as response:
                try:
                    return response.json()
                except requests.exceptions.JSONDecodeError as error:
                    raise FetchError(f"{url} did not answer with JSON: {error}") from error

        return self._persist(url, read, lambda: 0)

    def size(self, url: str) -> int | None:
        """Give the size of a file in bytes, or None where the server does not say."""

        def read() -> int | None:
            with self._get(url, method="HEAD") as response:
                length = response.headers.get("Content-Length")
                return int(length) if length else None

        return self._persist(url, read, lambda: 0)

    def download(self, url: str, path: Path, size: int | None = None, progress: bool = True):
        """Download into `path`; what is there already counts as the file's beginning.

        Parameters
        ----------
        url, path
            From where, to where. After a failure `path` keeps what has arrived, for next time.
        size
            The file's size in bytes, if known: nothing shorter passes, and nothing longer is read.
        progress
            Show a bar on stderr.

        Raises
        ------
        FetchError
            Not there, larger than announced, or incomplete after all attempts.
        """
        have = _size(path)
        if size is not None and have > size:
            path.unlink()
            have = 0
        bar = tqdm(
            total=size,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=path.stem,
            disable=not progress,
        )
        with bar:
            self._persist(url, lambda: self._append(url, path, size, bar), lambda: _size(path))

    def _append(self, url: str, path: Path, size: int | None, bar: tqdm) -> None:
        have = _size(path)
        if size is not None and have == size:
            return
        with self._get(url, start=have) as response:
            if response.status_code == 416:  # nothing beyond what we have, or another file
                path.unlink(missing_ok=True)
                raise _PassingFault("the partial file does not fit the one on the server")
            resumed = response.status_code == 206 and _range_start(response) == have
            if size is None:
                length = response.headers.get("Content-Length")
                size = int(length) + have * resumed if length else None
                bar.total = size
            bar.n = have if resumed else 0
            with open(path, "r+b" if resumed else "wb") as file:
                file.seek(have if resumed else 0)
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                    if size is not None and file.tell() > size:
                        raise FetchError(f"{url} sends more than the {size:,} bytes announced")
        if size is not None and _size(path) < size:
            raise _PassingFault(f"cut off after {_size(path):,} of {size:,} bytes")

    def _get(self, url: str, start: int = 0, method: str = "GET") -> requests.Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": "scmoe"}
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout = (self.connect_timeout, self.read_timeout)
        session = requests.Session()
        session.mount("http://", _Loopback())
        try:
            response = session.request(method, url, headers=headers, timeout=timeout, stream=True,
                                       allow_redirects=True)  # fmt: skip
        except (*BROKEN, FetchError):
            raise
        except requests.RequestException as error:  # no such scheme, malformed address, …
            raise FetchError(f"cannot ask {url}: {error}") from error
        if response.status_code in BUSY:
            reason = f"{response.status_code} {response.reason}"
            response.close()
            raise _PassingFault(reason, _retry_after(response))
        if response.status_code >= 400 and not (start and response.status_code == 416):
            response.close()
            raise FetchError(f"{url} answered {response.status_code} {response.reason}")
        return response

    def _persist(self, url: str, act, have):
        """Repeat `act` until it succeeds, or has failed too often without `have` growing."""
        longest, failures = have(), 0
        while True:
            try:
                return act()
            except (*BROKEN, _PassingFault) as error:
                grown = have() > longest
                longest, failures = max(longest, have()), 1 if grown else failures + 1
                reason, wait = str(error), getattr(error, "wait", None)
            if wait is not None and wait > self.longest_wait:
                raise FetchError(f"{url} asks to wait {wait:.0f} s ({reason}); try again then")
            if failures >= self.attempts:
                kept = f"; {longest:,} bytes are kept, run it again to go on" if longest else ""
                raise FetchError(f"{url}: {failures} attempts failed, the last: {reason}{kept}")
            time.sleep(self.backoff * 2 ** (failures - 1) if wait is None else wait)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _range_start(response: requests.Response) -> int:
    """First byte of a partial answer: `Content-Range: bytes 100-199/200` gives 100."""
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(start) if start.isdigit() else -1


def _retry_after(response: requests.Response) -> float | None:
    """Seconds until the server wants to be asked again: a number, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
