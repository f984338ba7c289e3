"""The command `sdd-face` itself, `sdd-face explain`, `sdd-face explain-pair` and `sdd-face facescrub`."""
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from sdd_face import __version__, cli, pictures
from sdd_face.alignment import LANDMARKS, TEMPLATE
from sdd_face.model import load_recognizer, save_recognizer
from sdd_face.synthetic import draw_faces, make_people


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process."""
    try: status = cli.main(arguments)
    except SystemExit as exit: status = exit.code
    return status, *capsys.readouterr()


def assert_refused(result: tuple[int, str, str], reason: str) -> None:
    """Check for one line on stderr and status 2."""
    status, out, err = result
    assert (status, out) == (2, "") and err.count("\n") == 1 and reason in err, err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def face(folder: Path) -> Path:
    """Save one drawn face upright, and lying on its side with a note in its EXIF data that says so."""
    pixels = draw_faces(make_people(1, seed=1000), images=1, seed=5).images[0].permute(1, 2, 0).numpy()
    upright = Image.fromarray(pixels)
    upright.save(folder / "face.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "lying.png", exif=exif)
    return folder / "face.png"


# The command

def test_help_tells_about_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(command in out for command in ("reproduce", "explain", "explain-pair", "facescrub"))
    for command in ("reproduce", "explain", "explain-pair", "facescrub download", "facescrub align"):
        assert run(capsys, *command.split(), "--help")[0] == 0


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"sdd-face {__version__}\n", "")


@pytest.mark.parametrize("arguments", [
    "", "draw", "reproduce --fast", "reproduce -p seed", "explain --top five", "explain a b"])
def test_what_is_no_command_is_refused(capsys, arguments: str):
    assert_refused(run(capsys, *arguments.split()), "--help)")


def test_help_is_there_at_once():
    code = """
import sys
from sdd_face.cli import main
try: main(["--help"])
except SystemExit: print(sorted(sys.modules))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for slow in ("torch", "numpy", "matplotlib", "papermill", "nbformat"): assert f"'{slow}'" not in out


# explain

def test_explains_a_drawn_face_without_anything(capsys, folder: Path):
    status, out, err = run(capsys, "explain")
    assert (status, err) == (0, "") and re.fullmatch(r"explanation.png: person_\d+, [\d.]+%\n", out)
    with Image.open(folder / "explanation.png") as picture: assert picture.width > 3 * picture.height / 2


def test_explains_an_image_upright(capsys, face: Path):
    status, out, err = run(capsys, "explain", "face.png", "--top", "3", "--out", "deep/why.png")
    assert (status, err) == (0, "") and out.startswith("deep/why.png: person_")
    again = run(capsys, "explain", "lying.png", "--top", "3", "--out", "deep/again.png")[1]
    assert again.split()[1:] == out.split()[1:]
    assert Path("deep/again.png").read_bytes() == Path("deep/why.png").read_bytes()


@pytest.fixture
def kept_run(folder: Path) -> Path:
    """Keep a network for three people, and a picture of each, as a run does."""
    file = folder / "runs/mine/model.safetensors"
    file.parent.mkdir(parents=True)
    np.save(file.parent / "samples.npy", draw_faces(make_people(3), images=1, seed=0).images.numpy())
    save_recognizer(load_recognizer("packaged", ["Ada", "Bo", "Cy"]), file)
    return file


def test_explains_with_a_run_or_a_file(capsys, face: Path, kept_run: Path):
    for model in ("mine", str(kept_run), str(kept_run.parent), "runs/mine"):
        status, out, _ = run(capsys, "explain", "face.png", "--model", model, "--top", "3")
        assert status == 0 and out.split()[1] in ("Ada,", "Bo,", "Cy,")


def test_a_run_shows_its_own_people(capsys, kept_run: Path, monkeypatch):
    shown = {}
    plot = pictures.plot_explanation

    def watch(explanation, images, *, samples):
        shown.update(samples)
        return plot(explanation, images, samples=samples)

    monkeypatch.setattr(pictures, "plot_explanation", watch)
    assert run(capsys, "explain", "--model", "mine", "--top", "3")[0] == 0
    kept = np.load(kept_run.parent / "samples.npy")
    assert sorted(shown) == [0, 1, 2] and all(np.array_equal(sample, kept[label]) for label, sample in shown.items())


