"""Draw figures/explorer.png: the explorer in a real browser. `python tests/picture_explorer.py [FILE]`"""
import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

SIZE, COLORS = (1000, 1150), 256


def main(path: Path) -> None:
    """Open the page with a larger alpha, wait until nothing moves, and keep what is seen."""
    from test_explore_browser import open_page, opened_browser, served
    with TemporaryDirectory() as folder, served(Path(folder)) as address, opened_browser() as browser:
        browser.set_window_size(*SIZE)
        open_page(browser, address + "?alpha=0.75")
        before, now = b"", browser.get_screenshot_as_png()
        while before != now:
            time.sleep(1)
            before, now = now, browser.get_screenshot_as_png()
    picture = Image.open(io.BytesIO(now)).convert("RGB")
    picture.quantize(COLORS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        from sdd_face.serving import serve
        serve(networks=["packaged"], port=int(sys.argv[2]), browser=False)
    else: main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "figures" / "explorer.png")
