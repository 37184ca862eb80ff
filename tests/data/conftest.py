"""What the tests of the data package share: a private cache, a loopback mirror, a tiny stand-in for
MNIST's files."""

import gzip
import http.server
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from canonical import FILES, idx, vouch_for
from requests.adapters import HTTPAdapter

from dualprop.data import fetching, sources

# pytest starts in the package's repository; the shared benchmark data lies beside it, where it lies
# at all.
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder with the real MNIST and Fashion-MNIST."""
    if not (SHARED / "mnist").is_dir():
        pytest.skip(f"the real MNIST files are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def shared_cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the real CIFAR-10, unpacked."""
    if not (SHARED / "cifar10").is_dir():
        pytest.skip(f"the real CIFAR-10 is not at {SHARED}")
    if importlib.util.find_spec("PIL") is None:
        pytest.skip("unpacking the real CIFAR-10 needs pillow, which `make test` installs")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, SHARED / "unpack.py", folder, "cifar10"], check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private cache; and none of the user's settings, so that no test reads or fills the user's
    own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(sources, "cache_folder", lambda: folder)
    for variable in ("DUALPROP_DATA", "DUALPROP_MIRROR"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The four files, uncompressed, of a 'mnist' of 30 + 12 examples, 4×4 pixels, 3 classes; the
    table knows them."""
    random = np.random.default_rng(0)
    arrays = (
        random.integers(0, 256, (30, 4, 4), dtype=np.uint8),
        np.arange(30, dtype=np.uint8) % 3,
        random.integers(0, 256, (12, 4, 4), dtype=np.uint8),
        np.arange(12, dtype=np.uint8) % 3,
    )
    files = {name: idx(array) for name, array in zip(FILES, arrays, strict=True)}
    vouch_for("mnist", files, monkeypatch)
    return files


@pytest.fixture
def vouch(monkeypatch: pytest.MonkeyPatch):
    """vouch(files): make these files the true 'mnist' for this test."""
    return lambda files: vouch_for("mnist", files, monkeypatch)


@pytest.fixture
def lay_out():
    """lay_out(files, folder): write the files, gzipped unless `compress` is False."""

    def write(files: dict[str, bytes], folder: Path, compress: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / (name + ".gz" if compress else name)
            path.write_bytes(gzip.compress(content) if compress else content)

    return write


class Unencrypted(HTTPAdapter):
    """Sends what is meant for https:// in the clear: the tests' server has no certificate."""

    def send(self, request, *given, **options):
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, *given, **options)


class Mirror:
    """A web server on the loopback interface. `pages` maps paths to bodies; `requests` lists what
    was asked for. `replies` maps paths to functions that answer by themselves."""

    def __init__(self) -> None:
        self.replies: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.pages: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_short = False
        self.status = 404
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.requests.append(self.path)
                if self.path in mirror.replies:
                    mirror.replies[self.path](self)
                    return
                body = mirror.pages.get(self.path)
                self.send_response(mirror.status if body is None else 200)
                body = body or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if mirror.cut_short else body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def serve(self, files: dict[str, bytes], folder: str = "") -> None:
        """Put the gzipped files at /folder/NAME.gz."""
        for name, content in files.items():
            self.pages[f"{folder}/{name}.gz"] = gzip.compress(content)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    # A busy machine may let the server's thread wait for longer than a download may.
    monkeypatch.setattr(fetching, "SECONDS_OF_SILENCE", None)
    monkeypatch.setattr(fetching, "SECONDS_TO_BEGIN", 1e6)

    def session() -> requests.Session:
        speaking = https_alone()
        speaking.mount("https://127.0.0.1", Unencrypted())
        return speaking

    https_alone = fetching.session
    monkeypatch.setattr(fetching, "session", session)
    mirror = Mirror()
    thread = threading.Thread(target=mirror.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield mirror
    mirror.server.shutdown()
    thread.join()
    mirror.server.server_close()
