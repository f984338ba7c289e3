"""Build the site into a folder: python .ci/site/build.py OUT. Fails on any warning and on anything that leads nowhere.

Needs the extra docs (pip install '.[docs]'); uses no network, and runs no notebook: outputs are those of the files."""
import shutil
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path
from time import perf_counter

from api import write_reference
from links import broken, loaded_from_elsewhere
from pages import Site, all_notebooks, rooms, title_of, write_pages
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def build(out: Path) -> int:
    """Build the site, and give the number of problems."""
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        site = Site(ROOT, Path(folder).resolve() / "pages", settings["DEFAULT"]["git_url"])
        site.stage.mkdir()
        write_pages(site)
        titles = {str(path.relative_to(site.notebooks)): title_of(path) for path in all_notebooks(site)}
        folders = {".": "The paper", "beyond": "Beyond the paper", **rooms(site), "course": "The course"}
        write_reference(ROOT / "sdd_face", site.stage / "api", titles=titles, rooms=folders)
        options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(HERE), "-d", f"{folder}/doctrees"]
        failed = sphinx([*options, str(site.stage), str(out)])
        shutil.copytree(site.stage / "figures", out / "figures", dirs_exist_ok=True)  # outputs link to files in it
    problems = sorted({*broken(out), *loaded_from_elsewhere(out)})
    for problem in problems: print(problem, file=sys.stderr)
    return len(problems) + bool(failed)


def main(arguments: list[str]) -> int:
    """Build into the folder that is named, and say how long it took."""
    if len(arguments) != 1: sys.exit(__doc__)
    out, begin = Path(arguments[0]).resolve(), perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / "objects.inv").exists():
        sys.exit(f"{out} is not empty and holds no site; expected a new folder, or one of this command")
    problems = build(out)
    pages = len(list(out.rglob("*.html")))
    print(f"{pages} pages in {perf_counter() - begin:.0f} s, {problems or 'no'} problems: {out / 'index.html'}")
    return 1 if problems else 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
