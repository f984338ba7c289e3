"""One photograph from the web: where not to go, what is tried again, and what is believed."""
import asyncio
import io
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from sdd_face import fetch
from sdd_face.fetch import IMAGE_ENDINGS, check_photo, is_public, open_visitor, run_to_end
from sdd_face.images import LeftOut


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "2002:a00:1::", "name"])
def test_what_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "::ffff:93.184.215.14"])
def test_what_is_public(address):
    assert is_public(address)


def encode(image: Image.Image, kind: str) -> bytes:
    """Give an image's file."""
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


@pytest.mark.parametrize("kind", sorted(set(IMAGE_ENDINGS) - {"MPO"}))
def test_the_ending_of_each_kind_of_photograph(kind):
    data = encode(Image.new("RGB", (60, 60), "teal"), kind)
    assert check_photo(data, sha256(data).hexdigest()) == IMAGE_ENDINGS[kind]


@pytest.mark.parametrize(("data", "status", "detail"), [
    (b"", "not an image", "0 bytes that begin with b''"),
    (b"<html>for sale</html>", "not an image", "21 bytes that begin with b'<html>"),
    (encode(Image.new("RGB", (60, 60)), "PPM"), "not an image", "bytes that begin with b'P6"),
    (encode(Image.new("1", (8000, 7000)), "PNG"), "refused", "8000 x 7000 pixels; at most 50,000,000 are read"),
    (encode(Image.new("RGB", (60, 60)), "PNG"), "wrong hash", f"; expected {'0' * 64}"),
], ids=["nothing", "a page", "another format", "too large", "another picture"])
def test_what_is_not_the_photograph(data, status, detail):
    with pytest.raises(LeftOut) as caught: check_photo(data, "0" * 64)
    assert caught.value.status == status and detail in caught.value.detail


async def visit(url: str) -> bytes:
    """Fetch one file."""
    async with open_visitor(connections=1, per_host=1, timeout=2, max_mb=1, private=True) as visitor:
        return await visitor.fetch(url)


def test_a_refusal_keeps_its_status_and_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    asked = []

    class Web(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if self.path == "/gone" else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for page, status, times in (("gone", "dead", 1), ("busy", "failed", 3)):
            with pytest.raises(LeftOut) as caught: run_to_end(visit(f"http://127.0.0.1:{server.server_port}/{page}"))
            assert caught.value.status == status and asked.count(f"/{page}") == times
        server.shutdown()


def test_work_is_run_from_within_a_loop_too():
    async def answer() -> int: return 42
    async def outer() -> object: return run_to_end(answer())
    assert run_to_end(answer()) == asyncio.run(outer()) == 42
