"""Pages of the notebooks: copied with the outputs they have, and with what a reader on the web needs besides."""
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

# What is read in which order: a heading of the contents, and the notebooks below it.
PARTS = {
    "I The paper": ("00_*", "04_*", "05_*", "06_*"),
    "How the run was made": ("01_*", "02_*", "03_*"),
    "II Is it true?": ("beyond/10_*", "beyond/11_*", "beyond/12_*", "beyond/13_*"),
    "III Beyond": ("beyond/07_*", "beyond/08_*", "beyond/09_*", "beyond/14_*", "beyond/16_*", "beyond/15_*",
                   "beyond/1[7-9]_*", "beyond/[2-9]*"),
    "The course": ("course/*",),
    "Try it": ("explore.*",),
}
ROOMS = {
    "networks": "Networks", "photographs": "Photographs and faces", "measuring": "Maps and measures",
    "running": "Runs, files and pictures", "commands": "Commands", "explorer": "The explorer's parts",
}
WIDGET = "application/vnd.jupyter.widget-view+json"  # needs a kernel; the picture or text beside it does not
PICTURES = ("image/png", "image/jpeg")
IMPORTS = re.compile(r"(?:(?:import|from) [^\n(]+(?:\([^)]*\))?\s*)+")  # a cell of imports alone
SOLUTION = re.compile(r"^( *)### BEGIN (SOLUTION|HIDDEN TESTS)\n.*?^ *### END \2 *$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Site:
    """Where the pages come from, and where they go."""
    root: Path  # of the repository
    stage: Path  # the pages, for sphinx
    repository: str  # its address on the web

    @property
    def notebooks(self) -> Path: return self.root / "nbs"

    def source(self, path: Path) -> str:
        """Give the address of a file of the repository."""
        kind = "tree" if path.is_dir() else "blob"
        return f"{self.repository}/{kind}/main/{path.relative_to(self.root)}"


def all_notebooks(site: Site) -> list[Path]:
    """List the notebooks of the repository, and the pages beside those of the course."""
    found = [*site.notebooks.rglob("*.ipynb"), *site.notebooks.rglob("*.md")]
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(site.root).parts))


# Links, pictures, code

def moved(link: str, path: Path, site: Site) -> str:
    """Give a link of a notebook as it has to be on the site: to a page, to a picture, or to the repository."""
    target, _, place = link.partition("#")
    if not target or re.match(r"\w+:", link): return link
    aim = (path.parent / target).resolve()
    if not aim.is_relative_to(site.root) or not aim.exists(): return link  # sphinx names it
    here = "../" * len(path.relative_to(site.notebooks).parent.parts)
    if aim.parent == site.root / "figures":
        return f"{here}figures.md#{aim.stem.replace('_', '-')}" if aim.suffix == ".md" else f"{here}figures/{aim.name}"
    if aim.is_relative_to(site.notebooks) and aim.suffix in (".ipynb", ".md"): return link
    return site.source(aim) + (f"#{place}" if place else "")


