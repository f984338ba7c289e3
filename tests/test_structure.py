"""How the house is built: who imports whom, how long and how wide things are, and that nothing in it is unused."""
import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

WIDTH, LENGTH, PARAMETERS = 120, 250, 8  # characters of a line, lines of a module, parameters of a function
LONG = {"paint"}  # drawing a face is one long recipe
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if path.parent.name[0] != "."}
MODULES = {path.stem: path for path in sorted((ROOT / "sdd_face").glob("[a-z]*.py"))}
TESTS = {path.stem: path for path in sorted((ROOT / "tests").glob("*.py"))}

# An option, text, a number or a bool with a default, has to be named. The first parameter of a function is what it is
# about (load_faces("synthetic"), open_run("quick")), layers are built as torch's are, and these are too common:
PLAIN = {"top_mask": {"cut"}, "paint": {"part"}}
# Constants of a method, which are options so that they can be read and changed, though nothing here changes them.
CONSTANTS = {"bootstrap": {"level"}, "compare": {"level"}, "smooth_variations": {"deviation"}}
PLAIN_TYPES = {"str", "int", "float", "bool", "None"}
FRAMEWORK = {"error", "kernel_spec", "forward", "_check_input_dim", "_repr_html_"}  # methods that others call


# Reading

@cache
def cells(notebook: str, kind: str = "code") -> list[str]:
    """Give the cells of a notebook."""
    return [cell.source for cell in nbformat.read(NOTEBOOKS[notebook], 4).cells if cell.cell_type == kind]


@cache
def trees() -> dict[str, ast.Module]:
    """Parse everything in which a name can be used: the modules, the other cells of the notebooks, the tests."""
    sources = {name: path.read_text(encoding="utf-8") for name, path in [*MODULES.items(), *TESTS.items()]}
    sources["sdd_face"] = (ROOT / "sdd_face/__init__.py").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        tried = [cell for cell in cells(name) if not re.match(r"#\| *export", cell)]
        sources[f"nbs/{name}"] = "\n".join(tried)
    return {name: ast.parse(source) for name, source in sources.items()}


@cache
def module_of() -> dict[str, str]:
    """Tell which notebook writes which module."""
    found = {}
    for notebook in NOTEBOOKS:
        named = re.search(r"^#\| *default_exp +(\w+)", "\n".join(cells(notebook)), flags=re.MULTILINE)
        if named: found[named[1]] = notebook
    return found


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """List (module of this package, name taken out of it or "") of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("sdd_face."): yield alias.name.split(".")[1], ""
        if not isinstance(node, ast.ImportFrom): continue
        place = ("sdd_face." * (node.level == 1) + (node.module or "")).rstrip(".").split(".")
        if place[0] != "sdd_face": continue
        for alias in node.names:
            if len(place) > 1: yield place[1], alias.name
            elif alias.name in MODULES: yield alias.name, ""


@cache
def needs() -> dict[str, set[str]]:
    """Tell which modules each module imports."""
    return {name: {module for module, _ in imported(trees()[name])} for name in MODULES}


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """List the public functions and methods of a module, with the names that they are called by."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"): yield node.name, node
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"): continue
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and each.name == "__init__": yield node.name, each
            elif isinstance(each, ast.FunctionDef) and not each.name.startswith("_"): yield each.name, each


def parameters_of(function: ast.FunctionDef) -> list[ast.arg]:
    """List the parameters that can be given by their place, without `self`."""
    listed = function.args.posonlyargs + function.args.args
    return listed[1:] if listed and listed[0].arg in ("self", "cls") else listed


# Who imports whom

@pytest.mark.parametrize("name", [*MODULES, *(f"nbs/{name}" for name in NOTEBOOKS), *TESTS])
def test_what_is_private_stays_at_home(name: str):
    tree = trees()[name]
    taken = [f"{module}.{what}" for module, what in imported(tree) if re.match("_[a-z]", what, flags=re.IGNORECASE)]
    if name in TESTS: return assert_none(taken)  # a test may look inside a module that it names
    modules = {module for module, what in imported(tree) if not what or what in MODULES}
    touched = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    taken += [ast.unparse(node) for node in touched if node.value.id in modules and re.match("_[a-z]", node.attr)]
    assert_none(taken)


def assert_none(found: list) -> None:
    """Show what should not be there, one in a line."""
    assert not found, "\n" + "\n".join(map(str, found))


def test_no_import_runs_in_a_circle():
    left = dict(needs())
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free: del left[name]
    assert_none([f"{name} imports {', '.join(sorted(wanted & left.keys()))}" for name, wanted in left.items()])


@pytest.mark.parametrize("notebook", [name for name in NOTEBOOKS if name[0].isdigit()])
def test_a_numbered_notebook_imports_from_lower_numbers(notebook: str):
    own = {module for module, home in module_of().items() if home == notebook}
    tried = {module for module, _ in imported(trees()[f"nbs/{notebook}"])}
    homes = {module: module_of().get(module, module) for module in tried.union(*map(needs().get, own)) - own}
    assert_none([f"{module}, from {home}" for module, home in homes.items() if home[0].isdigit() and home >= notebook])


def test_every_module_has_one_notebook():
    assert sorted(module_of()) == sorted(MODULES)


# How long and how wide

@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short(name: str):
    length = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert length <= LENGTH or name in LONG


