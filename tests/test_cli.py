"""The command `sdd-face` itself, and what it does with photographs: explain, explain-pair, align, facescrub."""
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

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

COMMANDS = ("reproduce", "explain", "explain-pair", "explore", "align", "train", "evaluate", "notebooks", "course",
            "facescrub")


def test_help_tells_about_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(command in out for command in COMMANDS)
    for command in (*COMMANDS, "facescrub download"):
        status, out, _ = run(capsys, *command.split(), "--help")
        assert status == 0 and (command == "facescrub" or f"examples:\n  sdd-face {command}" in out)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"sdd-face {__version__}\n", "")


@pytest.mark.parametrize("arguments", [
    "", "draw", "reproduce --fast", "reproduce -p seed", "explain --top five", "facescrub", "train faces"])
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


WITHOUT = """
import sys
for name in ("nbformat", "papermill", "nbconvert", "IPython", "ipywidgets", "anywidget", "captum", "sklearn", "voila"):
    sys.modules[name] = None
from sdd_face.cli import main
sys.exit(main(sys.argv[1:]))"""


@pytest.mark.parametrize("arguments", [["explain"], ["explain", "--method", "cam"], ["train", "--help"]])
def test_explaining_needs_no_extra(folder: Path, arguments: list[str]):
    done = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        status, out, _ = run(capsys, "explain", "face.png", "--model", model)
        assert status == 0 and out.split()[1] in ("Ada,", "Bo,", "Cy,")


def test_a_run_shows_its_own_people(capsys, kept_run: Path, monkeypatch):
    shown = {}
    plot = pictures.plot_explanation

    def watch(explanation, *, samples, photo):
        shown.update(samples)
        return plot(explanation, samples=samples)

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
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 300, 3), np.uint8)).save("tall.png")
    for _ in range(2):
        status, out, err = run(capsys, "explain", "tall.png", "--no-align")
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
    ("note.jpg", "note.jpg: not an image that Pillow can read"),
    ("note.jpg --no-align", "note.jpg: not an image that Pillow can read"),
    ("--model nowhere", "model: nowhere is neither a file nor a run"),
    ("--model note.jpg", "note.jpg"),
    ("--top 1000", "top_k is 1000; expected 1 to 300, the people that the model knows"),
    ("--top 0", "top_k is 0"),
    ("--out picture.docx", "picture.docx: its ending names no kind of picture; expected one of ."),
    ("--out why", "why: its ending names no kind of picture"),
    ("--face 0", "face is 0"),
    ("--dpi 0", "dpi is 0; expected 1 or more"),
    ("--format docx", "format is 'docx'; expected one of"),
    ("--maps maps.txt", "maps is maps.txt; expected a file that ends in .npz or .safetensors"),
    ("--method magic", "unknown method 'magic'"),
    ("--method cam --against person_01", "cam compares with nobody; --against needs sdd"),
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
    assert run(capsys, "explain-pair", *two, "--gallery", "others", "--out", "rich.png", "--no-align")[0] == 0
    with Image.open("pair.png") as plain, Image.open("rich.png") as rich: assert rich.width > plain.width


def test_a_photograph_is_aligned_first(capsys, two: list[str], folder: Path):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    wide = Image.new("RGB", (400, 300), "grey")
    with Image.open("a.png") as face: wide.paste(face.resize((224, 224)), (120, 40))
    wide.save(folder / "photo.png")
    status, out, _ = run(capsys, "explain-pair", "photo.png", "b.png", "--align")
    assert status == 0 and float(out.split()[-1]) > 0.5


@pytest.mark.parametrize(("arguments", "reason"), [
    ("a.png green.png --no-align", "image 0 of b is of one colour: there is no face in it"),
    ("a.png nobody.png", "nobody.png: no such file"),
    ("a.png note.jpg", "note.jpg: not an image"),
    ("a.png b.png --gallery nowhere", "nowhere: no such file"),
    ("a.png b.png --model note.jpg", "note.jpg: text, beginning with 'a letter'; no weights"),
    ("a.png b.png --model packaged --color bgr", "color is 'rgb', but 'bgr' was asked for"),
])
def test_a_pair_is_refused(capsys, two: list[str], arguments: str, reason: str):
    assert_refused(run(capsys, "explain-pair", *arguments.split()), reason)
    assert not Path("pair.png").exists()


