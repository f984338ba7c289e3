"""A student reads the numbered notebooks: how long that takes, how long sentences are, when the first picture comes.

A minute is 200 words, or 8 lines of code that are not folded, or one picture. A cell tagged `hide-input` is folded by
JupyterLab (its metadata say so) and by the site.
"""
import ast
import re
from functools import cache

import nbformat
import pytest
from conftest import ROOT

from sdd_face.parameters import numbered_notebooks

PATHS = {path.stem: path for path in numbered_notebooks(ROOT / "nbs")}
PARTS = {  # part -> its name, and its notebooks in the order in which they are read
    "I": ("The paper", ("00", "01", "02", "03", "04", "05", "06")),
    "II": ("Is it true?", ("10", "11", "12", "13")),
    "III": ("Beyond", ("07", "08", "09", "14", "16", "17", "15")),
}
ESSENTIAL = {"00", "04", "05", "06", "10", "13"}
ORDER = [next(name for name in PATHS if name[:2] == number) for _, numbers in PARTS.values() for number in numbers]
WORDS, LINES = 200, 8  # a minute
LONGEST_SENTENCE, MEAN_SENTENCE, FIRST_PICTURE, ROWS = 35, 20, 15, 8
TOLERANCE = 2  # minutes by which a notebook may miss what its first cell says

# Numbers that prose may state though no cell of the notebook prints them or computes with them: those of the paper (its
# totals, accuracy, recipe, cut, and the bounds of F), and the sizes that every aligned face has.
PAPER = {530, 43_148, 34_099, 4_555, 4_494, 96.33, 0.005, 20, 10, 0.1, 0.2, 5, 50}
SIZES = {112, 96, 7, 255, 0, 1, 100, 95}  # pixels and places, ranges, percent and the level of intervals


@cache
def cells(name: str) -> list[nbformat.NotebookNode]:
    """Give the cells of a notebook up to its exercises."""
    found = []
    for cell in nbformat.read(PATHS[name], 4).cells:
        if cell.cell_type == "markdown" and re.match(r"#+ Exercises", cell.source): break
        found.append(cell)
    return found


def is_folded(cell: nbformat.NotebookNode) -> bool:
    """Tell whether the code of a cell is folded."""
    return "hide-input" in cell.metadata.get("tags", [])


