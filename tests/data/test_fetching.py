"""Servers that can't be trusted: each download ends, in a line, with nothing left behind."""

import gzip
import threading

import pytest
from canonical import FILES

from dualprop.data import fetching, load, sources
from dualprop.errors import DataError

IMAGES = FILES[0]
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\n"


def failure(mirror, cache) -> str:
    """The line that a download ends in; the cache stays empty."""
    with pytest.raises(DataError) as raised:
        load("mnist", mirror=mirror.url)
    assert "\n" not in str(raised.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    return str(raised.value)


@pytest.fixture
def released():
    """An event that the server's threads wait for, set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_reply_without_an_end_is_cut_off_at_the_size_of_the_file(tiny, mirror, cache, monkeypatch):
    """Written on, it would fill the disk."""
    monkeypatch.setitem(sources.SOURCES["mnist"].sizes, IMAGES, 200_000)
    sent = []

    def endless(request):
        request.wfile.write(HEADERS + b"\r\n")
        try:
            while True:
                request.wfile.write(bytes(1 << 16))
                sent.append(1)
        except OSError:  # the reader has gone away
            request.close_connection = True

    mirror.replies[f"/{IMAGES}.gz"] = endless
    assert "it sends more than the 201224 bytes that the file can have" in failure(mirror, cache)
    assert len(sent) << 16 < 1e8, "far more was read than the file can have, and what the sockets hold"


def test_a_length_beyond_the_size_of_the_file_is_refused_before_it_is_read(tiny, mirror, cache, released):
    """A hundred gigabytes would take a day to be refused by their checksum."""

    def large(request):
        request.wfile.write(HEADERS + b"Content-Length: 100000000000\r\n\r\n")
        released.wait()

    mirror.replies[f"/{IMAGES}.gz"] = large
    assert "more than the" in failure(mirror, cache)


DRIPS = {
    "nothing": b"",
    "a status line that goes on": b"HTTP/1.1 200 O",
    "headers that go on": HEADERS + b"X: ",
    "a body that goes on": HEADERS + b"Content-Length: 1000\r\n\r\nabc",
    "chunks that go on": HEADERS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_reply_that_never_ends_is_given_up_when_its_time_is_over(drip, tiny, mirror, cache, released, monkeypatch):
    """A byte now and then keeps every wait for the next one short, and the whole one without an
    end."""
    monkeypatch.setattr(fetching, "SECONDS_TO_BEGIN", 0.2)
    monkeypatch.setattr(fetching, "BYTES_PER_SECOND", 1e12)

    def dripping(request):
        request.wfile.write(DRIPS[drip])
        released.wait()
        request.close_connection = True

    # The server may not even have been asked when the time is over.
    for page in (f"/mnist/{IMAGES}.gz", f"/{IMAGES}.gz"):
        mirror.replies[page] = dripping
    assert "it was not there after 0 seconds" in failure(mirror, cache)


def test_a_server_that_says_nothing_is_given_up_by_the_wait_for_a_byte(tiny, mirror, cache, released, monkeypatch):
    """Before its whole time is over."""
    monkeypatch.setattr(fetching, "SECONDS_OF_SILENCE", 0.2)
    for page in (f"/mnist/{IMAGES}.gz", f"/{IMAGES}.gz"):
        mirror.replies[page] = lambda request: released.wait()
    assert "ReadTimeout" in failure(mirror, cache)


def test_a_redirect_to_plain_http_is_not_followed(tiny, mirror, cache):
    """Whoever sits between could send what they like, and learn what is trained."""

    def away(request):
        request.send_response(302)
        request.send_header("Location", mirror.url.replace("https", "http") + "/elsewhere")
        request.end_headers()

    mirror.replies[f"/{IMAGES}.gz"] = away
    assert "it leads away from https://" in failure(mirror, cache)
    assert "/elsewhere" not in mirror.requests


def test_a_redirect_within_https_is_followed(tiny, mirror):
    """Mirrors move."""
    mirror.serve(tiny, "/moved")

    def away(request):
        request.send_response(301)
        request.send_header("Location", f"{mirror.url}/moved{request.path}")
        request.end_headers()

    for name in FILES:
        mirror.replies[f"/{name}.gz"] = away
    assert len(load("mnist", mirror=mirror.url).test) == 12


def test_redirects_without_an_end_are_given_up(tiny, mirror, cache):
    """Two pages that lead to each other."""

    def away(request):
        request.send_response(302)
        request.send_header("Location", mirror.url + request.path)
        request.end_headers()

    mirror.replies[f"/{IMAGES}.gz"] = away
    assert "TooManyRedirects" in failure(mirror, cache)


@pytest.mark.parametrize("url", ["http://127.0.0.1", "HTTP://127.0.0.1", "ftp://127.0.0.1", "file:///etc"])
def test_a_mirror_without_https_is_refused_by_name(url, tiny, mirror, cache):
    """Before anything is asked for."""
    mirror.url = url
    assert "it is no https:// address" in failure(mirror, cache)


def test_every_file_that_is_downloaded_has_a_size_and_comes_by_https():
    """A source that is added without them would be read without a limit."""
    for source in sources.SOURCES.values():
        assert set(source.sizes) == ({source.archive[0]} if source.archive else set(source.sha256))
        assert source.mirror.startswith("https://")


def test_a_file_that_gzip_can_not_compress_is_not_too_large(tiny):
    """Some mirrors store the files with the least effort."""
    for name, content in tiny.items():
        assert len(gzip.compress(content, 0)) <= len(content) + len(content) // 1000 + 1024
        assert len(content) <= sources.SOURCES["mnist"].sizes[name]