def test_a_photograph_without_a_face_is_refused(capsys, two: list[str]):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    assert_refused(run(capsys, "explain-pair", "a.png", "green.png", "--align"), "green.png: no face was found")


# Many photographs, and what comes out

@pytest.fixture
def album(folder: Path, face: Path) -> Path:
    """Save three faces in a folder with another inside, beside what is hidden and what is no image."""
    pixels = draw_faces(make_people(3, seed=1000), images=1, seed=6).images.permute(0, 2, 3, 1).numpy()
    (folder / "album/ann").mkdir(parents=True)
    for name, each in zip(("1.png", "2.png", "ann/1.png"), pixels): Image.fromarray(each).save(folder / "album" / name)
    (folder / "album/.hidden.png").write_text("no image")
    (folder / "album/notes.txt").write_text("a letter")
    return folder / "album"


def test_a_folder_is_explained_into_a_folder_of_its_shape(capsys, album: Path):
    asked = "explain album --no-align --top 3 --out o --format jpg --dpi 40 --json all.json --maps all.npz"
    before = len(plt.get_fignums())
    status, out, err = run(capsys, *asked.split())
    assert status == 0 and "album/notes.txt: passed over, no image by its name" in err
    assert len(plt.get_fignums()) == before  # no picture is kept in memory
    assert sorted(str(path.relative_to("o")) for path in Path("o").rglob("*.jpg")) == ["1.jpg", "2.jpg", "ann/1.jpg"]
    told = json.loads(Path("all.json").read_text())
    assert [face["file"] for face in told["faces"]] == ["album/1.png", "album/2.png", "album/ann/1.png"]
    assert [face["picture"] for face in told["faces"]] == ["o/1.jpg", "o/2.jpg", "o/ann/1.jpg"]
    assert told["sdd_face"] == __version__ and len(told["model"]["sha256"]) == 64 and told["options"]["top_k"] == 3
    maps = np.load("all.npz")
    assert maps["map"].shape == (3, 112, 112) and maps["probabilities"].shape == (3, 3)
    for face, row, scale in zip(told["faces"], maps["probabilities"], maps["scale"]):
        assert [np.float32(each["probability"]) for each in face["people"]] == row.tolist()
        assert np.float32(face["F"]) == scale
    assert out.splitlines()[0].startswith("o/1.jpg: person_")


def test_one_bad_file_does_not_stop_the_others(capsys, album: Path):
    (album / "2.png").write_bytes(b"no image")
    Image.new("RGB", (112, 112), "green").save(album / "ann/1.png")
    status, out, err = run(capsys, "explain", "album", "--no-align", "--top", "3", "--json", "all.json")
    assert status == 1 and out.startswith("explanations/1.png: ") and out.count("\n") == 1
    assert "2 of 3 photographs could not be explained:\n" in err and "Traceback" not in err
    assert "album/2.png: not an image that Pillow can read" in err and "there is no face in it" in err
    failed = json.loads(Path("all.json").read_text())["failed"]
    assert [each["file"] for each in failed] == ["album/2.png", "album/ann/1.png"]


def test_json_alone_is_on_stdout(capsys, face: Path):
    status, out, err = run(capsys, "explain", "face.png", "--no-align", "--json", "-", "--method", "cam")
    assert status == 0 and err.startswith("explanation.png: person_")
    told = json.loads(out)["faces"][0]
    assert set(told) >= {"file", "people", "highlighted", "picture"} and "F" not in told


def test_several_photographs_need_a_folder(capsys, album: Path):
    asked = "explain album/1.png album/2.png --out why.png --no-align"
    assert_refused(run(capsys, *asked.split()), "why.png: one picture for 2 photographs; expected a folder")


def test_an_empty_folder_is_refused(capsys, folder: Path):
    (folder / "empty").mkdir()
    assert_refused(run(capsys, "explain", "empty"), "empty: no images in it; expected photographs")


