"""The house has floors: a file imports from floors below its own, or from its own folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scmoe"
FLOORS = [  # from the ground up; a folder counts as one
    {"keep", "ranks"},
    {"data", "config", "clusters", "colours", "claim", "checkpoint", "progress"},
    {"nn", "method", "metrics", "own"},
    {"step", "parts", "paper", "plot"},
    {"fit", "baselines"},
    {"networks"},
    {"model"},
    {"explain", "audit", "record"},
    {"page"},
    {"__init__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(name: str) -> str:
    """Give the folder or file of the package that a dotted name lies in."""
    return (name.split(".") + ["__init__"])[1]


def imports(file: Path):
    """Give (module, name) of what a file takes from the package, wherever it does so."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "scmoe":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if a.name.split(".")[0] == "scmoe")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_arrow_points_up_and_no_private_name_leaves_its_file(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    floor = {part: n for n, parts in enumerate(FLOORS) for part in parts}
    for module, name in imports(file):
        assert not name.startswith("_"), f"{name} is private to {module}"
        part = name if module == "scmoe" and name in floor else part_of(module)
        assert part == own or floor[part] < floor[own], f"{own} stands below {part}"


def test_benchmarks_take_no_private_name():
    for file in (PACKAGE.parent / "benchmarks").rglob("*.py"):
        assert not [name for _, name in imports(file) if name.startswith("_")], file
