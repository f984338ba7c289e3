"""How sphinx turns the staged pages into a site; build.py calls it."""
import json
import re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)
HERE = Path(__file__).resolve().parent
settings = ConfigParser(delimiters=["="])
settings.read(HERE.parents[1] / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, copyright = settings["title"], settings["author"], settings["copyright"]
release = settings["version"]
language = "en-GB"
extensions = ["myst_nb"]
myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those of the repository
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/markdown", 1)]
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
add_module_names = False
suppress_warnings = ["ref.python"]  # a name in a signature may be defined twice

html_theme = "furo"
html_title = project
html_static_path = [str(HERE / "style.css")]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_baseurl = f"{settings['doc_host']}{settings['doc_baseurl']}/"
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}


# Formulas are MathML, which browsers draw and screen readers read: nothing is loaded from elsewhere.

def mathml(text: str, *, display: str) -> str:
    """Translate a formula. A warning names a command that is not known."""
    text = re.sub(r"\\[Bb]ig+[lr]?(?=\\)", "", text)  # a bracket that has a name grows by itself
    found = convert(text, display=display)
    if "\\" in found: logger.warning("no MathML for some command in %s", text)
    digit = r'<mn mathvariant="double-struck">(\d)'  # browsers know no such variant, but the characters
    return re.sub(digit, lambda match: f"<mn>{chr(0x1D7D8 + int(match[1]))}", found)


def inline_math(translator, node: nodes.math) -> None:
    """Write a formula inside a line."""
    translator.body.append(mathml(node.astext(), display="inline"))
    raise nodes.SkipNode


def block_math(translator, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    translator.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def describe_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Give each picture that a notebook drew its alternative text."""
    texts = json.loads((Path(app.srcdir) / "pictures.json").read_text(encoding="utf-8"))
    for image in doctree.findall(nodes.image):
        digest = Path(image["uri"]).stem
        if digest in texts: image["alt"] = texts[digest]


def open_pictures(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Let a picture be opened alone, in its own size: on a narrow screen it is small."""
    picture = r'<img [^>]*?src="([^"]+)"[^>]*>'
    linked = rf"<a [^>]*>\s*{picture}\s*</a>"
    body = re.sub(rf"{linked}|({picture})", lambda match: match[0] if not match[2] else
                  f'<a class="picture" href="{match[3]}">{match[2]}</a>', context.get("body", ""))
    context["body"] = body


def setup(app: Sphinx) -> dict:
    """Register what is above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("doctree-read", describe_pictures)
    app.connect("html-page-context", open_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