def test_a_file_alone_has_no_samples(capsys, face: Path, kept_run: Path):
    run(capsys, *"explain face.png --model mine --top 3 --out with.png".split())
    kept_run.rename("lonely.safetensors")
    assert run(capsys, *"explain face.png --model lonely.safetensors --top 3 --out without.png".split())[0] == 0
    with Image.open("with.png") as rich, Image.open("without.png") as plain: assert rich.height > 1.5 * plain.height


def test_asks_why_this_person_and_not_those(capsys, face: Path, monkeypatch):
    asked = []
    plot = pictures.plot_explanation
    monkeypatch.setattr(pictures, "plot_explanation", lambda why, *args, **options: (
        asked.append(why.classes.tolist()), plot(why, *args, **options))[1])
    who = "--target", "person_07", "--against", "person 03,PERSON_11"
    status, out, err = run(capsys, "explain", "face.png", *who)
    assert (status, err) == (0, "") and out.startswith("explanation.png: person_07, ") and asked == [[[7, 3, 11]]]


def test_a_network_that_knows_nobody_is_told_what_to_do(capsys, folder: Path):
    save_recognizer(load_recognizer("packaged", []), folder / "nobody.safetensors")
    assert_refused(run(capsys, "explain", "--model", "nobody.safetensors"), "this network knows no people; fine-tune")


def test_a_photograph_that_is_no_aligned_face_is_explained_with_a_warning(capsys, folder: Path):
    Image.new("RGB", (300, 900), "grey").save("tall.png")
    for arguments in (["explain", "tall.png"], ["explain", "tall.png"]):
        status, out, err = run(capsys, *arguments)
        assert status == 0 and err.startswith("sdd-face: tall.png is 300 x 900, and no aligned face") and "\n" in err
        assert "Warning" not in err and err.count("\n") == 1


