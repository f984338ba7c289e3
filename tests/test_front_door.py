"""`import sdd_face as sf` offers what a newcomer needs, and imports nothing before it is used."""
import os
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import sdd_face as sf

MODULES = sorted(module.name for module in pkgutil.iter_modules(sf.__path__) if not module.name.startswith("_"))


def run_python(code: str, folder: Path) -> str:
    """Run Python in a process of its own, and give what it printed."""
    environment = os.environ | {"MPLBACKEND": "agg"}
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_door_opens_at_once(tmp_path: Path):
    code = """
import sys, time
start, before = time.perf_counter(), set(sys.modules)
import sdd_face as sf
dir(sf), sf.__version__, sf.__doc__
print(time.perf_counter() - start, *(set(sys.modules) - before))"""
    runs = [run_python(code, tmp_path).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in runs) < 0.2
    assert not {"torch", "numpy", "matplotlib"} & set(runs[0])
    assert [name for name in runs[0] if name.startswith("sdd_face")] == ["sdd_face"]


@pytest.mark.parametrize("name", sf.__all__)
def test_every_name_leads_home(name: str):
    home = import_module(f"sdd_face.{sf._HOMES[name]}")
    assert getattr(sf, name) is getattr(home, name) and name in dir(sf)


def test_no_name_is_also_a_module():
    assert len(set(sf.__all__)) == len(sf.__all__) and not set(sf.__all__) & set(MODULES)


def test_a_module_is_found_under_its_name(tmp_path: Path):
    names = ["sdd", "finetune", "curves", "search"]
    assert all(isinstance(getattr(sf, name), ModuleType) and name in dir(sf) for name in names)
    code = f"import sdd_face as sf\nfor name in {names}: print(getattr(sf, name).__name__)"
    assert run_python(code, tmp_path).split() == [f"sdd_face.{name}" for name in names]


@pytest.mark.parametrize("name", ["nothing", "_nothing", "__wrapped__"])
def test_what_is_not_there_is_an_attribute_error(name: str):
    assert not hasattr(sf, name)
    with pytest.raises(AttributeError, match=f"'sdd_face' has no attribute '{name}'"): getattr(sf, name)


def test_a_module_whose_package_is_missing_says_which(tmp_path: Path):
    code = """
import sys
sys.modules["aiohttp"] = None
import sdd_face as sf
try: sf.download
except AttributeError as error: print(error)
try: from sdd_face import download
except ModuleNotFoundError as error: print(error.name)"""
    assert run_python(code, tmp_path).splitlines() == [
        "sdd_face.download needs aiohttp, which is not installed", "aiohttp"]


def test_the_docstring_names_every_module_once():
    assert sorted(re.findall(r"^  (\w+)  +\S", sf.__doc__, flags=re.MULTILINE)) == MODULES


def test_the_docstrings_example_runs(tmp_path: Path):
    code = "\n".join(re.findall(r"^    (\S.*)$", sf.__doc__, flags=re.MULTILINE))
    assert len(code.splitlines()) == 5
    run_python(code, tmp_path)
    assert (tmp_path / "explanation.png").read_bytes().startswith(b"\x89PNG")


def test_help_works_without_the_extras(tmp_path: Path):
    code = """
import sys
for missing in ("aiohttp", "tenacity", "papermill", "captum", "mtcnnruntime", "sklearn"): sys.modules[missing] = None
import sdd_face as sf
help(sf)"""
    text = run_python(code, tmp_path)
    assert "import sdd_face as sf" in text and "explain(" in text and "attribute(" in text