def readable(text: str, path: Path, site: Site) -> str:
    """Prepare Markdown: links lead to pages, a badge becomes its words, and a large formula stands alone."""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`(?!\w))", text, flags=re.DOTALL | re.MULTILINE)
    alone = [re.sub(r"\$\$(.+?)\$\$", r"\n\n$$\n\1\n$$\n\n", part, flags=re.DOTALL) for part in parts[::2]]
    parts[::2] = alone
    text = "".join(parts)
    text = re.sub(r"!\[([^\]]*)\]\(https?://[^)]*\)", r"\1", text)
    text = re.sub(r"\]\(([^)\s]+)\)", lambda match: f"]({moved(match[1], path, site)})", text)
    return re.sub(r"\b(notebooks?) `(?:\w+/)?(\w+)`", lambda match: to_notebook(match, path, site), text)


def to_notebook(match: re.Match, path: Path, site: Site) -> str:
    """Turn the words "notebook `masks`" into a link to it."""
    found = [each for each in all_notebooks(site) if each.stem == match[2]]
    if len(found) != 1: return match[0]
    up = "../" * len(path.relative_to(site.notebooks).parent.parts)
    return f"{match[1]} [{match[2]}]({up}{found[0].relative_to(site.notebooks)})"


def pictures_of(notebook: NotebookNode) -> dict[str, str]:
    """Tell the alternative text of each picture among the outputs, by the hash of its data."""
    found, heading = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell.source, flags=re.MULTILINE) or [heading])[-1]
        for output in cell.get("outputs", []):
            for kind in PICTURES:
                if kind not in output.get("data", {}): continue
                digest = hashlib.sha256(b64decode(output.data[kind])).hexdigest()
                found[digest] = f"{heading}: {output.metadata.get(kind, {}).get('alt', 'a picture')}"
    return found


def prepared_cell(cell: NotebookNode, path: Path, site: Site) -> NotebookNode | None:
    """Prepare one cell; None for one that has nothing to show. A lesson is shown as students get it."""
    if cell.cell_type == "markdown":
        answer = cell.metadata.get("nbgrader", {}).get("solution")
        cell.source = "*Your answer.*" if answer else readable(cell.source, path, site)
    if cell.cell_type != "code": return cell
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip("\n")
    cell.source = SOLUTION.sub(r"\1...  # yours to write", cell.source)
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden") or IMPORTS.fullmatch(cell.source)
    if hidden: cell.metadata.tags = sorted({*cell.metadata.get("tags", []), "hide-input"})
    for output in cell.outputs:
        if "data" in output: output.data.pop(WIDGET, None)
        if "text/markdown" in output.get("data", {}):
            output.data["text/markdown"] = readable(output.data["text/markdown"], path, site)
    return cell if cell.source else None


def open_links(path: Path, site: Site) -> str:
    """Say where a notebook can be opened: those that explain, also where it runs without being installed."""
    inside = path.relative_to(site.root)
    if path.parent.name == "course": return "{.open-links}\n`sdd-face course DIR` copies the lessons, to be worked on."
    links = [f"[Notebook on GitHub]({site.source(path)})"]
    if path.parent.name in ("nbs", "beyond"):
        colab = site.repository.replace("https://github.com", "https://colab.research.google.com/github")
        binder = site.repository.replace("https://github.com", "https://mybinder.org/v2/gh")
        links.append(f"[open in Binder]({binder}/main?labpath={quote(str(inside), safe='')})")
        install = f'`%pip install "sdd_face[notebooks] @ git+{site.repository}"`'
        links.append(f"[open in Colab]({colab}/blob/main/{inside}), and there first run {install}")
    return "{.open-links}\n" + " · ".join(links)


def title_of(path: Path) -> str:
    """Give the title of a notebook or of a page."""
    if path.suffix == ".md": text = path.read_text(encoding="utf-8")
    else: text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    return re.search(r"^# +(.+)$", text, flags=re.MULTILINE)[1]


def copy_notebook(path: Path, site: Site) -> dict[str, str]:
    """Copy a notebook to its page, and tell the alternative texts of its pictures."""
    target = site.stage / path.relative_to(site.notebooks)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md":
        target.write_text(readable(path.read_text(encoding="utf-8"), path, site), encoding="utf-8")
        return {}
    notebook = nbformat.read(path, 4)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    notebook.cells = [cell for cell in (prepared_cell(each, path, site) for each in notebook.cells) if cell]
    if path.stem != "index": notebook.cells.insert(1, nbformat.v4.new_markdown_cell(open_links(path, site)))
    nbformat.write(notebook, target)
    return pictures_of(notebook)


# Contents

def toctree(names: list[str], *, caption: str = "", hidden: bool = False) -> str:
    """Write a list of pages."""
    head = ["```{toctree}", *([f":caption: {caption}"] if caption else []), *([":hidden:"] if hidden else [])]
    return "\n".join([*head, ":maxdepth: 1", "", *names, "```", ""])


def ordered(patterns: tuple[str, ...], site: Site) -> list[str]:
    """List the pages of one part in the order in which they are read."""
    found = [path for pattern in patterns for path in sorted(site.stage.glob(pattern)) if path.suffix != ".png"]
    return list(dict.fromkeys(str(path.relative_to(site.stage).with_suffix("")) for path in found))


