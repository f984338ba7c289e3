"""The site: the comments of parameters are found, what leads nowhere is named, and the whole of it can be read."""
import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from urllib.parse import unquote

import nbformat
import pytest
from conftest import ROOT

from sdd_face.parameters import numbered_notebooks

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def load(name: str) -> ModuleType:
    """Import one of the files that build the site."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / f".ci/site/{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The reference: what a comment belongs to

FUNCTIONS = '''
def several(
    images: Tensor,  # (B, 3, H, W), float
    # in [-1, 1]
    names: tuple[str, ...] = (
        "a", "b"),  # of the people
    *,
    plain: int = 3,
    cut: float = 0.2,  # share, `0` to 1
) -> Tensor:  # (B,), signed
    "Say something."

def one_line(path: str) -> Path: return Path(path)  # is found

def nothing_said(x, y=1): return x
'''
SAID = {
    "several": {"images": "(B, 3, H, W), float in [-1, 1]", "names": "of the people", "cut": "share, `0` to 1",
                "return": "(B,), signed"},
    "one_line": {"return": "is found"},
    "nothing_said": {},
}


def test_comments_belong_to_their_parameters(tmp_path: Path):
    (tmp_path / "some.py").write_text(FUNCTIONS)
    api = load("api")
    module = api.read_module(tmp_path / "some.py")
    functions = [node for node in module.tree.body if isinstance(node, ast.FunctionDef)]
    assert {node.name: api.parameter_comments(node, module.comments) for node in functions} == SAID


def test_signs_in_a_comment_stay_signs():
    api = load("api")
    assert api.escaped("`a_b` is <x> in [0, 1] | $5") == r"`a_b` is \<x\> in \[0, 1\] \| \$5"
    assert api.linked("see `cut` and `other`", {"cut": "sdd_face.masks.cut"}) == (
        "see {py:obj}`cut <sdd_face.masks.cut>` and `other`")


def test_every_comment_of_the_package_is_found():
    api = load("api")
    modules = api.read_package(ROOT / "sdd_face")
    node = next(node for node in modules["cam"].definitions() if "class_activation_maps" in api.names_of(node))
    said = api.parameter_comments(node, modules["cam"].comments)
    assert said["features"].startswith("(B, K, h, w)") and {"features", "weights", "return"} == said.keys()
    offered = api.offered_names(ROOT / "sdd_face")
    for name, module in offered.items(): assert name in modules[module].public


# Pages and links

@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder as the web does, and give its address."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PAGE = """<h1 id="top">A page</h1> <a href="#top">up</a> <a href="other.html">other</a> <code>a $ b</code>
<img src="picture.png" alt="a face">"""
WRONG = {
    '<a href="missing.html">x</a>': "missing.html does not exist",
    '<a href="other.html#nowhere">x</a>': "names a place that other.html does not have",
    '<a href="../../outside.html">x</a>': "does not exist",
    '<img src="picture.png">': "no alternative text",
    '<img src="gone.png" alt="gone">': "gone.png does not exist",
    "<p>the mean $x</p>": "signs that should have been read",
    "<p>:::{py:function} f()</p>": "signs that should have been read",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_leads_nowhere_is_named(wrong: str, tmp_path: Path):
    links = load("links")
    for name in ("picture.png", "other.html"): (tmp_path / name).write_text("")
    (tmp_path / "index.html").write_text(PAGE)
    assert not [*links.broken(tmp_path), *links.loaded_from_elsewhere(tmp_path)]
    (tmp_path / "index.html").write_text(PAGE + wrong)
    assert [message for message in links.broken(tmp_path) if WRONG[wrong] in message]


def test_what_another_server_would_have_to_send_is_named(tmp_path: Path):
    (tmp_path / "index.html").write_text('<script src="https://cdn.example/x.js"></script>')
    assert "cdn.example" in next(load("links").loaded_from_elsewhere(tmp_path))


def test_addresses_outside_are_asked(tmp_path: Path, capsys: pytest.CaptureFixture):
    links = load("links")
    (tmp_path / "there.txt").write_text("")
    page = tmp_path / "index.html"
    with served(tmp_path) as address:
        page.write_text(f'<a href="{address}/there.txt#a">x</a> <a href="https://colab.research.google.com/x">y</a>')
        assert links.main([str(tmp_path)]) == 0
        page.write_text(page.read_text() + f'<a href="{address}/gone.txt">z</a>')
        assert links.main([str(tmp_path)]) == 1
    assert f"{address}/gone.txt: 404" in capsys.readouterr().out


def test_links_of_a_notebook_lead_to_pages(tmp_path: Path):
    pages = load("pages")
    site = pages.Site(ROOT, tmp_path, "https://github.com/x/y")
    lead = {
        "../../figures/fig1.png": "../figures/fig1.png", "../../figures/table1.md": "../figures.md#table1",
        "../06_evaluation.ipynb": "../06_evaluation.ipynb", "https://arxiv.org": "https://arxiv.org", "#here": "#here",
        "../../tests/conftest.py": "https://github.com/x/y/blob/main/tests/conftest.py", "no.ipynb": "no.ipynb",
    }
    notebook = ROOT / "nbs/beyond/15_verdict.ipynb"
    assert {link: pages.moved(link, notebook, site) for link in lead} == lead
    assert pages.readable("[![Colab](https://b.svg)](https://colab)", notebook, site) == "[Colab](https://colab)"
    assert pages.readable("so (notebook `masks`)", notebook, site) == "so (notebook [masks](../measuring/masks.ipynb))"
    assert pages.readable("a $$x$$ b `$$y$$`", notebook, site) == "a \n\n$$\nx\n$$\n\n b `$$y$$`"


def test_solutions_and_directives_are_not_shown(tmp_path: Path):
    pages = load("pages")
    site = pages.Site(ROOT, tmp_path, "https://github.com/x/y")
    source = "#| export\ndef f(x):\n    ### BEGIN SOLUTION\n    return 3\n    ### END SOLUTION\n\nf(1)"
    folded = nbformat.v4.new_code_cell(source, metadata={"jupyter": {"source_hidden": True}})
    shown = pages.prepared_cell(folded, ROOT / "nbs/06_evaluation.ipynb", site)
    assert shown.source == "def f(x):\n    ...  # yours to write\n\nf(1)" and "hide-input" in shown.metadata.tags
    imports = "import os\nfrom pathlib import Path\n\nfrom x import (\n    a,\n    b,\n)"
    for code, hidden in ((imports, True), (imports + "\n\nf(1)", False)):
        shown = pages.prepared_cell(nbformat.v4.new_code_cell(code), ROOT / "nbs/06_evaluation.ipynb", site)
        assert ("hide-input" in shown.metadata.get("tags", [])) == hidden
    answer = nbformat.v4.new_markdown_cell("Because.", metadata={"nbgrader": {"solution": True}})
    assert "Because" not in pages.prepared_cell(answer, ROOT / "nbs/06_evaluation.ipynb", site).source
    empty = nbformat.v4.new_code_cell("#| default_exp masks")
    assert pages.prepared_cell(empty, ROOT / "nbs/06_evaluation.ipynb", site) is None


def test_badges_open_what_is_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opened = re.findall(r"\((https://(?:colab|mybinder)\S+?ipynb)\)", readme)
    paths = [unquote(re.search(r"nbs(?:/|%2F).*", each)[0]) for each in opened]
    assert len(paths) >= 10 and all((ROOT / path).exists() for path in paths)
    binder = (ROOT / ".binder/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "-e .[notebooks]" in binder  # a path in it starts at the repository's root


# The whole site

@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    for name in ("furo", "latex2mathml", "myst_nb", "sphinx"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site") / "out"
    result = subprocess.run([sys.executable, ROOT / ".ci/site/build.py", out], capture_output=True, text=True)
    assert result.returncode == 0 and "no problems" in result.stdout, result.stdout + result.stderr[-5000:]
    return out


@pytest.mark.slow
def test_every_notebook_and_module_has_its_page(site: Path):
    front = (site / "index.html").read_text(encoding="utf-8")
    for path in numbered_notebooks(ROOT / "nbs"):
        page = str(path.relative_to(ROOT / "nbs").with_suffix(".html"))
        assert f'href="{page}"' in front and (site / page).exists()
    places = [front.index(f'href="{name}') for name in ("00_", "04_", "01_", "beyond/10_", "beyond/07_", "beyond/15_")]
    assert places == sorted(places)
    reference = (site / "api/masks.html").read_text(encoding="utf-8")
    assert 'id="sdd_face.masks.top_mask"' in reference and "higher is more important" in reference
    assert (site / "command.html").read_text(encoding="utf-8").count("usage: sdd-face") > 4


@pytest.mark.slow
def test_it_can_be_searched_and_stays_whole_without_pictures(site: Path):
    assert "diverg" in (site / "searchindex.js").read_text(encoding="utf-8")
    page = (site / "05_sdd.html").read_text(encoding="utf-8")
    assert "<math" in page and re.search(r'<a class="picture" href="_images/\w+\.jpe?g"><img alt="\w', page)
    assert not [path for path in site.glob("course/*.html") if "BEGIN SOLUTION" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium to open the pages with")
def test_a_browser_has_nothing_to_complain_of(site: Path, tmp_path: Path):
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
               "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}"]
    with served(site) as address:
        for page in ("index.html", "05_sdd.html", "api/masks.html", "search.html?q=divergence"):
            command = [CHROMIUM, *options, f"{address}/{page}"]
            result = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert "CONSOLE" not in result.stderr, result.stderr
    assert 'href="05_sdd.html' in result.stdout and "search-summary" in result.stdout