def code_lines(cell: nbformat.NotebookNode) -> int:
    """Count the lines of code that a reader sees."""
    if cell.cell_type != "code" or is_folded(cell): return 0
    return len([line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")])


def is_picture(output: nbformat.NotebookNode) -> bool:
    """Tell whether an output is a picture."""
    return any(kind.startswith("image/") for kind in output.get("data", {}))


def plain(markdown: str) -> str:
    """Leave only what is read aloud of some Markdown: no code, formulas, tables and addresses."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$]+\$", "formula", text)
    text = re.sub(r"`[^`]+`", "Code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def paragraphs(markdown: str) -> list[str]:
    """Split Markdown into headings, paragraphs and items of lists."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.) )|\n(?=#+ )|(?<=\n)(?=#+ )", plain(markdown))
    parts = [part for block in blocks for part in re.split(r"(?m)^(#+ .*)$", block)]
    return [" ".join(part.split()) for part in parts if part and part.strip()]


def sentences(markdown: str) -> list[str]:
    """Split Markdown into sentences, without headings and the line that leads from notebook to notebook."""
    texts = [re.sub(r"^[-*>] |^\d+\. ", "", text) for text in paragraphs(markdown)]
    texts = [text for text in texts if not text.startswith(("#", "**Part "))]
    ends = r"(?:(?<=[.?!])|(?<=[.?!][)\"]))(?<!e\.g\.)\s+(?=[\"(]*[A-Z0-9])"
    found = [sentence for text in texts for sentence in re.split(ends, text.replace("*", ""))]
    return [sentence for sentence in found if re.search("[a-z]", sentence)]


def words(text: str) -> int:
    """Count words: whatever holds a letter or a digit."""
    return len([word for word in text.split() if re.search(r"\w", word)])


def minutes(name: str) -> float:
    """Measure how long a notebook takes to read."""
    prose = sum(words(plain(cell.source)) for cell in cells(name) if cell.cell_type == "markdown")
    code = sum(map(code_lines, cells(name)))
    pictures = sum(is_picture(output) for cell in cells(name) for output in cell.get("outputs", []))
    return prose / WORDS + code / LINES + pictures


LINE = re.compile(
    r"^\*\*Part (?P<part>I+), (?P<title>[^*]+)\*\* · (?P<minutes>\d+) minutes · needs: (?P<needs>[^·]+)"
    r"( · before: \[(?P<before>\w+)\]\((?P<before_path>\S+)\))?"
    r"( · after: \[(?P<after>\w+)\]\((?P<after_path>\S+)\))?"
    r"(?P<essential> · on the essential path)?$")


def declared(name: str) -> re.Match:
    """Read the line of the first cell that says where a notebook stands."""
    lines = [" ".join(text.split()) for text in cells(name)[0].source.split("\n\n") if text.startswith("**Part ")]
    found = LINE.match(lines[0]) if len(lines) == 1 else None
    assert found, f"the first cell of {name} needs one line such as '**Part I, The paper** · 8 minutes · needs: ...'"
    return found


def numbers(text: str) -> set[float]:
    """List the numbers in a text, without their signs."""
    found = re.findall(r"(?<![\w.])\d[\d,_]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\d_])", text)
    return {float(re.sub("[,_]", "", each)) for each in found}


def stated(markdown: str) -> set[float]:
    """List the numbers that prose states, but not those that name a notebook, a section, a figure or a year."""
    text = "\n\n".join(text for text in plain(markdown).split("\n\n") if not text.startswith("**Part "))
    text = re.sub(r"\b\d\d_\w+|arXiv:\S+|https?:\S+|\b(?:19|20)\d\d\b|^\d+\. ", "", text, flags=re.MULTILINE)
    named = "notebook|section|equation|figure|table|part|algorithm"
    text = re.sub(rf"(?i)\b(?:{named})s?\s+\d[\d.]*(?:\s*(?:,|and|to)\s+\d[\d.]*)*", "", text)
    return numbers(text)


def printed(name: str) -> set[float]:
    """List the numbers that a notebook prints, or that stand in its code."""
    found = set()
    for cell in cells(name):
        if cell.cell_type == "code": found |= numbers(cell.source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts = [output.get("text", ""), *(data[kind] for kind in data if "text" in kind)]
            found = found.union(*map(numbers, texts))
    return found


def tables(name: str) -> list[int]:
    """Count the rows of each table that a notebook prints."""
    texts = [output.get("data", {}).get("text/markdown", output.get("text", ""))
             for cell in cells(name) for output in cell.get("outputs", [])]
    found = []
    for text in texts:
        for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
            if re.search(r"^\|[-:| ]+\|$", block, flags=re.MULTILINE): found.append(len(block.splitlines()) - 2)
    return found


# The measures themselves

def test_a_sentence_ends_where_it_ends():
    text = "# Name\n> One. Two (paper, section 3.2) `a.b`!\n\n**Part I, The paper** · 8 minutes\n\n"
    text += "- Three, e.g. 0.5\n  of it\n- *Four.* Five?"
    assert sentences(text) == ["One.", "Two (paper, section 3.2) Code!", "Three, e.g. 0.5 of it", "Four.", "Five?"]
    assert words("a class-activation map, 7 x 7: + ") == 6


def test_what_a_reader_does_not_read_aloud_does_not_count():
    assert words(plain("```sh\nmany words here\n```\n| a | table |\n$$ x = y $$\n[two words](nowhere.ipynb)")) == 3


def test_numbers_that_name_something_are_none():
    text = "Notebook 06 and section 3.2, Figures 3 and 4 of 2025 (arXiv:2505.03837): 1e-30, +20 %, ir_50, `7`."
    assert stated(text) == {1e-30, 20}


# The notebooks

@pytest.mark.parametrize("name", PATHS)
def test_the_first_cell_says_where_it_stands(name: str):
    line, place = declared(name), ORDER.index(name)
    part = next(part for part, (_, members) in PARTS.items() if name[:2] in members)
    assert (line["part"], line["title"]) == (part, PARTS[part][0])
    assert bool(line["essential"]) == (name[:2] in ESSENTIAL)
    neighbours = {"before": ([None] + ORDER)[place], "after": (ORDER + [None])[place + 1]}
    assert {side: line[side] for side in neighbours} == neighbours
    for side, other in neighbours.items():
        if other: assert (PATHS[name].parent / line[f"{side}_path"]).resolve() == PATHS[other]
    assert abs(int(line["minutes"]) - minutes(name)) <= TOLERANCE, f"it takes {minutes(name):.1f} minutes"


def test_the_paper_takes_an_hour():
    taken = {name: round(minutes(name), 1) for name in ORDER if name[:2] in PARTS["I"][1]}
    assert sum(taken.values()) <= 60, taken


def test_the_essential_path_takes_two_hours():
    taken = {name: round(minutes(name), 1) for name in ORDER if name[:2] in ESSENTIAL}
    assert sum(taken.values()) <= 120, taken


@pytest.mark.parametrize("name", PATHS)
def test_sentences_are_short(name: str):
    found = [each for cell in cells(name) if cell.cell_type == "markdown" for each in sentences(cell.source)]
    long = [f"{words(each)}: {each}" for each in found if words(each) > LONGEST_SENTENCE]
    assert not long, "\n".join(long)
    assert sum(map(words, found)) / len(found) <= MEAN_SENTENCE


@pytest.mark.parametrize("name", PATHS)
def test_the_first_picture_comes_early(name: str):
    lines = 0
    for cell in cells(name):
        lines += code_lines(cell)
        if any(map(is_picture, cell.get("outputs", []))): break
    else: pytest.fail("no picture")
    assert lines <= FIRST_PICTURE


@pytest.mark.parametrize("name", PATHS)
def test_imports_and_parameters_are_folded(name: str):
    for cell in nbformat.read(PATHS[name], 4).cells:
        if cell.cell_type != "code": continue
        jupyter = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert jupyter == is_folded(cell), f"JupyterLab and the site fold differently:\n{cell.source}"
        setup = "parameters" in cell.metadata.get("tags", []) or is_setup(cell.source)
        assert is_folded(cell) or not setup, f"tag it hide-input:\n{cell.source}"


def is_setup(code: str) -> bool:
    """Tell whether a cell holds nothing, or imports and the format of pictures alone."""
    nodes = ast.parse(code).body
    kinds = ast.Import | ast.ImportFrom
    return all(isinstance(node, kinds) or "set_matplotlib_formats" in ast.unparse(node) for node in nodes)


@pytest.mark.parametrize("name", PATHS)
def test_one_short_table_is_printed_at_most(name: str):
    found = tables(name)
    assert len(found) <= 1 and all(rows <= ROWS for rows in found), f"tables of {found} rows; write others to figures/"


@pytest.mark.parametrize("name", PATHS)
def test_numbers_in_prose_come_from_a_cell(name: str):
    typed = {number for cell in cells(name) if cell.cell_type == "markdown" for number in stated(cell.source)}
    typed -= printed(name) | PAPER | SIZES
    assert not typed, f"no cell prints {sorted(typed)}; print the sentence instead"


# The index

INDEX = nbformat.read(ROOT / "nbs/index.ipynb", 4).cells
PAGE = "\n\n".join(cell.source for cell in INDEX if cell.cell_type == "markdown")


@pytest.mark.parametrize("part", PARTS)
def test_the_index_lists_the_parts_in_order(part: str):
    section = PAGE.partition(f"### Part {part}, {PARTS[part][0]}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (● )?\[(\w+)\]\(([\w./]+)\) \|", section, flags=re.MULTILINE)
    paths = {name: str(PATHS[name].relative_to(ROOT / "nbs")) for name in ORDER if name[:2] in PARTS[part][1]}
    assert rows == [("● " * (name[:2] in ESSENTIAL), name, path) for name, path in paths.items()]


def test_the_index_has_a_glossary():
    glossary = PAGE.partition("## Glossary")[2].partition("\n## ")[0]
    terms = ["logit", "embedding", "pooling head", "own head", "rolled", "mean map", "swapped map"]
    terms += ["interval over people", "hold together", "reading"]
    assert not [term for term in terms if f"**{term}**" not in glossary]


def test_sentences_of_the_index_are_short():
    found = sentences(PAGE)
    assert not [each for each in found if words(each) > LONGEST_SENTENCE]
    assert sum(map(words, found)) / len(found) <= MEAN_SENTENCE
