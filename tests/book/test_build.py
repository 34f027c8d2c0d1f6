"""The build stops at what a reader would trip over."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat.v4 as nb
import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(ROOT / "book" / "build.py")
light, repository = (load(ROOT / "book" / "_ext" / f"{n}.py") for n in ("light", "repository"))


def write_notebook(path, *cells):
    path.write_text(json.dumps(nb.new_notebook(cells=list(cells))))


def test_an_executed_error_stops_the_build(tmp_path):
    failed = nb.new_output("error", ename="ValueError", evalue="no such fold", traceback=[])
    write_notebook(tmp_path / "good.ipynb", nb.new_code_cell("1", outputs=[]))
    write_notebook(tmp_path / "bad.ipynb", nb.new_code_cell("1", outputs=[failed]))
    (message,) = build.notebook_errors(sorted(tmp_path.glob("*.ipynb")))
    assert "bad.ipynb: cell 1: ValueError: no such fold" in message


def test_a_page_that_was_not_made_is_named(tmp_path):
    toc = {"root": "index", "parts": [{"chapters": [{"file": "runs/quick/a"}, {"file": "b"}]}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    (tmp_path / "index.md").touch()
    (tmp_path / "b.md").touch()
    pages = build.contents(tmp_path / "_toc.yml")
    assert build.missing_pages(pages, tmp_path) == ["runs/quick/a"]


def test_broken_links_images_and_anchors_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here"></h1><a href="#here"></a><a href="#gone"></a><a href="b.html#x"></a>'
        '<img src="none.png"><a href="https://example.org/never-followed"></a>'
    )
    (tmp_path / "b.html").write_text("<p>no anchors</p>")
    assert build.broken_links(tmp_path) == [
        "a.html: #gone: no such anchor",
        "a.html: b.html#x: no such anchor",
        "a.html: none.png: no such file",
    ]


def test_injected_parameters_are_folded_away(tmp_path):
    cell = nb.new_code_cell("fold = 1", metadata={"tags": ["injected-parameters"]})
    write_notebook(tmp_path / "run.ipynb", cell)
    build.fold_parameters([tmp_path / "run.ipynb"])
    (cell,) = json.loads((tmp_path / "run.ipynb").read_text())["cells"]
    assert cell["metadata"]["tags"] == ["injected-parameters", "hide-input"]


def records(**changes):
    row = {
        "dataset": "patchseq",
        "data_source": "stand-in",
        "method": "scMoE",
        "task": "supervised",
        "modalities": "rna+ephys",
        "metric": "accuracy",
        "target_modality": "",
        "source_modality": "",
        "value": 0.5,
    }
    return row | changes


def test_the_summary_says_stand_in_and_sets_ours_beside_the_best_other():
    rows = [
        records(),
        records(method="scMoE linear", value=0.99),
        records(method="late fusion", value=0.7),
        records(modalities="rna", value=0.8),
        records(method="logistic regression", modalities="rna", value=0.6),
        records(metric="r2", task="translation", source_modality="ephys", value=0.1),
        records(metric="r2", task="translation", source_modality="rna", value=0.3),
        records(metric="r2", task="translation", source_modality="rna+ephys", value=0.9),
    ]
    line = build.summary(pd.DataFrame(rows)).splitlines()[-1]
    assert "**stand-in**" in line
    assert "| 0.500 | 0.990 | 0.700 late fusion | 0.200 | – |" in line


def test_what_a_run_shows_under_a_name_is_there_for_other_pages(tmp_path):
    cells = [
        nb.new_code_cell("1", outputs=[nb.new_output("display_data", data, metadata=known)])
        for data, known in [
            ({"text/markdown": "**Depends.** It may.", "text/plain": "x"}, named("verdict")),
            ({"text/html": "<svg></svg>"}, named("figure")),
            ({"text/html": "<p></p>"}, {}),
        ]
    ]
    write_notebook(tmp_path / "questions.ipynb", *cells)
    found = build.glued(tmp_path / "questions.ipynb")
    drawn = "```{raw} html\n<svg></svg>\n```\n"
    assert found == {"verdict": "**Depends.** It may.\n", "figure": drawn}


def named(name):
    return {"scrapbook": {"name": name, "mime_prefix": ""}}


def test_the_first_page_quotes_no_more_than_the_reviewers_page_shows():
    quoted = re.findall(r"_generated/(front-[\w-]+)\.md", (ROOT / "book" / "index.md").read_text())
    template = (ROOT / "notebooks" / "questions.ipynb").read_text()
    assert len(quoted) == len(set(quoted)) == 10
    assert all(f'\\"{name}\\"' in template for name in quoted)


def test_icons_are_those_that_pages_use_and_figures_have_a_size(tmp_path):
    (tmp_path / "a.svg").write_text('<svg viewBox="0 0 72 36"></svg>')
    page = build.BeautifulSoup(
        '<script src="x/fontawesome.js"></script><i class="fas fa-sun fa-lg"></i>'
        '<main><img src="a.svg"></main>', "html.parser",
    )  # fmt: skip
    used = light.lighten(page, tmp_path)
    assert used == {"sun", "lg"}
    assert page.img.attrs == {"src": "a.svg", "width": 96, "height": 48, "loading": "lazy"}
    assert page.script is None
    script = (
        '{sun:[5,6,[7],"f1","M1z"],"old-sun":[1,2,[3,"home"],"f2","M2z"],moon:[1,1,[],"f","M3z"]'
    )
    style = light.icons({"sun", "lg", "home"}, script)
    assert [name in style for name in (".fa-sun", ".fa-home", ".fa-lg", ".fa-moon")] == [1, 1, 0, 0]
    assert "0%200%205%206" in style and "M2z" in style


def test_silent_code_stands_below_the_lead_and_words_in_tables_start_left():
    code, row = "<div class='cell'><details class='hide'></details>{}</div>", "<tr>{}</tr>"
    told = "<div class='cell_output'></div>"
    body = row.format("<th>a</th><td>1.2</td><td>words here</td>")
    page = build.BeautifulSoup(
        f"<article><section id=all><h1></h1>{code.format('')}<p id=answer></p>{code.format(told)}"
        f"<section id=first>{code.format('')}</section></section></article><table class=dataframe>"
        f"<thead>{row.format('<th></th><th>x</th><th>why</th>')}</thead><tbody>{body}</tbody></table>",
        "html.parser",
    )
    light.mend(page)
    order = [tag.get("id") or str(tag.find(class_="cell_output")) for tag in page.section.contents]
    assert order == ["None", "answer", '<div class="cell_output"></div>', "None", "first"]
    assert [cell.text for cell in page.select(".scmoe-words")] == ["why", "words here"]


def test_links_to_the_repository_come_from_one_setting_or_not_at_all(monkeypatch):
    config = SimpleNamespace(html_theme_options={})
    monkeypatch.delenv("SCMOE_REPOSITORY", raising=False)
    repository.address(None, config)
    assert config.html_theme_options == {}
    monkeypatch.setenv("SCMOE_REPOSITORY", "https://github.com/a/b")
    repository.address(None, config)
    assert config.html_theme_options["repository_url"] == "https://github.com/a/b"
    page, run = "https://github.com/a/b/edit/main/", "runs/quick/interpretability-dataset_mop"
    binder = "https://mybinder.org/v2/gh/a/b/main?urlpath=lab/tree/"
    links = [{"url": f"{page}book/{run}.ipynb"}, {"url": f"{page}book/method.md"}]
    links += [{"text": "no link"}, {"url": f"{binder}book/{run}.ipynb"}]
    repository.template(None, run, "", {"header_buttons": [{"buttons": links}]}, None)
    assert links[0]["url"] == f"{page}notebooks/interpretability.ipynb"
    assert links[1] == {"url": f"{page}book/method.md"}  # a page that is no run is where it is
    assert links[3]["url"] == f"{binder}notebooks/interpretability.ipynb"


def test_every_run_page_of_the_contents_is_run_by_the_quick_profile():
    quick = yaml.safe_load((ROOT / "runs.yml").read_text())["profiles"]["quick"]["notebooks"]
    pages = build.contents(ROOT / "_toc.yml")
    runs = [Path(page).name for page in pages if page.startswith("runs/quick/")]
    # what is swept over follows a dash
    assert {run.partition("-")[0] for run in runs} == set(quick)
    assert all((ROOT / "notebooks" / f"{name}.ipynb").exists() for name in quick)
