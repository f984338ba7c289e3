"""The course: every check fails untouched and passes with the solution; students get no solution; nbgrader takes it."""
import dis
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import matplotlib
import nbformat
import pytest
from conftest import ROOT
from nbformat import NotebookNode

from sdd_face import cli
from sdd_face.course import check, copy_course, lessons, without_solutions

matplotlib.use("agg")  # no window opens
LESSONS = {path.stem: nbformat.read(path, 4) for path in lessons()}


@pytest.fixture(params=LESSONS)
def lesson(request) -> NotebookNode:
    """Give one lesson, the teacher's version."""
    return LESSONS[request.param]


def role(cell: NotebookNode) -> str:
    """Tell what nbgrader takes a cell for: a check, a solution, a written answer, or "" for any other."""
    kind = cell.metadata.get("nbgrader", {})
    if kind.get("solution"): return "answer" if kind["grade"] else "solution"
    return "check" if kind.get("grade") else ""


def codes(notebook: NotebookNode) -> list[NotebookNode]:
    """List the cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# The lessons as texts

def test_there_are_five_lessons():
    assert [name[:2] for name in LESSONS] == ["1_", "2_", "3_", "4_", "5_"]


def test_a_lesson_has_all_its_parts(lesson):
    prose = "\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")
    assert re.match(r"# \d\. .+\n> ", lesson.cells[0].source)
    for part in ("After this lesson you can", "**Time:**", "You should know:", "## Summary", "**Further reading.**"):
        assert part in prose
    minutes = int(re.search(r"\*\*Time:\*\* (\d+) minutes", prose)[1])
    steps = re.search(r"minutes\. (.+)$", prose, flags=re.MULTILINE)[1]
    assert 50 <= minutes <= 90 and sum(map(int, re.findall(r" (\d+)", steps))) == minutes
    exercises = [int(number) for number in re.findall(r"\*\*Exercise (\d)\.\*\*", prose)]
    assert exercises == list(range(1, len(exercises) + 1)) and 4 <= len(exercises) <= 6
    predictions = [int(number) for number in re.findall(r"\*\*Prediction (\d)\.\*\*", prose)]
    assert len(predictions) >= 3 and predictions == list(range(1, len(predictions) + 1))


def test_nbgrader_finds_every_cell_once(lesson):
    marked = [cell for cell in lesson.cells if "nbgrader" in cell.metadata]
    names = [cell.metadata.nbgrader.grade_id for cell in marked]
    assert len(names) == len(set(names))
    assert all(cell.metadata.nbgrader.schema_version == 3 for cell in marked)
    assert all(cell.metadata.nbgrader.points > 0 for cell in marked if cell.metadata.nbgrader.grade)
    roles = [role(cell) for cell in codes(lesson) if role(cell)]
    assert roles == ["solution", "check"] * (len(roles) // 2)  # a check stands below each solution
    assert all(("BEGIN SOLUTION" in cell.source) == (role(cell) == "solution") for cell in codes(lesson))


def test_sentences_are_short(lesson):
    prose = [cell.source for cell in lesson.cells if cell.cell_type == "markdown"]
    blocks = [block for cell in prose for block in re.split(r"\n\n|\n(?=- )", cell) if block[:1] not in "|$<#"]
    sentences = [each for block in blocks for each in re.split(r"(?<=[.!?:;])\s+", re.sub(r"\]\(\S+\)", "]", block))]
    assert not [each for each in sentences if len(each.split()) > 35]


# The student's version

def solution_lines(cell: NotebookNode) -> set[str]:
    """List the lines of a solution; what also stands elsewhere in a lesson is no secret."""
    regions = re.findall(r"BEGIN SOLUTION\n(.*?)\n[^\n]*END SOLUTION", cell.source, flags=re.DOTALL)
    return {line.strip() for region in regions or [cell.source] for line in region.splitlines() if line.strip()}


def test_no_solution_is_left(lesson):
    student = without_solutions(lesson)
    left = {line.strip() for cell in student.cells for line in cell.source.splitlines()}
    solved = [cell for cell in lesson.cells if role(cell) in ("solution", "answer")]
    others = [cell for cell in lesson.cells if role(cell) not in ("solution", "answer")]
    public = {line.strip() for cell in others for line in cell.source.splitlines()}
    assert not set().union(*map(solution_lines, solved)) - public & left
    assert "BEGIN SOLUTION" not in nbformat.writes(student)
    assert not [cell for cell in codes(student) if cell.outputs or cell.execution_count]
    assert len(student.cells) == len(lesson.cells)
    assert any(cell.outputs for cell in codes(lesson))  # the lesson itself was not changed


def test_it_is_what_nbgrader_makes(lesson):
    preprocessors = pytest.importorskip("nbgrader.preprocessors", reason="needs nbgrader (extra course)")
    copy = nbformat.reads(nbformat.writes(lesson), 4)
    made, _ = preprocessors.ClearSolutions().preprocess(copy, {})
    ours = without_solutions(lesson)
    assert [cell.source for cell in ours.cells] == [cell.source for cell in made.cells]


@pytest.mark.parametrize("source", [
    "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION\n\n\n"
    "def g():\n\t# BEGIN SOLUTION\n\treturn 2\n\t# END SOLUTION\nf()",
    "### BEGIN SOLUTION\n### END SOLUTION", "x = 1", ""])
@pytest.mark.parametrize("kind", ["code", "markdown"])
def test_odd_cells_are_cleared_as_nbgrader_clears_them(source: str, kind: str):
    preprocessors = pytest.importorskip("nbgrader.preprocessors", reason="needs nbgrader (extra course)")
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    marks = dict(grade=kind == "markdown", grade_id="a", locked=False, schema_version=3, solution=True, task=False)
    notebooks = [nbformat.v4.new_notebook(cells=[make(source, metadata={"nbgrader": dict(marks)})]) for _ in range(2)]
    made, _ = preprocessors.ClearSolutions().preprocess(notebooks[0], {})
    assert without_solutions(notebooks[1]).cells[0].source == made.cells[0].source


# The checks

def made_and_read(source: str) -> tuple[set[str], set[str]]:
    """List the names that a cell makes, and those that it reads from cells before it."""
    made, read, blocks = set(), set(), [compile(source, "cell", "exec")]
    for block in blocks:
        blocks += [each for each in block.co_consts if hasattr(each, "co_code")]
        for step in dis.get_instructions(block):
            if step.opname == "STORE_NAME": made.add(step.argval)
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"): read.add(step.argval)
    return made, read - made


def needed_cells(cells: list[NotebookNode], *, by: str = "") -> list[NotebookNode]:
    """Leave out cells that only show something: no solution or check, nor the code `by`, reads what they make."""
    needed, kept = made_and_read(by)[1], []
    for cell in reversed(cells):
        made, read = made_and_read(cell.source)
        if not made & needed and (by or not role(cell)): continue
        needed = needed - made | read
        kept.insert(0, cell)
    return kept


def refusal(code: str, state: dict) -> str:
    """Run a check, and give what it says; "" if it passes."""
    try: exec(code, dict(state))
    except AssertionError as error: return str(error)
    return ""


def test_checks_fail_untouched_and_pass_when_solved(lesson, tmp_path: Path, capsys):
    untouched = {cell.id: cell.source for cell in without_solutions(lesson).cells}
    state, before = {"__name__": "lesson"}, {}
    with chdir(tmp_path):
        for cell in needed_cells(codes(lesson)):
            if role(cell) == "solution":
                before = dict(state)
                if "def " in untouched[cell.id]: exec(untouched[cell.id], before)
                else: pytest.raises(NotImplementedError, exec, untouched[cell.id], before)
            elif role(cell) == "check":
                said = refusal(cell.source, before)
                assert said.startswith("Not ") and "Hint: " in said, f"{cell.metadata.nbgrader.grade_id}: {said!r}"
                if "not defined" not in said: assert said.startswith("Not done yet."), said
            exec(cell.source, state)
    checks = [cell for cell in codes(lesson) if role(cell) == "check"]
    assert capsys.readouterr().out.count("Right.") == len(checks)
    assert not list(tmp_path.iterdir())  # a lesson leaves nothing behind


WRONG = {  # lesson, solution -> an answer with a usual mistake
    ("1_evidence", "softmax"): "def probabilities(logits): return logits.exp() / logits.exp().sum()",
    ("1_evidence", "map-by-hand"): "map_ann = [[2, -1], [8, 8]]",
    ("2_comparison", "factor"): "def factor(target, rivals): return 3 * rivals.abs().mean() / target.abs().mean()",
    ("2_comparison", "finish"): "def finish(divergence, alpha):\n"
                                "    return torch.exp(alpha * divergence) / torch.exp(alpha * divergence).max()",
    ("3_agreement", "mask"): "def top_share(heat, share): return heat >= (1 - share) * heat.max()",
    ("3_agreement", "cover"): "def deleted(image, mask): return image * mask\n"
                              "def retained(image, mask): return image * ~mask",
    ("4_controls", "others"): "def swapped(maps, people): return maps.flip(0)\n"
                              "def mean_of_others(maps, people): return maps.mean(0).expand_as(maps)",
    ("4_controls", "invent"): "def my_control(count, seed=0): return sf.centred_map().expand(count, -1, -1)",
    ("5_truth", "changed"): "def changed(a, b, level=8): return (a - b).abs().amax(1) >= level",
    ("5_truth", "rates"): "def error_rates(mates, others, threshold):\n"
                          "    wrong = (mates < threshold).sum(), (others >= threshold).sum()\n"
                          "    return [each / (len(mates) + len(others)) for each in wrong]",
}


@pytest.mark.parametrize(("name", "exercise"), WRONG)
def test_usual_mistakes_are_found(name: str, exercise: str):
    """A wrong answer is refused by a check that needs no network, given the solutions before it."""
    state, cells = {}, codes(LESSONS[name])
    place = next(i for i, cell in enumerate(cells) if cell.metadata.get("nbgrader", {}).get("grade_id") == exercise)
    answer, question = WRONG[name, exercise], cells[place + 1].source
    before = needed_cells(cells[:place], by=f"{answer}\n{question}")
    for source in [*(cell.source for cell in before), answer]: exec(source, state)
    assert refusal(question, state).startswith("Not right yet")


def test_few_cells_need_what_a_student_wrote():
    """An exercise that is left open stops nobody; the teachers' page names the two cells that it does stop."""
    needed = set()
    for name, lesson in LESSONS.items():
        written = set()
        for cell in codes(lesson):
            made, read = made_and_read(cell.source)
            if role(cell) != "check": needed |= {(name, each) for each in read & written}
            written = written | made if role(cell) == "solution" else written - made
    assert needed == {("2_comparison", "factor"), ("4_controls", "my_control")}


