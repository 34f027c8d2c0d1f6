"""The build stops at what a reader would trip over."""

import importlib.util
import json
from pathlib import Path

import nbformat.v4 as nb
import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


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


def test_the_answers_of_the_claims_are_the_words_of_their_runs(tmp_path):
    words = "**Takeaway.** It does\nnot.\n\nDetails."
    said = nb.new_output("display_data", data={"text/markdown": words})
    write_notebook(tmp_path / "leaks.ipynb", nb.new_code_cell("1", outputs=[said]))
    chapters = [{"file": "leaks", "title": "Leaks"}]
    toc = {"parts": [{"caption": "Claims, tested", "chapters": chapters}, {"chapters": chapters}]}
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    found = build.takeaways(tmp_path / "_toc.yml", tmp_path)
    assert found == "- [Leaks](leaks.ipynb). It does not.\n"


def test_every_run_page_of_the_contents_is_run_by_the_quick_profile():
    quick = yaml.safe_load((ROOT / "runs.yml").read_text())["profiles"]["quick"]["notebooks"]
    pages = build.contents(ROOT / "_toc.yml")
    runs = [Path(page).name for page in pages if page.startswith("runs/quick/")]
    # what is swept over follows a dash
    assert {run.partition("-")[0] for run in runs} == set(quick)
    assert all((ROOT / "notebooks" / f"{name}.ipynb").exists() for name in quick)
