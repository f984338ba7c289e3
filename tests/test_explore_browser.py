"""The explorer in a real browser, as a web page and in JupyterLab: what people see, and what they must not reach."""
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import nbformat
import pytest
from conftest import ROOT

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
MISSING = [name for name in ("voila", "anywidget", "selenium", "jupyterlab") if not find_spec(name)]
MISSING += [name for name, found in (("chromium", BROWSER), ("chromedriver", DRIVER)) if not found]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


def until(look: Callable, what: str, *, seconds: float = 60):
    """Wait until something is there, and give it; what the page replaces meanwhile is looked for again."""
    from selenium.common.exceptions import StaleElementReferenceException
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(StaleElementReferenceException):
            if found := look(): return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s")


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    """Tell whether a server listens."""
    try: socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError: return False
    return True


@contextmanager
def started(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """Start a server, give its address, and end it."""
    with (folder / "server.log").open("w") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        until(lambda: answers(port) or process.poll() is not None, "the server")
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        try: process.wait(10)
        except subprocess.TimeoutExpired: process.kill()


def served(folder: Path):
    """Serve the explorer."""
    port = free_port()
    command = [sys.executable, "-P", str(ROOT / "tests" / "picture_explorer.py"), "serve", str(port)]
    return started(command, port, folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the explorer once for all tests."""
    with served(tmp_path_factory.mktemp("served")) as given: yield given


@contextmanager
def opened_browser() -> Iterator:
    """Start a browser without a screen."""
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for each in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking",
                 "disable-dev-shm-usage", "window-size=1000,1100"): options.add_argument(f"--{each}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as made: yield made


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Start a browser once for all tests."""
    with opened_browser() as made: yield made


def find(browser, selector: str) -> list:
    """List what is seen of a kind."""
    return [each for each in browser.find_elements("css selector", selector) if each.is_displayed()]


def open_page(browser, address: str) -> None:
    """Open the page, and wait for its pictures."""
    browser.get(address)
    until(lambda: len(find(browser, ".sdd-gallery img")) >= 5, "the pictures")


@pytest.fixture(scope="module")
def page(browser, address: str):
    """Open the page once for all tests."""
    open_page(browser, address)
    return browser


def turn_to(page, name: str) -> None:
    """Open a panel."""
    next(tab for tab in find(page, "[role=tab]") if tab.text == name).click()


def control(page, label: str, kind: str):
    """Find the handle of a slider, or a list, by its label."""
    rows = [each for each in find(page, ".widget-inline-hbox") if each.text.split("\n")[0] == label]
    return rows[0].find_element("css selector", kind)


def pictures(page) -> list[str]:
    """Give the addresses of all pictures."""
    return [each.get_attribute("src") for each in find(page, ".sdd-gallery img")]


def texts(page) -> str:
    """Give all that can be read."""
    return page.find_element("tag name", "body").text


def test_it_loads_without_an_error(page):
    severe = [each["message"] for each in page.get_log("browser") if each["level"] == "SEVERE"]
    assert not severe and "Why this face?" in texts(page)
    assert all(each.get_attribute("alt") for each in find(page, ".sdd-gallery img"))


def move_alpha(page) -> None:
    """Press a key on a slider, and wait for another picture."""
    before = pictures(page)
    control(page, "alpha", "[role=slider]").send_keys("\ue014")
    until(lambda: pictures(page)[2] != before[2], "another picture")


def test_keys_on_a_slider_move_the_picture_and_the_address(page):
    move_alpha(page)
    until(lambda: "alpha=%22fixed_point%22" in page.current_url, "the address")


def test_why_not_another(page):
    from selenium.webdriver.support.ui import Select
    Select(control(page, "why not", "select")).select_by_visible_text("person 07")
    until(lambda: "CAM person 07" in texts(page), "the CAM of person 07")


def test_another_visitor_sees_nothing_of_it(page, address: str):
    first = page.current_window_handle
    page.switch_to.new_window("tab")
    open_page(page, address)
    assert "CAM person 07" not in texts(page) and "CAM person 02" in texts(page)
    page.close()
    page.switch_to.window(first)
    assert "CAM person 07" in texts(page)


def painted_share(page) -> str:
    """Read how much is painted."""
    return find(page, ".sdd-hint")[0].text.split(" %")[0]


def test_a_painted_mask_changes_the_numbers(page):
    from selenium.webdriver import ActionChains
    turn_to(page, "Your mask")
    until(lambda: find(page, ".sdd-painter"), "the painter")
    until(lambda: find(page, "table"), "the numbers")
    before, share = find(page, "table")[0].text, painted_share(page)
    canvas = find(page, ".sdd-painter")[0]
    ActionChains(page).move_to_element(canvas).click_and_hold().move_by_offset(40, 60).release().perform()
    until(lambda: find(page, "table")[0].text != before, "other numbers")
    assert float(painted_share(page)) > float(share)


def test_the_keyboard_paints_too(page):
    canvas, share, before = find(page, ".sdd-painter")[0], painted_share(page), find(page, "table")[0].text
    canvas.send_keys(" ", *["\ue015"] * 12, " ")  # brush down, arrow down, brush up
    assert float(painted_share(page)) > float(share)
    until(lambda: find(page, "table")[0].text != before, "other numbers")
    assert "covers" in canvas.get_attribute("aria-label")


def test_traits_and_methods(page):
    turn_to(page, "Your face")
    until(lambda: "as drawn first" in texts(page) and len(pictures(page)) == 9, "the family")
    before = pictures(page)[0]
    control(page, "brow arch", "[role=slider]").send_keys("\ue014")
    until(lambda: pictures(page)[0] != before, "another face")
    turn_to(page, "Methods")
    until(lambda: "Occlusion" in texts(page) and "37 passes" in texts(page), "the methods")


def test_an_upload_that_is_no_image_gets_a_sentence(page, tmp_path: Path):
    (tmp_path / "face.png").write_bytes(b"<b>no image</b>")
    with (tmp_path / "large.png").open("wb") as file: file.truncate(6_000_000)
    taker = find(page, ".sdd-taker input")[0]
    taker.send_keys(str(tmp_path / "face.png"))
    until(lambda: "face.png: no image; expected JPEG, PNG, WEBP" in texts(page), "the sentence")
    taker.send_keys(str(tmp_path / "large.png"))
    until(lambda: "bytes; at most" in texts(page), "the sentence")


def width(page) -> int:
    """Measure how wide the page would have to be."""
    return page.execute_script("return document.documentElement.scrollWidth")


def test_it_fits_a_narrow_page(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    for name in ("Look", "Your mask", "Your face", "Methods"):
        turn_to(page, name)
        until(lambda: width(page) <= 400, f"{name} in 400 pixels", seconds=5)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def status(address: str, path: str, **headers: str) -> int:
    """Ask the server for something, and give the status."""
    try: return urllib.request.urlopen(urllib.request.Request(address + path, headers=headers)).status
    except urllib.error.HTTPError as error: return error.code


def test_no_file_is_given_out(address: str):
    for path in ("voila/files/explorer.ipynb", "voila/files/x.png", "voila/files/../../etc/passwd",
                 "voila/files/%2e%2e/%2e%2e/etc/passwd", "voila/static/%2e%2e/%2e%2e/%2e%2e/conf.json",
                 "voila/templates/lab/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "api/contents", "api/kernels"):
        assert status(address, path) >= 400, path
    assert status(address, "voila/files/x.png", Host="elsewhere.example") == 403
    assert status(address, "", Host="elsewhere.example") == 403


def test_a_kernel_runs_nothing_that_a_visitor_sends(page, address: str, tmp_path: Path):
    from tornado.websocket import websocket_connect
    config = page.execute_script("return document.getElementById('jupyter-config-data').textContent")
    kernel, written = json.loads(config)["kernelId"], tmp_path / "written"
    head = {"msg_id": uuid4().hex, "username": "", "session": uuid4().hex, "version": "5.3", "date": ""}

    async def send() -> None:
        channel = await websocket_connect(f"ws{address[4:]}api/kernels/{kernel}/channels")
        content = {"code": f"open({str(written)!r}, 'w')", "silent": False, "store_history": False}
        await channel.write_message(json.dumps({
            "header": head | {"msg_type": "execute_request"}, "parent_header": {}, "metadata": {}, "content": content,
            "channel": "shell"}))
        await asyncio.sleep(1)
        channel.close()

    asyncio.run(send())
    assert not written.exists()


def test_it_works_in_jupyterlab(browser, tmp_path: Path):
    from selenium.webdriver import ActionChains
    cell = nbformat.v4.new_code_cell(
        "from sdd_face.explore import Explorer\nfrom sdd_face.gallery import present\npresent(Explorer())")
    python = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=python), tmp_path / "try.ipynb")
    port = free_port()
    given = {"ServerApp.port": port, "ServerApp.open_browser": False, "IdentityProvider.token": "",
             "ServerApp.root_dir": tmp_path, "ServerApp.allow_root": True, "LabApp.extension_manager": "readonly"}
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in given.items())]
    with started(command, port, tmp_path) as address:
        browser.get(f"{address}lab/tree/try.ipynb?reset")
        until(lambda: "| Idle" in texts(browser), "the kernel")
        until(lambda: find(browser, ".jp-CodeCell .cm-content"), "the notebook")[0].click()
        ActionChains(browser).key_down("\ue008").send_keys("\ue007").key_up("\ue008").perform()  # shift and return
        until(lambda: len(find(browser, ".sdd-gallery img")) >= 5, "the pictures")
        move_alpha(browser)