def contents(site: Site) -> str:
    """Write the contents of the whole site."""
    parts = {name: ordered(patterns, site) for name, patterns in PARTS.items()}
    parts["The rest of the package"] = list(rooms(site))
    parts["To look things up"] = ["api/index", "command", "figures"]
    return "\n".join(toctree(names, caption=name, hidden=True) for name, names in parts.items() if names)


def rooms(site: Site) -> dict[str, str]:
    """Tell what the folders of notebooks without a number are called."""
    folders = {path.parent.relative_to(site.notebooks) for path in all_notebooks(site)}
    others = sorted(map(str, folders - {Path(), Path("beyond"), Path("course"), *map(Path, ROOMS)}))
    known = {folder: name for folder, name in ROOMS.items() if (site.notebooks / folder).exists()}
    return known | {folder: folder.capitalize() for folder in others}


def write_rooms(site: Site) -> None:
    """Write a page for each folder of notebooks without a number."""
    for folder, name in rooms(site).items():
        pages = sorted(site.stage.glob(f"{folder}/*.ipynb"))
        lines = [f"# {name}", "", toctree([f"{folder}/{path.stem}" for path in pages])]
        (site.stage / f"{folder}.md").write_text("\n".join(lines), encoding="utf-8")


def shown_by(index: str) -> dict[str, str]:
    """Tell what the table of the first page says of each file."""
    rows = [line.strip("| ").split(" | ") for line in index.splitlines() if "../figures/" in line and "|" in line]
    found = {}
    for row in rows:
        for name in re.findall(r"\.\./figures/([\w.]+)", row[1] if len(row) > 1 else ""): found[name] = row[-1]
    return found


def write_figures(site: Site) -> None:
    """Write the page with all figures and tables, and copy their files."""
    shutil.copytree(site.root / "figures", site.stage / "figures", ignore=shutil.ignore_patterns("*.md"))
    index = "\n".join(cell.source for cell in nbformat.read(site.notebooks / "index.ipynb", 4).cells)
    said = shown_by(index)
    lines = ["# Figures and tables", "", "What `sdd-face reproduce --beyond` writes, as it is in the repository.", ""]
    for path in sorted((site.root / "figures").iterdir()):
        what = said.get(path.name, "")
        if path.suffix in (".png", ".jpg"):
            picture = f"![{path.stem}: {what or 'see its notebook'}](figures/{path.name})"
            lines += [f"## {path.stem}", "", what, "", picture, ""]
        elif path.suffix == ".md":
            numbers = path.with_suffix(".csv")
            link = f"As numbers: [{numbers.name}](figures/{numbers.name})" if numbers.exists() else ""
            text = readable(path.read_text(encoding="utf-8"), site.notebooks / "index.ipynb", site)
            lines += [f"({path.stem.replace('_', '-')})=", f"## {path.stem}", "", what, "", text, "", link, ""]
    (site.stage / "figures.md").write_text("\n".join(lines), encoding="utf-8")


def helps(site: Site, *words: str) -> Iterator[tuple[str, str]]:
    """List (command, what its --help prints) of the command and of all below it."""
    environment = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": str(site.root)}
    command = [sys.executable, "-m", "sdd_face", *words, "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    yield " ".join(["sdd-face", *words]), text
    for name in re.findall(r"^ {4}([a-z][\w-]*)(?= {2}|$)", text, flags=re.MULTILINE):
        yield from helps(site, *words, name)


def write_command(site: Site) -> None:
    """Write the page of the command line: what each --help prints."""
    parts = [f"## `{command}`\n\n```text\n{text.strip()}\n```\n" for command, text in helps(site)]
    (site.stage / "command.md").write_text("# The command line\n\n" + "\n".join(parts), encoding="utf-8")


def write_pages(site: Site) -> dict[str, str]:
    """Write all pages but those of the reference, and tell the alternative texts of the pictures."""
    texts = {}
    for path in all_notebooks(site): texts |= copy_notebook(path, site)
    write_rooms(site)
    write_figures(site)
    write_command(site)
    index = site.stage / "index.ipynb"
    notebook = nbformat.read(index, 4)
    notebook.cells.append(nbformat.v4.new_markdown_cell(contents(site)))
    nbformat.write(notebook, index)
    (site.stage / "pictures.json").write_text(json.dumps(texts), encoding="utf-8")
    return texts