def test_home_is_found_where_the_shell_does_not(capsys, folder: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert run(capsys, "explain", "--out=~/why.png")[0] == 0
    assert (folder / "home" / "why.png").exists() and not (folder / "~").exists()


def test_the_package_is_the_command():
    out = subprocess.run([sys.executable, "-m", "sdd_face", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"sdd-face {__version__}\n"


@pytest.mark.parametrize(("arguments", "reason"), [
    ("nobody.jpg", "nobody.jpg"),
    ("note.jpg", "note.jpg"),
    (".", "."),
    ("--model nowhere", "model: nowhere is neither a file nor a run"),
    ("--model note.jpg", "note.jpg"),
    ("--top 1000", "top_k is 1000; expected 1 to 300, the people that the model knows"),
    ("--top 0", "top_k is 0"),
    ("--out picture.docx", "picture.docx: its ending names no kind of picture; expected one of ."),
    ("--out why", "why: its ending names no kind of picture"),
    ("--target Eve", "'Eve' is nobody whom the network knows, among 300 people"),
    ("--target person_00 --against person_01,person_00", "against holds the explained class itself"),
    ("--out note.jpg/why.png", "note.jpg"),
])
def test_refused(capsys, folder: Path, arguments: str, reason: str):
    (folder / "note.jpg").write_text("a letter")
    assert_refused(run(capsys, "explain", *arguments.split()), reason)
    assert [path.name for path in folder.iterdir()] == ["note.jpg"]


# explain-pair

@pytest.fixture
def two(folder: Path) -> list[str]:
    """Save two faces of one drawn person, a small gallery of others, and what is no face."""
    drawn = draw_faces(make_people(5, seed=0), images=2, seed=5)
    (folder / "others").mkdir()
    for i, pixels in enumerate(drawn.images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / (f"{'ab'[i]}.png" if i < 2 else f"others/{i}.png"))
    Image.new("RGB", (300, 300), "green").save(folder / "green.png")
    (folder / "note.jpg").write_text("a letter")
    return ["a.png", "b.png"]


def test_explains_a_pair(capsys, two: list[str]):
    status, out, err = run(capsys, "explain-pair", *two)
    assert (status, err) == (0, "") and re.fullmatch(r"pair.png: a.png and b.png, cosine 0\.[5-9]\d\n", out)
    assert run(capsys, "explain-pair", *two, "--gallery", "others", "--out", "rich.png")[0] == 0
    with Image.open("pair.png") as plain, Image.open("rich.png") as rich: assert rich.width > plain.width


def test_a_photograph_is_aligned_first(capsys, two: list[str], folder: Path):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    wide = Image.new("RGB", (400, 300), "grey")
    with Image.open("a.png") as face: wide.paste(face.resize((224, 224)), (120, 40))
    wide.save(folder / "photo.png")
    status, out, _ = run(capsys, "explain-pair", "photo.png", "b.png", "--align")
    assert status == 0 and float(out.split()[-1]) > 0.5


@pytest.mark.parametrize(("arguments", "reason"), [
    ("a.png green.png", "image 0 of b is of one colour: there is no face in it"),
    ("a.png nobody.png", "nobody.png: no such file"),
    ("a.png note.jpg", "note.jpg: not an image"),
    ("a.png b.png --gallery nowhere", "nowhere: no images; expected a folder of faces"),
    ("a.png b.png --model note.jpg", "note.jpg: damaged, cut short or not a weights file"),
    ("a.png b.png --model packaged --color bgr", "color is 'rgb', but 'bgr' was asked for"),
])
def test_a_pair_is_refused(capsys, two: list[str], arguments: str, reason: str):
    assert_refused(run(capsys, "explain-pair", *arguments.split()), reason)
    assert not Path("pair.png").exists()


def test_a_photograph_without_a_face_is_refused(capsys, two: list[str]):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    assert_refused(run(capsys, "explain-pair", "a.png", "green.png", "--align"), "green.png: no face was found")


# facescrub

@pytest.fixture
def mirror(folder: Path, face: Path) -> Iterator[Path]:
    """Serve a face and a missing one, and write the lists and the landmarks of both."""
    pages = {"/a.png": face.read_bytes()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *arguments: object) -> None: pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        digest = sha256(pages["/a.png"]).hexdigest()
        place = f"http://127.0.0.1:{server.server_port}"
        rows = [f"Ann Lee\t{i}\t{i}\t{place}/{name}.png\t10,10,100,100\t{digest}" for i, name in enumerate("ab")]
        (folder / "lists").mkdir()
        (folder / "lists/facescrub_actresses.txt").write_text("\n".join([*rows, rows[0][:40]]))
        points = ",".join(f"{value:g}" for value in TEMPLATE.ravel())
        columns = ",".join(f"{point}_{axis}" for point in LANDMARKS for axis in "xy")
        (folder / "landmarks.csv").write_text(f"file,{columns}\nAnn_Lee/0_0.jpg,{points}\n")
        yield folder
        server.shutdown()


def test_facescrub_from_the_lists_to_faces(capsys, mirror: Path):
    for _ in range(2):
        download = "facescrub download --metadata lists --out photos --private --timeout 2"
        status, out, err = run(capsys, *download.split())
        assert (status, out) == (0, "photos: 1 ok, 1 dead; 1 of the paper's 530 people, 1 of its 43,148 images\n")
        assert err.startswith("sdd-face: facescrub_actresses.txt, line 3: 4 columns; expected 6")
    status, out, err = run(capsys, *"facescrub align photos --out faces --landmarks landmarks.csv".split())
    assert (status, out, err) == (0, "faces: 1 aligned; 1 of the paper's 530 people, 1 of its 43,148 images\n", "")
    assert Path("faces/Ann_Lee/0_0.jpg").exists() and Path("faces/alignment.csv").exists()


def test_facescrub_leaves_the_local_network_alone(capsys, mirror: Path):
    out = run(capsys, *"facescrub download --metadata lists --out photos".split())[1]
    assert out == "photos: 2 refused; 0 of the paper's 530 people, 0 of its 43,148 images\n"


@pytest.mark.parametrize(("arguments", "reason"), [
    ("", "required: STEP"),
    ("download --out x", "--metadata"),
    ("download --metadata nowhere --out x", "nowhere: no such folder; expected FaceScrub's facescrub_actors.txt in it"),
    ("download --metadata . --out x", "no list of FaceScrub"),
    ("download --metadata . --out x --timeout soon", "--timeout"),
    ("align nowhere --out x --landmarks a.csv", "a.csv: no such file; expected a table of landmarks"),
    ("align nowhere --out x --missing drop", "missing is 'drop'; expected skip or box"),
    ("align . --out .", "not a folder apart from the photographs"),
])
def test_facescrub_refused(capsys, folder: Path, arguments: str, reason: str):
    assert_refused(run(capsys, "facescrub", *arguments.split()), reason)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("package", ["aiohttp", "tenacity"])
def test_a_missing_package_names_its_extra(capsys, mirror: Path, monkeypatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("sdd_face.download", "sdd_face.fetch"):
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.delattr(module, raising=False)
    result = run(capsys, *"facescrub download --metadata lists --out photos".split())
    assert_refused(result, f"{package} is not installed; pip install 'sdd_face[facescrub]'")