def test_several_faces_are_numbered(capsys, folder: Path):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    pixels = draw_faces(make_people(8, seed=3), images=1, seed=3).images[:2].permute(0, 2, 3, 1).numpy()
    scene = Image.new("RGB", (420, 240), "grey")
    scene.paste(Image.fromarray(pixels[0]).resize((200, 200)), (20, 20))
    scene.paste(Image.fromarray(pixels[1]), (280, 80))
    scene.save(folder / "two.png")
    status, out, _ = run(capsys, "explain", "two.png", "--face", "2", "--json", "two.json", "--out", "two-why.png")
    assert status == 0 and out.endswith(", face 2 of 2\n")
    told = json.loads(Path("two.json").read_text())["faces"][0]
    assert told["face"] == 2 and told["faces"] == 2 and told["aligned"] and told["box"][0] > 230
    assert len(told["landmarks"]) == 5
    assert_refused(run(capsys, "explain", "two.png", "--face", "3"), "two.png: face is 3, but 2 faces were found")


def test_without_the_extra_nothing_is_looked_for(capsys, face: Path, monkeypatch):
    monkeypatch.setattr(pictures, "align_is_installed", lambda: False)
    assert run(capsys, "explain", "face.png")[0] == 0
    assert_refused(run(capsys, "explain", "face.png", "--align"), "pip install 'sdd_face[align]'")
    assert_refused(run(capsys, "explain", "face.png", "--face", "2"), "faces are not looked for; --face needs --align")


def test_a_pair_leaves_numbers_and_maps(capsys, two: list[str]):
    files = "--json pair.json --maps pair.safetensors --out pair.pdf"
    assert run(capsys, *f"explain-pair a.png b.png --gallery others --no-align {files}".split())[0] == 0
    told, maps = json.loads(Path("pair.json").read_text())["faces"][0], load_file("pair.safetensors")
    for side in "ab":
        assert maps[f"{side}_map"].mean().item() + told[side]["constant"] == pytest.approx(told["cosine"], abs=1e-5)
        assert len(told[side]["rivals"]) == 4 and told[side]["rivals"][0]["file"].startswith("others/")
        assert told[side]["rivals"] == sorted(told[side]["rivals"], key=lambda each: -each["cosine"])
    assert Path("pair.pdf").read_bytes().startswith(b"%PDF")


def test_a_pair_takes_a_run_too(capsys, two: list[str], kept_run: Path):
    assert run(capsys, "explain-pair", *two, "--no-align", "--model", "mine")[0] == 0


# What cannot be printed

SPEAK = "import sys; from sdd_face.cli import main; sys.exit(main(sys.argv[1:]))"


