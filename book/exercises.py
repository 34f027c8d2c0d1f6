"""Make the exercises of the lessons from their solutions, so that the two cannot part.

``python book/exercises.py`` rewrites, in every lesson, the cell tagged *exercise*: the functions of
the cell tagged *solution*, each with its first line and what it is to give, and without its body.
"""

import ast
import json
from pathlib import Path

LESSONS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("lesson_*.ipynb"))


def exercise(solution: str) -> str:
    """Give the functions of a solution without their bodies."""
    functions = [node for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)]
    for node in functions:
        node.body = [node.body[0], ast.Expr(ast.Constant(...))]
    text = "\n\n\n".join(ast.unparse(node) for node in functions)
    return f"{text}  # your lines in the place of the dots"


def rewritten(notebook: dict) -> dict:
    """Give a lesson with its exercise made anew."""
    cells = {tag: c for c in notebook["cells"] for tag in c["metadata"].get("tags", [])}
    text = exercise("".join(cells["solution"]["source"]))
    cells["exercise"]["source"] = text.splitlines(keepends=True)
    return notebook


if __name__ == "__main__":
    for lesson in LESSONS:
        notebook = rewritten(json.loads(lesson.read_text()))
        lesson.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