def too_wide(lines: list[str]) -> list[str]:
    """List the lines that are wider than allowed."""
    return [f"{len(line)}: {line}" for line in lines if len(line) > WIDTH]


BESIDE = [*TESTS.values(), ROOT / "setup.py", ROOT / "sdd_face/__init__.py", *MODULES.values()]


@pytest.mark.parametrize("path", BESIDE, ids=lambda path: path.stem)
def test_code_is_narrow(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert_none(too_wide([line for line in lines if not line.startswith("__all__ = ")]))  # nbdev writes that one


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_cells_are_narrow(notebook: str):
    assert_none(too_wide([line for cell in cells(notebook) for line in cell.splitlines()]))


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_prose_is_narrow(notebook: str):
    lines = [line for cell in cells(notebook, "markdown") for line in cell.splitlines()]
    lines = [re.sub(r"\]\([^)\s]+\)|https?://\S+", "", line) for line in lines]  # an address cannot be broken
    assert_none(too_wide([line for line in lines if not line.startswith(("|", "!["))]))


# How a function is called

@pytest.mark.parametrize("name", MODULES)
def test_a_function_has_few_parameters(name: str):
    for called, function in public_functions(trees()[name]):
        given = [*parameters_of(function), *function.args.kwonlyargs, function.args.vararg]  # ** are those of another
        assert len([each for each in given if each]) <= PARAMETERS, called


@pytest.mark.parametrize("name", MODULES)
def test_options_have_to_be_named(name: str):
    free = []
    for called, function in public_functions(trees()[name]):
        if function.name == "__init__": continue
        listed = parameters_of(function)
        optional = listed[max(1, len(listed) - len(function.args.defaults)) :]
        options = {each.arg for each in optional if set(ast.unparse(each.annotation).split(" | ")) <= PLAIN_TYPES}
        free += [f"{called}: {option}" for option in sorted(options - PLAIN.get(called, set()))]
    assert_none(free)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_say_what_they_do(name: str):
    defined = [node for node in trees()[name].body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert_none([node.name for node in defined if not node.name.startswith("_") and not ast.get_docstring(node)])


# What nobody uses

@cache
def uses() -> dict[str, set[str]]:
    """Tell where each name is read: as a name, as an attribute, or in an import."""
    found = defaultdict(set)
    for place, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Store): found[node.id].add(place)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store): found[node.attr].add(place)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names: found[alias.name].add(place)
    for name in re.findall(r"\w+", (ROOT / "settings.ini").read_text(encoding="utf-8")): found[name].add("settings.ini")
    return found


def defined_names(tree: ast.Module) -> Iterator[str]:
    """List what a module defines: functions, classes, their public methods, and constants."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef): yield node.name
        elif isinstance(node, ast.Assign): yield from (each.id for each in node.targets if isinstance(each, ast.Name))
        if not isinstance(node, ast.ClassDef): continue
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and not re.fullmatch("__.*__", each.name): yield each.name


@pytest.mark.parametrize("name", MODULES)
def test_everything_is_used(name: str):
    defined = set(defined_names(trees()[name])) - {"__all__"} - FRAMEWORK
    private = {each for each in defined if each.startswith("_")}
    used = {each for each in defined - private if uses()[each]} | {each for each in private if name in uses()[each]}
    assert_none(sorted(defined - used))


@cache
def calls() -> dict[str, set[str]]:
    """Tell which options each function is called with, "*" and "**" among them; "" is any function."""
    found = defaultdict(set)
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str): found[""].add(node.value)
            if not isinstance(node, ast.Call): continue
            called = node.args[0] if ast.unparse(node.func) == "partial" else node.func
            name = getattr(called, "attr", getattr(called, "id", ""))
            given = {keyword.arg or "**" for keyword in node.keywords}
            if any(isinstance(argument, ast.Starred) for argument in node.args): given.add("*")
            found[name] |= given | {len(node.args)}
            found[""] |= given
    return found


@cache
def passed_around() -> set[str]:
    """List the functions that are not only called but also handed over, or put into a table."""
    called = {id(node.func) for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.Call)}
    read = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
    return {getattr(node, "attr", getattr(node, "id", "")) for node in read if id(node) not in called}


def options_of(tree: ast.Module) -> Iterator[tuple[str, str, int | None]]:
    """List (function or class, option, its place if it has one) of all public functions and all settings."""
    for called, function in public_functions(tree):
        listed = parameters_of(function)
        first = len(listed) - len(function.args.defaults)
        yield from ((called, listed[place].arg, place) for place in range(first, len(listed)))
        yield from ((called, each.arg, None) for each in function.args.kwonlyargs)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or "kw_only" not in ast.unparse(node.decorator_list): continue
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value]
        yield from ((node.name, each.target.id, None) for each in fields)


@pytest.mark.parametrize("name", MODULES)
def test_every_option_is_given_somewhere(name: str):
    unused = []
    for called, option, place in options_of(trees()[name]):
        given = calls()[called]
        by_place = place is not None and any(isinstance(each, int) and each > place for each in given)
        if by_place or option in given | CONSTANTS.get(called, set()): continue
        indirect = given & {"*", "**"} or called in passed_around()  # by a table, or through another function's options
        if not (indirect and option in calls()[""]): unused.append(f"{called}: {option}")
    assert_none(unused)
