"""Every link, anchor and picture of a built site leads somewhere, every picture says what it shows, all was read.

python .ci/site/links.py OUT asks every address outside of a built site whether it is still there; needs the web."""
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

# Signs of Markdown, formulas and roles, which no reader should see, and the elements in which they are meant.
UNREAD = re.compile(r"\$|:::|\{[a-z:]+\}`|\]\(|\\[A-Za-z]+|```|\*\*")
APART = {"script", "style", "pre", "code", "math", "title", "dt"}


class Page(HTMLParser):
    """Reads a page: what it points to, its anchors, pictures that say nothing, and signs that nobody read."""

    def __init__(self, text: str):
        super().__init__()
        self.targets, self.anchors, self.silent = [], set(), []
        self.apart, self.unread = [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if given.get("rel") != "canonical":  # that is the page itself, where it will be
            self.targets += [given[name] for name in ("href", "src") if given.get(name)]
        if tag in APART: self.apart.append(tag)
        if tag == "img" and not (given.get("alt") or "").strip(): self.silent.append(given.get("src"))

    def handle_endtag(self, tag: str) -> None:
        if self.apart[-1:] == [tag]: self.apart.pop()

    def handle_data(self, data: str) -> None:
        if not self.apart and UNREAD.search(data): self.unread.append(data.strip())


def broken(site: Path) -> Iterator[str]:
    """List what leads nowhere, and pictures without words, with the page that has them."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: the picture {source} has no alternative text" for source in page.silent)
        yield from (f"{name}: signs that should have been read: {text[:100]}" for text in page.unread)
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc: continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if aim.is_dir(): aim /= "index.html"
            if not aim.is_relative_to(site) or not aim.exists(): yield f"{name}: {target} does not exist"
            elif parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].anchors:
                yield f"{name}: {target} names a place that {aim.relative_to(site)} does not have"


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """List what a page needs from other servers in order to be shown."""
    needed = re.compile(r'<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"')
    for path in sorted(site.rglob("*.html")):
        for tag in needed.finditer(path.read_text(encoding="utf-8")):
            if 'rel="canonical"' not in tag[0]: yield f"{path.relative_to(site)}: needs {tag[1]}"


ALWAYS = ("https://colab.research.google.com/", "https://mybinder.org/")  # answer the same whatever is asked for
GONE = {404, 410}  # other refusals, such as 403 to a program, do not say that the page is gone


def addresses(site: Path) -> list[str]:
    """List the addresses outside of the site that its pages point to."""
    pages = [Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))]
    found = {target.partition("#")[0] for page in pages for target in page.targets if re.match("https?://", target)}
    return sorted(each for each in found if not each.startswith(ALWAYS))


def answer(address: str) -> str:
    """Ask for a page, and give what is wrong with it, or nothing."""
    request = Request(address, headers={"User-Agent": "Mozilla/5.0 (sdd_face, checks its links)"})
    try: urlopen(request, timeout=30).close()
    except HTTPError as error: return f"{address}: {error.code} {error.reason}" if error.code in GONE else ""
    except URLError as error: return f"{address}: {error.reason}"
    return ""


def main(arguments: list[str]) -> int:
    """Ask all addresses, and name those that are gone."""
    if len(arguments) != 1: sys.exit(__doc__)
    asked = addresses(Path(arguments[0]).resolve())
    with ThreadPoolExecutor(4) as pool: gone = list(filter(None, pool.map(answer, asked)))
    print("\n".join([*gone, f"{len(asked)} addresses, {len(gone)} of them gone"]))
    return 1 if gone else 0


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
