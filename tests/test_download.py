"""Fetching photographs from a server that misbehaves, and being killed on the way."""
import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from sdd_face import __version__, fetch
from sdd_face import download as module
from sdd_face.download import download
from sdd_face.facescrub import Photo, read_manifest
from sdd_face.synthetic import draw_faces, make_people

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
needs_real_faces = pytest.mark.skipif(
    not REAL.exists(), reason="real faces and weights (../shared/real) are not here; they are not part of the project")


@dataclass
class Web:
    """A server on this machine: what it does for each path, and what it was asked for."""
    pages: dict[str, Callable] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    agents: set = field(default_factory=set)
    active: int = 0
    most: int = 0
    port: int = 0

    def url(self, page: str) -> str:
        """Give a page's address."""
        return f"http://127.0.0.1:{self.port}/{page}"


@pytest.fixture
def web() -> Iterator[Web]:
    """Start a server."""
    web, lock = Web(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = self.path.lstrip("/")
            with lock:
                web.asked[page] += 1
                web.agents.add(self.headers["User-Agent"])
                web.active += 1
                web.most = max(web.most, web.active)
            try: web.pages[page](self)
            except OSError: pass  # the client has had enough
            finally:
                with lock: web.active -= 1

        def log_message(self, *arguments: object) -> None: pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.block_on_close = False  # a page may hang
        web.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield web
        server.shutdown()


@pytest.fixture(autouse=True)
def hurry(monkeypatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(fetch, "PAUSE", 0.01)


@pytest.fixture(scope="session")
def picture() -> bytes:
    """Draw a photograph."""
    return encode(Image.fromarray(draw_faces(make_people(1, seed=1), images=1).images[0].permute(1, 2, 0).numpy()))


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    """Give an image's file."""
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def page(body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> Callable:
    """Give a page that answers so."""
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        size = len(body) if length is None else length
        for name, value in {"Content-Length": str(size), **headers}.items(): request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
    return answer


def write_lists(folder: Path, rows: list[tuple[str, bytes | str]], name: str = "facescrub_actors.txt") -> Path:
    """Write a list of (address, photograph or hash); the faces are numbered."""
    folder.mkdir(exist_ok=True)
    digests = [digest if isinstance(digest, str) else sha256(digest).hexdigest() for _, digest in rows]
    urls = [url for url, _ in rows]
    lines = [f"Ann Lee\t{i}\t{100 + i}\t{urls[i]}\t10,20,60,70\t{digest}" for i, digest in enumerate(digests)]
    (folder / name).write_text("\n".join(lines))
    return folder


def fetch_all(tmp_path: Path, *rows: tuple[str, bytes | str], **options) -> list[Photo]:
    """Download in a hurry, and check that what is on disk is what is said."""
    options = {"private": True, "timeout": 0.5, "max_mb": 1} | options
    found = download(write_lists(tmp_path / "lists", list(rows)), tmp_path / "out", **options)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*/*"))
    assert files == sorted(photo.file for photo in found if photo.status == "ok")
    for photo in found:
        if photo.file: assert sha256((tmp_path / "out" / photo.file).read_bytes()).hexdigest() == photo.sha256
    noted = read_manifest(tmp_path / "out/manifest.csv").values()
    assert [(p.key, p.status, p.file) for p in noted] == [(p.key, p.status, p.file) for p in found]
    assert not list((tmp_path / "out").rglob(".partial*"))
    return found


def bomb() -> bytes:
    """Give a small PNG file that claims 3.6 billion pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


# What the web does

def hang(request: BaseHTTPRequestHandler) -> None:
    """Never answer."""
    time.sleep(3)


def trickle(request: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then."""
    page(length=10_000)(request)
    for _ in range(100):
        request.wfile.write(b"\xff")
        request.wfile.flush()
        time.sleep(0.05)


def endless(request: BaseHTTPRequestHandler) -> None:
    """Send more and more without having said how much."""
    request.send_response(200)
    request.end_headers()
    for _ in range(1000): request.wfile.write(b"\xff" * 10_000)


@pytest.mark.parametrize(("answer", "status", "detail", "times"), [
    (page(status=404), "dead", "the server answers 404 Not Found", 1),
    (page(status=410), "dead", "410", 1),
    (page(status=403), "refused", "the server answers 403 Forbidden", 1),
    (page(status=500), "failed", "the server answers 500", 3),
    (page(status=429), "failed", "429", 3),
    (hang, "failed", "no answer in time", 3),
    (trickle, "failed", "no answer in time", 3),
    (page(b"\xff" * 100, length=1000), "failed", "payload", 3),
    (page(b"<html>for sale</html>"), "not an image", "21 bytes that begin with b'<html>", 1),
    (page(b""), "not an image", "0 bytes", 1),
    (page(encode(Image.new("RGB", (50, 50)))), "wrong hash", "; expected ", 1),
    (page(length=10_000_000_000), "too large", "10,000.0 MB; at most 1 MB are wanted", 1),
    (endless, "too large", "at most 1 MB", 1),
    (page(bomb()), "refused", "at most 50,000,000 are read", 1),
    (page(encode(Image.new("1", (8000, 7000)), "PNG")), "refused",
     "8000 x 7000 pixels; at most 50,000,000 are read", 1),
    (page(status=302, Location="/page"), "refused", "more than 5 redirects", 6),
    (page(status=301, Location="file:///etc/passwd"), "refused", "file: only http and https are fetched", 1),
    (page(status=301, Location="http://[:"), "refused", "no address on the web", 1),
    (page(status=304), "refused", "304", 1),
    (lambda request: request.wfile.write(b"I am no web server\r\n\r\n"), "failed", "", 3),
], ids=lambda value: value if isinstance(value, str) else None)
def test_what_the_web_does(web, picture, tmp_path, monkeypatch, answer, status, detail, times):
    monkeypatch.setattr(fetch, "PATIENCE", 1.5)
    web.pages = {"page": answer, "good": page(picture)}
    found = fetch_all(tmp_path, (web.url("page"), picture), (web.url("good"), picture), timeout=0.3)
    assert found[0].status == status and detail in found[0].detail, found[0]
    assert found[1].status == "ok" and web.asked["page"] == times


def test_the_layout_and_the_name_that_the_server_sees(web, picture, tmp_path):
    web.pages = {"a": page(picture), "b.jpg": page(png := encode(Image.new("L", (60, 60)), "PNG"))}
    found = fetch_all(tmp_path, (web.url("a"), picture), (web.url("b.jpg"), png))
    assert [photo.file for photo in found] == ["actors/Ann_Lee/0_100.jpg", "actors/Ann_Lee/1_101.png"]
    assert {agent.split(" ")[0] for agent in web.agents} == {f"sdd_face/{__version__}"}


def test_busy_twice_and_then_fine(web, picture, tmp_path):
    answers = iter([page(status=503), page(status=503), page(picture)])
    web.pages = {"a": lambda request: next(answers)(request)}
    assert fetch_all(tmp_path, (web.url("a"), picture))[0].status == "ok" and web.asked["a"] == 3


def test_redirects_are_followed(web, picture, tmp_path):
    web.pages = {"a": page(status=302, Location="b"), "b": page(status=307, Location=web.url("c")), "c": page(picture)}
    assert fetch_all(tmp_path, (web.url("a"), picture))[0].status == "ok"


def test_one_visit_serves_all_rows_with_one_address_and_hash(web, picture, tmp_path):
    web.pages = {"a": page(picture)}
    found = fetch_all(tmp_path, *[(web.url("a"), picture)] * 3, (web.url("a"), "0" * 64))
    assert [photo.status for photo in found] == ["ok", "ok", "ok", "wrong hash"] and web.asked["a"] == 2


def test_a_host_is_asked_for_few_things_at_once(web, picture, tmp_path):
    def slow(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        page(picture)(request)
    web.pages = {str(i): slow for i in range(12)}
    fetch_all(tmp_path, *[(web.url(str(i)), picture) for i in range(12)], connections=8, per_host=3)
    assert web.most == 3


def test_hosts_take_turns():
    photos = [Photo("A", "", i, i, f"http://{host}/{i}", (0, 0, 1, 1), "0" * 64) for i, host in enumerate("aaabbc")]
    jobs = module._plan(photos, module._Ledger(Path(), {}))
    assert [job[0].url[7] for job in jobs] == ["a", "b", "c", "a", "b", "a"]


# Where not to go

@pytest.mark.parametrize("host", [
    "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
    "１２７.0.0.1", "127.0.0.1."])
def test_this_machine_is_never_asked(web, picture, tmp_path, host):
    web.pages = {"a": page(picture)}
    photo = fetch_all(tmp_path, (f"http://{host}:{web.port}/a", picture), private=False)[0]
    assert (photo.status in ("refused", "failed")) and not web.asked, photo
    if host in ("127.0.0.1", "localhost", "[::1]"): assert photo.status == "refused"


@pytest.mark.parametrize("target", [
    "http://127.0.0.2:{port}/b", "http://[::1]:{port}/b", "http://169.254.169.254/", "http://two.example:{port}/b"])
def test_a_redirect_to_this_machine_is_refused(web, picture, tmp_path, monkeypatch, target):
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")  # plays a server on the web
    resolve(monkeypatch, {"one.example": "127.0.0.1", "two.example": "127.0.0.2"})
    web.pages = {"a": page(status=302, Location=target.format(port=web.port)), "b": page(picture)}
    photo = fetch_all(tmp_path, (f"http://one.example:{web.port}/a", picture), private=False)[0]
    assert photo.status == "refused" and web.asked == {"a": 1} and "local network" in photo.detail


def resolve(monkeypatch, hosts: dict[str, str | int]) -> Counter:
    """Play the name servers: an address for each host, or an error's number; count the questions."""
    questions = Counter()

    def getaddrinfo(host, port, *arguments, **options):
        questions[host] += 1
        if isinstance(found := hosts[host], int): raise socket.gaierror(found, "no name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return questions


def test_a_name_that_leads_to_this_machine_is_refused(web, picture, tmp_path, monkeypatch):
    questions = resolve(monkeypatch, {"nice.example": "127.0.0.1"})
    web.pages = {"a": page(picture)}
    photo = fetch_all(tmp_path, (f"http://nice.example:{web.port}/a", picture), private=False)[0]
    assert (photo.status, photo.detail) == ("refused", "nice.example is this machine or in the local network")
    assert not web.asked and questions == {"nice.example": 1}


def test_a_host_that_is_gone_is_dead_once_another_has_answered(web, picture, tmp_path, monkeypatch):
    resolve(monkeypatch, {"gone.example": socket.EAI_NONAME, "busy.example": socket.EAI_AGAIN})
    web.pages = {"a": page(picture)}
    rows = [(web.url("a"), picture), ("http://gone.example/a", picture), ("http://busy.example/a", picture)]
    found = fetch_all(tmp_path, *rows, connections=1)
    assert [photo.status for photo in found] == ["ok", "dead", "failed"] and found[1].detail == "no such host"


def test_without_a_network_nobody_is_declared_dead(picture, tmp_path, monkeypatch):
    resolve(monkeypatch, {"a.example": socket.EAI_NONAME})
    assert fetch_all(tmp_path, ("http://a.example/a", picture))[0].status == "failed"


def test_a_closed_port_fails(picture, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server: port = server.getsockname()[1]
    assert fetch_all(tmp_path, (f"http://127.0.0.1:{port}/a", picture))[0].status == "failed"


@pytest.mark.parametrize("url", ["ftp://example.org/a", "file:///etc/passwd", "data://x", "http://[:/a", "http:///a"])
def test_only_the_web_is_asked(picture, tmp_path, url):
    assert fetch_all(tmp_path, (url, picture))[0].status == "refused"


# Again

def test_only_what_may_pass_is_tried_again(web, picture, tmp_path):
    rows = [(web.url(name), picture) for name in ("ok", "gone", "wrong", "busy")]
    other = encode(Image.new("L", (50, 50)))
    web.pages = {"ok": page(picture), "gone": page(status=404), "wrong": page(other), "busy": page(status=503)}
    assert [photo.status for photo in fetch_all(tmp_path, *rows)] == ["ok", "dead", "wrong hash", "failed"]
    web.pages = {"busy": page(picture)}
    assert [photo.status for photo in fetch_all(tmp_path, *rows)] == ["ok", "dead", "wrong hash", "ok"]
    asked = dict(web.asked)
    fetch_all(tmp_path, *rows)
    assert web.asked == asked == {"ok": 1, "gone": 1, "wrong": 1, "busy": 4}


def test_a_file_that_has_vanished_is_fetched_again(web, picture, tmp_path):
    web.pages = {"a": page(picture), "b": page(picture)}
    rows = [(web.url("a"), picture), (web.url("b"), picture)]
    (tmp_path / "out" / fetch_all(tmp_path, *rows)[0].file).unlink()
    fetch_all(tmp_path, *rows)
    assert web.asked == {"a": 2, "b": 1}


def test_photographs_are_known_without_the_manifest(web, picture, tmp_path):
    web.pages = {"a": page(picture)}
    fetch_all(tmp_path, (web.url("a"), picture))
    (tmp_path / "out/manifest.csv").unlink()
    assert fetch_all(tmp_path, (web.url("a"), picture))[0].status == "ok" and web.asked["a"] == 1


def test_a_new_address_is_another_photograph_and_other_rows_are_kept(web, picture, tmp_path):
    web.pages = {"a": page(picture), "gone": page(status=404)}
    fetch_all(tmp_path, (web.url("gone"), picture))
    assert fetch_all(tmp_path, (web.url("a"), picture))[0].status == "ok"
    write_lists(tmp_path / "more", [(web.url("gone"), picture)], "others.txt")
    (tmp_path / "more/others.txt").write_text((tmp_path / "more/others.txt").read_text().replace("Ann", "Bea"))
    download(tmp_path / "more", tmp_path / "out", private=True)
    statuses = {key: photo.status for key, photo in read_manifest(tmp_path / "out/manifest.csv").items()}
    assert statuses == {"Ann_Lee/0_100": "ok", "Bea_Lee/0_100": "dead"}


@pytest.mark.parametrize("options", [
    {"connections": 0}, {"per_host": -1}, {"timeout": 0}, {"max_mb": float("nan")}, {"max_mb": float("inf")}])
def test_settings_that_make_no_sense(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*; expected a number above 0"):
        fetch_all(tmp_path, ("http://a.example", "0" * 64), **options)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_run_with_a_true_manifest(web, picture, tmp_path, monkeypatch):
    web.pages = {str(i): page(picture) for i in range(3)}
    keep = module._Ledger.keep

    def full(ledger, photo, data, ending):
        if photo.image_id: raise OSError(28, "No space left on device")
        keep(ledger, photo, data, ending)
    monkeypatch.setattr(module._Ledger, "keep", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_all(tmp_path, *[(web.url(str(i)), picture) for i in range(3)], connections=1)
    assert [photo.key for photo in read_manifest(tmp_path / "out/manifest.csv").values()] == ["Ann_Lee/0_100"]


# Killed

def start(tmp_path: Path, web: Web, picture: bytes, whole: int) -> tuple[subprocess.Popen, threading.Event]:
    """Download 30 photographs in a process of its own, until some came whole and four are half there.

    The event lets go of these.
    """
    going_on, order = threading.Event(), itertools.count()

    def halting(request: BaseHTTPRequestHandler) -> None:
        page(picture[:500], length=len(picture))(request)
        request.wfile.flush()
        if next(order) >= whole: going_on.wait(20)
        request.wfile.write(picture[500:])
    web.pages = {str(i): halting for i in range(30)}
    lists = write_lists(tmp_path / "lists", [(web.url(str(i)), picture) for i in range(30)])
    out = tmp_path / "out"
    call = f"download({str(lists)!r}, {str(out)!r}, private=True, connections=4, per_host=4)"
    code = f"from sdd_face.download import download; {call}"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while web.asked.total() < whole + 4 and process.poll() is None: time.sleep(0.01)
    assert process.poll() is None, process.communicate()
    return process, going_on


def test_killed_and_started_again_nothing_is_fetched_twice_and_nothing_is_half_there(web, picture, tmp_path):
    process, going_on = start(tmp_path, web, picture, whole=14)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    going_on.set()
    files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*/*/*")}
    kept = [photo.image_id for photo in read_manifest(tmp_path / "out/manifest.csv").values() if photo.status == "ok"]
    assert len(kept) == len(files) == 14 and set(files.values()) == {picture}
    found = fetch_all(tmp_path, *[(web.url(str(i)), picture) for i in range(30)], timeout=5)
    assert all(photo.status == "ok" for photo in found) and all(web.asked[str(i)] == 1 for i in kept)
    assert web.asked.total() == 30 + 4  # what was on its way when the process died


def test_interrupted_the_manifest_is_true(web, picture, tmp_path):
    process, going_on = start(tmp_path, web, picture, whole=14)
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate(timeout=20)[1]
    going_on.set()
    assert process.returncode != 0 and "KeyboardInterrupt" in error
    numbers = [int(line.split(",")[2]) for line in (tmp_path / "out/manifest.csv").read_text().splitlines()[1:]]
    assert numbers == sorted(numbers) and len(numbers) == 14
    files = {path.name for path in (tmp_path / "out").glob("*/*/*")}
    assert files == {f"{number}_{100 + number}.jpg" for number in numbers}


@needs_real_faces
def test_real_photographs(web, tmp_path):
    originals = sorted((REAL / "facescrub12/originals").glob("*/*/*"))
    web.pages = {path.stem: page(path.read_bytes()) for path in originals}
    known = {"_".join(line.split("\t")[1:3]): line.split("\t") for name in ("actors", "actresses")
             for line in (REAL / f"facescrub12/facescrub_{name}.txt").read_text().splitlines()}
    (tmp_path / "lists").mkdir()
    for name in ("actors", "actresses"):
        rows = [known[path.stem] for path in originals if path.parts[-3] == name]
        lines = ["\t".join([*row[:3], web.url(f"{row[1]}_{row[2]}"), *row[4:]]) for row in rows]
        (tmp_path / f"lists/facescrub_{name}.txt").write_text("\n".join(lines))
    found = download(tmp_path / "lists", tmp_path / "out", private=True)
    assert {photo.status for photo in found} == {"ok"} and len(found) == 42
    files = sorted(path.relative_to(REAL / "facescrub12/originals").as_posix() for path in originals)
    assert sorted(photo.file for photo in found) == files
