"""Files over HTTP that survive slow, broken and busy connections."""

import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from tqdm.auto import tqdm
from urllib3.util import Retry

CHUNK = 1 << 14  # bytes read at a time; as many may be lost when a connection breaks
BUSY = (408, 429, 500, 502, 503, 504)  # answers that another attempt may change
LONGEST_WAIT = 120  # seconds


class FetchError(OSError):
    """A download that did not succeed; the message says why and what to do."""


class _Patient(Retry):
    """Waits for as long as a busy server asks to, within reason."""

    def get_retry_after(self, response) -> float | None:
        wait = super().get_retry_after(response)
        if wait is not None and wait > LONGEST_WAIT:
            raise FetchError(f"the server asks to wait {wait:.0f} s; try again then")
        return wait


class _Careful(HTTPAdapter):
    """Plain http to this machine alone: elsewhere anybody on the way could change the answer."""

    def send(self, request, *args, **options):
        """Send, or refuse; every redirection comes by here too."""
        where = urlsplit(request.url)
        if where.scheme == "http" and where.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise FetchError(f"{request.url} is plain http, which is not safe; use https")
        return super().send(request, *args, **options)


@dataclass(frozen=True)
class Http:
    """How patiently to ask a server.

    `timeout` is for connecting and for the next bytes, in seconds; `attempts` are those in a row
    that bring no new byte; `backoff` is the pause after the first, doubled with each.
    """

    timeout: tuple[float, float] = (10, 60)
    attempts: int = 6
    backoff: float = 1

    def json(self, url: str) -> object:
        """Read a JSON document; a FetchError where there is none, or no answer."""
        with self._get(url) as response:
            try:
                return response.json()
            except requests.RequestException as error:
                raise FetchError(f"{url} did not answer with JSON: {error}") from error

    def download(self, url: str, path: Path, size: int, progress: bool = True) -> None:
        """Download a file of `size` bytes; what `path` has already counts as its beginning.

        Raises
        ------
        FetchError
            Not there, larger than `size`, or incomplete after all attempts; then `path` keeps what
            has arrived, for next time.
        """
        if _size(path) > size:
            path.unlink()
        longest, failures, reason = _size(path), 0, None
        with tqdm(total=size, unit="B", unit_scale=True, desc=path.stem, disable=not progress) as b:
            while not path.exists() or _size(path) < size:
                if failures == self.attempts:
                    raise FetchError(
                        f"{url}: {failures} attempts failed, the last: {reason}; "
                        f"{longest:,} bytes are kept, run it again to go on"
                    )
                if failures:
                    time.sleep(self.backoff * 2 ** (failures - 1))
                try:
                    self._append(url, path, size, b)
                    reason = f"cut off after {_size(path):,} of {size:,} bytes"
                except requests.RequestException as error:
                    reason = error
                failures = 1 if _size(path) > longest else failures + 1
                longest = max(longest, _size(path))

    def _append(self, url: str, path: Path, size: int, bar: tqdm) -> None:
        have = _size(path)
        with self._get(url, start=have) as response:
            if response.status_code == 416:  # another file than the one that was begun
                path.unlink()
                return
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            bar.n = have if resumed else 0
            with open(path, "ab" if resumed else "wb") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > size:
                        raise FetchError(f"{url} sends more than the {size:,} bytes announced")

    def _get(self, url: str, start: int = 0) -> requests.Response:
        headers = {"Accept-Encoding": "identity", "User-Agent": "scmoe"}
        if start:
            headers["Range"] = f"bytes={start}-"
        retry = _Patient(self.attempts - 1, status_forcelist=BUSY, backoff_factor=self.backoff)
        session = requests.Session()
        for scheme in ("https://", "http://"):
            session.mount(scheme, _Careful(max_retries=retry))
        try:
            response = session.get(url, headers=headers, timeout=self.timeout, stream=True)
        except requests.RequestException as error:
            raise FetchError(f"cannot get {url}: {error}; run it again to go on") from error
        if response.status_code >= 400 and not (start and response.status_code == 416):
            response.close()
            raise FetchError(f"{url} answered {response.status_code} {response.reason}")
        return response


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
