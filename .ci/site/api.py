"""Pages of the reference, read from the modules without importing them: docstrings and parameter comments."""
import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Comments = dict[int, str]  # line -> the comment in it


@dataclass(frozen=True)
class Module:
    """A module of the package as it is written."""
    name: str
    tree: ast.Module
    comments: Comments
    notebook: str  # that it is written in, relative to nbs/

    @property
    def public(self) -> list[str]:
        """List the names that the module offers."""
        found = [node for node in self.tree.body if isinstance(node, ast.Assign) and names_of(node) == ["__all__"]]
        return ast.literal_eval(found[0].value) if found else []

    def definitions(self) -> Iterator[ast.stmt]:
        """List what the module offers, in its order."""
        for node in self.tree.body:
            if set(names_of(node)) & set(self.public): yield node


def names_of(node: ast.stmt) -> list[str]:
    """List the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef): return [node.name]
    if isinstance(node, ast.Assign): return [each.id for each in node.targets if isinstance(each, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def read_module(path: Path) -> Module:
    """Read a module, its comments, and the name of its notebook."""
    source = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    notebook = re.search(r"File to edit: \.\./nbs/(\S+\.ipynb)", source)
    return Module(path.stem, ast.parse(source), comments, notebook[1] if notebook else "")


def read_package(folder: Path) -> dict[str, Module]:
    """Read all modules of the package."""
    return {path.stem: read_module(path) for path in sorted(folder.glob("[a-z]*.py"))}


# From a signature to what is said of each parameter

def arguments_of(function: ast.FunctionDef) -> list[ast.arg]:
    """List the parameters of a function, without `self`."""
    given = function.args
    stars = [each for each in (given.vararg, given.kwarg) if each]
    listed = [*given.posonlyargs, *given.args, *given.kwonlyargs, *stars]
    return [each for each in listed if each.arg not in ("self", "cls")]


def parameter_comments(function: ast.FunctionDef, comments: Comments) -> dict[str, str]:
    """Tell what the comments say of each parameter, and under "return" of the result.

    A comment belongs to what its line ends with; lines of comment alone go on with the one above."""
    arguments = arguments_of(function)
    defaults = [each for each in [*function.args.defaults, *function.args.kw_defaults] if each]
    ends = {each.arg: max(node.end_lineno for node in (each, *defaults) if node.lineno == each.lineno or node is each)
            for each in arguments}
    result = function.returns.end_lineno if function.returns else 0
    starts = [*(each.lineno for each in arguments), result]
    found = {}
    for name, end in ends.items():
        if end == result: continue
        stop = min((line for line in starts if line > end), default=end + 1)
        said = " ".join(filter(None, (comments.get(line, "") for line in range(end, stop))))
        if said: found[name] = said
    if result in comments: found["return"] = comments[result]
    return found


def field_comments(body: list[ast.stmt], comments: Comments) -> dict[str, str]:
    """Tell what the comments say of each field of a class."""
    found = [node for node in body if isinstance(node, ast.AnnAssign) and node.end_lineno in comments]
    return {node.target.id: comments[node.end_lineno] for node in found if node.target.id[0] != "_"}


# From there to Markdown

def escaped(text: str) -> str:
    """Keep Markdown from reading signs into a comment; what stands in backticks stays."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([\\*_<>\[\]{}$|])", r"\\\1", part) for part in parts)


def linked(text: str, known: dict[str, str]) -> str:
    """Turn names in backticks into links to where they are described."""
    def link(match: re.Match) -> str:
        return f"{{py:obj}}`{match[1]} <{known[match[1]]}>`" if match[1] in known else match[0]
    return re.sub(r"`([A-Za-z_.]+)`", link, text)


def prose(text: str | None, known: dict[str, str]) -> str:
    """Turn a docstring into Markdown: examples, which are indented, stay as they are."""
    parts = re.split(r"((?:\n|^)(?: {4}.*(?:\n|$))+)", unindented(text or ""))
    return "".join(part if part.startswith(("\n    ", "    ")) else linked(escaped(part), known) for part in parts)


def unindented(text: str) -> str:
    """Take the indentation of the function away."""
    first, _, rest = text.partition("\n")
    margins = [len(line) - len(line.lstrip()) for line in rest.splitlines() if line.strip()]
    margin = min(margins, default=0)
    return "\n".join([first.strip(), *(line[margin:].rstrip() for line in rest.splitlines())]).strip()


def signature(function: ast.FunctionDef, *, bound: bool) -> str:
    """Write a signature, without `self` where the function is bound to an object."""
    arguments = ast.unparse(function.args)
    if bound: arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"({arguments}){returns}"


def field_signature(node: ast.ClassDef) -> str:
    """Write the signature of a dataclass."""
    listed = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    only = "*, " if "kw_only=True" in ast.unparse(node.decorator_list) else ""
    return "(" + only + ", ".join(ast.unparse(each) for each in listed) + ")"


def directive(kind: str, head: str, body: str, *, depth: int, options: str = "") -> str:
    """Write one entry of the reference."""
    fence = ":" * depth
    return f"{fence}{{py:{kind}}} {head}\n{options}\n{body}\n{fence}\n"