def test_letters_that_a_terminal_lacks_are_printed_as_codes(folder: Path):
    save_recognizer(load_recognizer("packaged", [f"Zoë {i}" for i in range(5)]), folder / "zoe.safetensors")
    command = [sys.executable, "-c", SPEAK, "explain", "--model", "zoe.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"Zo\xeb" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(("where", "status", "said"), [("/dev/full", 1, "lost (No space left"), ("pipe", 0, "")])
def test_nobody_to_read_is_no_traceback(folder: Path, where: str, status: int, said: str):
    if where == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
    elif not Path(where).exists(): pytest.skip("this system has no /dev/full")
    else: writing = os.open(where, os.O_WRONLY)
    command = [sys.executable, "-c", SPEAK, "notebooks", "lessons"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    assert (folder / "lessons/00_synthetic.ipynb").exists()


def test_debug_shows_where_an_error_arose(folder: Path):
    with pytest.raises(FileNotFoundError, match="nobody.jpg"): cli.main(["explain", "nobody.jpg", "--debug"])


# Align, train, evaluate, notebooks

def test_a_flat_folder_is_aligned(capsys, album: Path, folder: Path):
    pytest.importorskip("mtcnnruntime", reason="the extra align is not installed")
    (folder / "flat").mkdir()
    for path in ("1.png", "2.png"): (album / path).rename(folder / "flat" / path)
    (folder / "flat/notes.txt").write_text("a letter")
    status, out, err = run(capsys, *"align flat --out faces --size 160".split())
    assert (status, out, err) == (0, "faces: 2 aligned; 2 faces, see alignment.csv\n", "")
    with Image.open("faces/1.jpg") as crop: assert crop.size == (160, 160)
    again = run(capsys, *"align flat --out faces --size 160".split())
    assert again == (status, out, err)


@pytest.mark.parametrize(("arguments", "reason"), [
    ("nowhere --out x --landmarks a.csv", "a.csv: no such file; expected a table of landmarks"),
    ("nowhere --out x --missing drop", "missing is 'drop'; expected skip or box"),
    ("nowhere --out x --size 5", "size is 5; expected 16 to 1024 pixels"),
    (". --out .", "not a folder apart from the photographs"),
])
def test_align_refused(capsys, folder: Path, arguments: str, reason: str):
    assert_refused(run(capsys, "align", *arguments.split()), reason)
    assert not list(folder.iterdir())


def test_train_then_evaluate_then_explain(capsys, folder: Path):
    drawn = draw_faces(make_people(3, seed=0), images=8, seed=0)
    for i, (pixels, person) in enumerate(zip(drawn.images.permute(0, 2, 3, 1).numpy(), drawn.people.tolist())):
        place = folder / "faces" / f"Person_{'ABC'[person]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")
    (folder / "faces/Person_D").mkdir()
    Image.fromarray(pixels).save(folder / "faces/Person_D/lonely.png")
    (folder / "faces/Person_A/broken.png").write_text("no image")
    status, out, err = run(capsys, *"train faces --run small --epochs 1".split())
    assert status == 0 and out.startswith("runs/small: 3 people, 18 faces for training")
    assert err.count("left out") == 1 and "Person_D" in err and "Faces/Person_A/broken.png" not in err
    kept = json.loads(Path("runs/small/metrics.json").read_text())["left_out"]
    assert {each[0] for each in kept} == {"Person_A/broken.png", "Person_D"}
    table = "evaluate --run small --methods sdd,disc,random"
    assert_refused(run(capsys, *table.split()), "unknown method 'random'; expected some of saliency")
    starts = {"csv": "measure,map,value,ci_low,ci_high\n", "md": "3 faces of 3 people", "tex": "% 3 faces"}
    for ending, start in starts.items():
        status, out, _ = run(capsys, *f"evaluate --run small --methods sdd,disc --out t.{ending}".split())
        assert status == 0 and out.startswith(f"t.{ending}: 3 faces")
        assert Path(f"t.{ending}").read_text().startswith(start)
    assert run(capsys, *"evaluate --run small --methods sdd --format latex".split())[1].count(r"\toprule") == 1
    assert_refused(run(capsys, *"evaluate --run small --out t.docx".split()), "t.docx: its ending names no kind of")
    asked = f"explain faces/Person_A/{0}.png --model small --target Person_B --no-align"
    assert run(capsys, *asked.split())[1].startswith("explanation.png: Person_B, ")


def test_the_course_is_copied_with_and_without_solutions(capsys, folder: Path):
    for name, more in (("pupils", []), ("teacher", ["--solutions"])):
        status, out, _ = run(capsys, "course", name, *more)
        lessons = sorted(Path(name).glob("*.ipynb"))
        assert status == 0 and len(lessons) == 5 and out.startswith(f"{name}: 5 files")
        assert any("BEGIN SOLUTION" in lesson.read_text() for lesson in lessons) == bool(more)
    assert_refused(run(capsys, "course", "pupils"), "is there already, perhaps with answers; choose another folder")


def test_notebooks_are_copied_whole(capsys, folder: Path):
    status, out, _ = run(capsys, "notebooks", "lessons")
    assert status == 0
    for name in ("beyond/07_own_head.ipynb", "profiles/quick.yaml"): assert Path("lessons", name).exists()
    assert "image/" in Path("lessons/05_sdd.ipynb").read_text()  # its pictures travel with it
    assert_refused(run(capsys, "notebooks", "lessons"), "lessons: there is something in it; expected a new or empty")


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
    status, out, err = run(capsys, *"align photos --out faces --landmarks landmarks.csv".split())
    assert (status, out, err) == (0, "faces: 1 aligned; 1 faces of 1 people, see alignment.csv\n", "")
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
