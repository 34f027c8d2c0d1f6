"""The templates as they lie in the repository: stripped, parameterised, and without results."""

import ast
import json
import re
from pathlib import Path

import pytest

from scmoe import record

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATASETS = ["atacseq", "dbitseq", "dyngen", "mop", "patchseq"]


def cells(path, kind=None):
    content = json.loads(path.read_text())["cells"]
    return [cell for cell in content if kind in (None, cell["cell_type"])]


def source(cell):
    return "".join(cell["source"])


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request):
    return request.param


def test_there_is_a_template_for_each_data_set():
    assert set(DATASETS) <= {path.stem for path in TEMPLATES}


def test_it_is_stripped(template):
    content = json.loads(template.read_text())
    assert set(content["metadata"]) <= {"kernelspec", "language_info"}
    for cell in cells(template, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert set(cell["metadata"]) <= {"tags", "mystnb"}


def test_it_opens_with_its_title_and_question(template):
    first = cells(template)[0]
    assert first["cell_type"] == "markdown"
    answer = r"(\n\n(\*\*In this run\.\*\* )?{glue:md}.+)?"  # its sentences come from below
    assert re.fullmatch(r"# .+\n\n\*\*Question\.\*\* (?s:.+?)\?" + answer, source(first).rstrip())


def test_it_has_all_parameters_with_usable_defaults(template):
    second = cells(template)[1]
    assert second["metadata"]["tags"] == ["parameters", "hide-input"]
    values = {
        node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(second)).body
    }
    common = {name: values.pop(name) for name in record.PARAMETERS if name in values}
    assert common == {n: getattr(record.Run("own"), n) for n in common} | {"out_dir": None}
    if template.stem in DATASETS:  # other notebooks have fewer, and some of their own
        assert list(common) == record.PARAMETERS
        assert values == (record.SIMULATION if template.stem == "dyngen" else {})


def test_each_cell_is_short_and_told_why(template):
    content = cells(template)
    for before, cell in zip(content, content[1:], strict=False):
        if cell["cell_type"] == "code":
            tags = cell["metadata"].get("tags", [])
            lines = len(cell["source"])
            # parameters are a list: one line each, however many there are
            allowed = len(ast.parse(source(cell)).body) if "parameters" in tags else 15
            assert lines <= allowed, source(cell)
            hidden = "hide-input" in tags
            assert hidden or before["cell_type"] == "markdown", source(cell)


def test_its_text_states_no_result(template):
    number = re.compile(r"\d\.\d|\d ?%|\.\d\d")
    for cell in cells(template, "markdown"):
        assert not number.search(source(cell)), source(cell)


def test_it_uses_public_names_only(template):
    for cell in cells(template, "code"):
        assert not re.search(r"\b_\w|scmoe\.nn|scmoe\.fit|\.network_", source(cell)), source(cell)


def test_every_figure_has_words_for_who_cannot_see_it(template):
    for cell in cells(template, "code"):
        if re.search(r"^ *(display\()?(plot|explain\.figures)\.(?!style)", source(cell), re.M):
            assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 30


@pytest.mark.parametrize("name", [*DATASETS, "own_data"])
def test_every_table_and_figure_of_a_set_says_where_its_cells_are_from(name):
    text = "\n".join(source(cell) for cell in cells(ROOT / "notebooks" / f"{name}.ipynb", "code"))
    drawn = re.findall(r"(?:plot|page|explain\.figures)\.(?!style|mark|banner)\w+\(", text)
    titles = re.findall(r'f"\{name\}', text)
    assert "+ page.mark(split)" in text
    assert len(drawn) == len(titles)


@pytest.mark.parametrize("name", DATASETS)
def test_every_sentence_with_a_number_is_checked_and_not_on_stand_ins(name):
    claims = [source(cell) for cell in cells(ROOT / "notebooks" / f"{name}.ipynb", "code")
              if "scmoe.claim(" in source(cell)]  # fmt: skip
    assert len(claims) >= 3
    assert all("tested=real" in claim for claim in claims)
    assert {g for c in claims for g in re.findall(r'glue="(\w+)"', c)} == {"groups", "translation"}