def test_the_teachers_table_is_right():
    page = (ROOT / "nbs/course/teachers.md").read_text(encoding="utf-8")
    for name, lesson in LESSONS.items():
        marks = [cell.metadata.nbgrader for cell in lesson.cells if cell.metadata.get("nbgrader", {}).get("grade")]
        by_hand = sum(each.points for each in marks if each.solution)
        text = "\n".join(cell.source for cell in lesson.cells)
        minutes = re.search(r"\*\*Time:\*\* (\d+) minutes", text)[1]
        exercises = text.count("**Exercise ")
        row = re.search(rf"^\| \[{name}\]\({name}\.ipynb\) \| .+? \| (.+) \|$", page, flags=re.MULTILINE)[1]
        assert row.split(" | ") == [minutes, str(exercises), str(points(lesson)), str(by_hand)]


def test_a_check_keeps_the_error_of_the_students_code():
    with pytest.raises(AssertionError, match="Not right yet: ZeroDivisionError: .* Hint: count again.") as told:
        with check("count again"): divmod(1, 0)
    assert isinstance(told.value.__cause__, ZeroDivisionError)


# Copied out

def test_copies_for_students_and_for_teachers(tmp_path: Path):
    student, teacher = copy_course(tmp_path / "student"), copy_course(tmp_path / "teacher", solutions=True)
    assert [path.name for path in student] == [path.name for path in teacher] == [path.name for path in lessons()]
    assert all("BEGIN SOLUTION" not in path.read_text(encoding="utf-8") for path in student)
    assert all(path.read_text(encoding="utf-8").count("BEGIN SOLUTION") >= 5 for path in teacher)
    for path in student: nbformat.validate(nbformat.read(path, 4))