def fields(said: dict[str, str], known: dict[str, str]) -> str:
    """List what is said of each parameter."""
    listed = {name: linked(escaped(text), known) for name, text in said.items() if name != "return"}
    lines = [f":param {name}: {text}" for name, text in listed.items()]
    if "return" in said: lines.append(f":returns: {linked(escaped(said['return']), known)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Writer:
    """Writes the entries of one module."""
    module: Module
    known: dict[str, str]  # name in backticks -> the full name of what it means

    def function(self, node: ast.FunctionDef, kind: str = "function") -> str:
        """Write a function, a method or a property."""
        said = parameter_comments(node, self.module.comments)
        decorators = {ast.unparse(each).split("(")[0] for each in node.decorator_list}
        body = f"{prose(ast.get_docstring(node, clean=False), self.known)}\n\n{fields(said, self.known)}\n"
        if "property" in decorators or "cached_property" in decorators:
            options = f":type: {ast.unparse(node.returns)}\n" if node.returns else ""
            return directive("property", node.name, body, depth=4, options=options)
        options = "".join(f":{name}:\n" for name in ("classmethod", "staticmethod") if name in decorators)
        head = node.name + signature(node, bound=kind == "method" and "staticmethod" not in decorators)
        return directive(kind, head, body, depth=4, options=options)

    def class_(self, node: ast.ClassDef) -> str:
        """Write a class: how it is made, its fields, its public methods."""
        methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        start = next((each for each in methods if each.name == "__init__"), None)
        if start:
            head, said = signature(start, bound=True), parameter_comments(start, self.module.comments)
            said.pop("return", None)
        else: head, said = field_signature(node), field_comments(node.body, self.module.comments)
        shown = [each for each in methods if each.name[0] != "_" and ast.get_docstring(each)]
        inner = "\n".join(self.function(each, "method") for each in shown)
        text = prose(ast.get_docstring(node, clean=False), self.known)
        head = re.sub(r" -> None$", "", head)
        return directive("class", node.name + head, f"{text}\n\n{fields(said, self.known)}\n\n{inner}", depth=5)

    def constant(self, node: ast.stmt) -> str:
        """Write a constant: the comment beside it, and its value where that is short."""
        said = self.module.comments.get(node.lineno) or self.module.comments.get(node.lineno - 1) or ""
        value = ast.unparse(node.value)
        options = f":value: {value}\n" if len(value) < 80 else ""
        body = linked(escaped(said), self.known)
        return "".join(directive("data", name, body, depth=4, options=options) for name in names_of(node))

    def entry(self, node: ast.stmt) -> str:
        """Write whatever it is."""
        write: dict[type, Callable] = {ast.FunctionDef: self.function, ast.ClassDef: self.class_}
        return write.get(type(node), self.constant)(node)

    def page(self, title: str) -> str:
        """Write the page of the module."""
        module = self.module
        head = f"# sdd_face.{module.name}\n\n{prose(ast.get_docstring(module.tree), self.known)}\n\n"
        home = f"Explained, built and tested in the notebook [{title}](../{module.notebook}).\n\n"
        entries = "\n".join(self.entry(node) for node in module.definitions())
        return f"{head}{home}:::{{py:module}} sdd_face.{module.name}\n:::\n\n{entries}"


def known_names(modules: dict[str, Module], offered: dict[str, str]) -> dict[str, str]:
    """Tell what a name in backticks means: what the package offers, and what only one module defines."""
    defined = [(name, module.name) for module in modules.values() for name in module.public]
    homes = {name: [module for other, module in defined if other == name] for name, _ in defined}
    unique = {name: f"sdd_face.{where[0]}.{name}" for name, where in homes.items() if len(where) == 1}
    return unique | {name: f"sdd_face.{module}.{name}" for name, module in offered.items()}


def offered_names(package: Path) -> dict[str, str]:
    """Tell which module has what `import sdd_face` offers."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    table = next(node.value for node in tree.body if names_of(node) == ["_OFFERED"])
    return {name: module for module, names in ast.literal_eval(table).items() for name in names.split()}


def first_sentence(node: ast.stmt, module: Module, known: dict[str, str]) -> str:
    """Give the first line of a docstring, or the comment beside a constant, as the cell of a table."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        return linked(escaped(module.comments.get(node.lineno, "")), known)
    return prose((ast.get_docstring(node) or "").split("\n")[0], known)


def overview(modules: dict[str, Module], offered: dict[str, str], known: dict[str, str]) -> str:
    """Write the table of what `import sdd_face as sf` offers."""
    rows = ["| Name | What it does |", "|---|---|"]
    for name, module in offered.items():
        node = next(each for each in modules[module].definitions() if name in names_of(each))
        said = first_sentence(node, modules[module], known)
        rows.append(f"| {{py:obj}}`sf.{name} <{known[name]}>` | {said} |")
    return "\n".join(rows)


def write_reference(
    package: Path,  # the folder sdd_face/
    out: Path,  # the folder for the pages
    *,
    titles: dict[str, str],  # notebook -> its title
    rooms: dict[str, str],  # folder of notebooks -> what it is called
) -> None:
    """Write a page for each module, and one that lists them."""
    modules, offered = read_package(package), offered_names(package)
    known = known_names(modules, offered)
    shown = {name: module for name, module in modules.items() if module.public and module.notebook in titles}
    out.mkdir(parents=True)
    for name, module in shown.items():
        page = Writer(module, known).page(titles[module.notebook])
        (out / f"{name}.md").write_text(page, encoding="utf-8")
    lines = ["# Reference", "", "What `import sdd_face as sf` offers:", "", overview(modules, offered, known), ""]
    for folder, room in rooms.items():
        inside = sorted((module.notebook, name) for name, module in shown.items()
                        if str(Path(module.notebook).parent) == folder)
        if not inside: continue
        lines += [f"## {room}", "", "```{toctree}", ":maxdepth: 1", "", *(name for _, name in inside), "```", ""]
    (out / "index.md").write_text("\n".join(lines), encoding="utf-8")
