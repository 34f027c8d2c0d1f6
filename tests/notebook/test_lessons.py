"""Lessons: an exercise is its solution without the body, folded; a quiz needs no kernel."""

import ast
import copy
import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "book" / "exercises.py"
spec = importlib.util.spec_from_file_location("exercises", FILE)
exercises = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exercises)


@pytest.fixture(params=exercises.LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return json.loads(request.param.read_text())


def test_there_are_lessons():
    assert len(exercises.LESSONS) == 6


def test_its_exercise_is_its_solution_without_the_body(lesson):
    given = {tag: cell for cell in lesson["cells"] for tag in cell["metadata"].get("tags", [])}
    assert "hide-input" in given["solution"]["metadata"]["tags"]
    again = exercises.rewritten(copy.deepcopy(lesson))
    texts = ["".join(cell["source"]) for cell in again["cells"] if cell["cell_type"] == "code"]
    known = ["".join(cell["source"]) for cell in lesson["cells"] if cell["cell_type"] == "code"]
    assert [ast.dump(ast.parse(text)) for text in texts] == [
        ast.dump(ast.parse(text)) for text in known
    ]


def test_its_quiz_folds_every_answer(lesson):
    (quiz,) = ["".join(c["source"]) for c in lesson["cells"] if "## Quiz" in "".join(c["source"])]
    assert quiz.count("<details>") == quiz.count("</details>") == quiz.count("<summary>") >= 3