def test_what_a_student_wrote_is_not_overwritten(tmp_path: Path):
    (tmp_path / "3_agreement.ipynb").write_text("mine")
    with pytest.raises(FileExistsError, match="3_agreement.ipynb is there already"): copy_course(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["3_agreement.ipynb"]


def test_the_command_copies_and_refuses(tmp_path: Path, capsys):
    with chdir(tmp_path):
        assert cli.main(["course", "mine"]) == 0
        assert "mine: 5 files" in capsys.readouterr().out
        assert cli.main(["course", "mine", "--solutions"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "is there already, perhaps with answers" in err
        assert cli.main(["course", "yours", "--solutions"]) == 0
    assert "BEGIN SOLUTION" not in (tmp_path / "mine/1_evidence.ipynb").read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" in (tmp_path / "yours/1_evidence.ipynb").read_text(encoding="utf-8")


def test_slides_show_pictures_and_no_solution(tmp_path: Path):
    written = copy_course(tmp_path, slides=True)
    slides = [path for path in written if path.suffix == ".html"]
    assert [path.name for path in slides] == [f"{name}.slides.html" for name in LESSONS]
    for path in slides:
        text = path.read_text(encoding="utf-8")
        assert "image/png;base64" in text and "SOLUTION" not in text and "Exercise" not in text
        assert text.count("<section>") > 8


def test_the_wheel_holds_the_course():
    assert '"course/*.ipynb"' in (ROOT / "setup.py").read_text(encoding="utf-8")


# nbgrader itself

def nbgrader(folder: Path, *arguments: str) -> None:
    """Run a command of nbgrader in a course's folder."""
    command = [sys.executable, "-m", "nbgrader", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def submit(course: Path, student: str, released: Path, done: set[str] | None) -> None:
    """Hand in a lesson with the solutions of some exercises; None: of all."""
    notebook, lesson = nbformat.read(released, 4), LESSONS[released.stem]
    solutions = {cell.metadata.nbgrader.grade_id: cell.source for cell in lesson.cells if role(cell) == "solution"}
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in solutions and (done is None or name in done): cell.source = solutions[name]
    folder = course / "submitted" / student / "faces"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / released.name)


def points(lesson: NotebookNode, done: list[str] | None = None) -> int:
    """Add up what the checks of some exercises give; None: of all."""
    marks = [cell.metadata.nbgrader for cell in codes(lesson) if role(cell) == "check"]
    return sum(each.points for each in marks if done is None or each.grade_id.removesuffix("-check") in done)


@pytest.mark.slow
def test_nbgrader_marks_a_solved_an_empty_and_a_half_solved_lesson(tmp_path: Path):
    pytest.importorskip("nbgrader", reason="needs nbgrader (extra course)")
    from nbgrader.api import Gradebook
    copy_course(tmp_path / "source" / "faces", solutions=True)
    nbgrader(tmp_path, "generate_assignment", "faces", "--create")
    released = sorted((tmp_path / "release" / "faces").glob("*.ipynb"))
    for path, cells in zip(released, map(without_solutions, LESSONS.values()), strict=True):
        assert [cell.source for cell in nbformat.read(path, 4).cells] == [cell.source for cell in cells.cells]
    exercises = [cell.metadata.nbgrader.grade_id for cell in codes(LESSONS["1_evidence"]) if role(cell) == "solution"]
    submit(tmp_path, "empty", released[0], set())
    submit(tmp_path, "half", released[0], set(exercises[:3]))
    for path in released: submit(tmp_path, "solved", path, None)
    nbgrader(tmp_path, "autograde", "faces", "--create", "--ExecutePreprocessor.timeout=300")
    nbgrader(tmp_path, "generate_feedback", "faces")
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        for name, lesson in LESSONS.items():
            marked = book.find_submission_notebook(name, "faces", "solved")
            assert marked.code_score == points(lesson) == marked.max_code_score
        assert book.find_submission_notebook("1_evidence", "faces", "empty").code_score == 0
        marked = book.find_submission_notebook("1_evidence", "faces", "half")
        assert marked.code_score == points(LESSONS["1_evidence"], exercises[:3])
    assert "Hint: " in (tmp_path / "feedback" / "half" / "faces" / "1_evidence.html").read_text(encoding="utf-8")
