"""The templates as they lie in the repository: stripped, parameterised, and without results."""

import ast
import json
import re
from pathlib import Path

import pytest

from scmoe import record

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATASETS = ["atacseq", "dbitseq", "dyngen", "patchseq"]


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
    assert re.match(r"# .+\n\n\*\*Question\.\*\* ", source(first))
    assert source(first).rstrip().endswith("?")


def test_it_has_all_parameters_with_usable_defaults(template):
    second = cells(template)[1]
    assert second["metadata"]["tags"] == ["parameters", "hide-input"]
    values = {
        node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source(second)).body
    }
    common = {name: values.pop(name) for name in record.PARAMETERS}
    assert common == {n: getattr(record.Run("own"), n) for n in common} | {"out_dir": None}
    more = record.SIMULATION if template.stem == "dyngen" else {}
    assert values == more or template.stem not in DATASETS  # other notebooks may have more


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
        if re.search(r"^(plot\.|report\.(headline|translations))", source(cell), re.MULTILINE):
            assert len(cell["metadata"]["mystnb"]["image"]["alt"]) > 30
