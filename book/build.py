"""Build the book from executed notebooks, and stop at anything a reader would trip over.

``python book/build.py`` checks that no executed notebook holds an error, writes what other pages
include of them, runs Jupyter Book with warnings as errors, and follows every
internal link of the built pages.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import yaml
from bs4 import BeautifulSoup

import scmoe
from scmoe.keep import write_json

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
HTML = BOOK / "_build" / "html"
WHERE = (HTML / "index.html").relative_to(ROOT)
SOURCES = {  # what a data source is called on a page
    "zenodo": "published files",
    "local": "local files",
    "excerpt": "**excerpt**",
    "simulated": "simulated",
    "stand-in": "**stand-in**",
}
QUOTED = "questions"  # the run whose claims and drawings the first page shows


def notebook_errors(notebooks: list[Path]) -> list[str]:
    """Give a line per error that the executed notebooks show."""
    found = []
    for path in notebooks:
        for number, cell in enumerate(json.loads(path.read_text())["cells"], start=1):
            for output in cell.get("outputs", []):
                if output["output_type"] == "error":
                    found.append(f"{path}: cell {number}: {output['ename']}: {output['evalue']}")
    return found


def fold_parameters(notebooks: list[Path]) -> None:
    """Fold away the cell in which papermill sets a run's parameters: it inherits no tags."""
    for path in notebooks:
        notebook = json.loads(path.read_text())
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags and "hide-input" not in tags:
                tags.append("hide-input")
        write_json(path, notebook, ensure_ascii=False)


def contents(toc: Path) -> list[str]:
    """Give the pages that a table of contents names, in its order."""
    content = yaml.safe_load(toc.read_text())
    chapters = [chapter for part in content["parts"] for chapter in part["chapters"]]
    pages = [page["file"] for one in chapters for page in (one, *one.get("sections", []))]
    return [content["root"], *pages]


def missing_pages(pages: list[str], source: Path) -> list[str]:
    """Give those of the pages that ``source`` does not have."""
    return [
        p for p in pages if not any((source / f"{p}{end}").exists() for end in (".md", ".ipynb"))
    ]


def read_records(folder: Path, runs: list[str]) -> pd.DataFrame:
    """Read the scores of the runs below ``folder`` that are named for their data set."""
    records = scmoe.read_records(folder / run / "metrics.json" for run in runs)
    return records[records["dataset"] == [Path(file).parent.name for file in records["run"]]]


def summary(records: pd.DataFrame) -> str:
    """Give a Markdown table: per data set, scMoE beside the best of the other methods.

    Accuracy is that of joint group identification from all modalities; R² is the mean over all
    ordered pairs of modalities (target ← source, one source).
    """
    lines = [
        "| data set | made from | scMoE | scMoE linear | best other | R²: scMoE | ridge |",
        "|---|---|--:|--:|---|--:|--:|",
    ]
    for dataset, rows in records.groupby("dataset", sort=False):
        accuracy = rows[rows.metric.eq("accuracy")].sort_values("value")
        joint = accuracy[accuracy.modalities.eq(max(accuracy.modalities, key=len))]
        ours = joint.drop_duplicates("method", keep="last").set_index("method").value
        others = accuracy[~accuracy.method.str.startswith("scMoE")].tail(1)
        pairs = rows[rows.metric.eq("r2") & ~rows.source_modality.astype(str).str.contains(r"\+")]
        r2 = pairs.groupby("method").value.mean()
        source = rows.data_source.iloc[0]
        cells = [
            f"[{dataset}](runs/quick/{dataset}.ipynb)",
            SOURCES.get(source, source),
            *(f"{ours[m]:.3f}" if m in ours else "–" for m in ("scMoE", "scMoE linear")),
            " ".join(f"{row.value:.3f} {row.method}" for row in others.itertuples()) or "–",
            *(f"{r2[m]:.3f}" if m in r2 else "–" for m in ("scMoE", "ridge")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def glued(notebook: Path) -> dict[str, str]:
    """Give, as Markdown, what a run shows under a name: claims and drawings, for other pages."""
    found = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            if name := output.get("metadata", {}).get("scrapbook", {}).get("name"):
                shown = {kind: "".join(data) for kind, data in output["data"].items()}
                raw = f"```{{raw}} html\n{shown.get('text/html')}\n```"
                found[name] = shown.get("text/markdown", raw) + "\n"
    return found


def broken_links(html: Path) -> list[str]:
    """Give a line per link, image or script of the built pages whose target is not there."""
    files = [path for path in html.rglob("*.html") if "_static" not in path.parts]
    pages = {path: BeautifulSoup(path.read_text(), "html.parser") for path in files}
    anchors = {
        path: {tag.get("id") or tag.get("name") for tag in page.select("[id], a[name]")}
        for path, page in pages.items()
    }
    broken = []
    for path, page in pages.items():
        for tag in page.select("[href], [src]"):
            address = tag.get("href") or tag.get("src") or ""
            url = urlsplit(address)
            if url.scheme or url.netloc or not (url.path or url.fragment):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            fragment = unquote(url.fragment)
            if not target.exists():
                broken.append(f"{path.relative_to(html)}: {address}: no such file")
            elif fragment and target in anchors and fragment not in anchors[target]:
                broken.append(f"{path.relative_to(html)}: {address}: no such anchor")
    return sorted(set(broken))


def made_from() -> str:
    """Give the hash of everything that the built pages depend on."""
    digest = hashlib.sha256(os.environ.get("SCMOE_REPOSITORY", "").encode())
    files = [*ROOT.glob("_*.yml"), *ROOT.glob("constraints.txt"), *ROOT.rglob("scmoe/**/*.py")]
    files += [*BOOK.glob("*.*"), *BOOK.glob("_[!b]*/*.*"), *BOOK.glob("runs/quick/*.ipynb")]
    files += BOOK.glob("runs/quick/*/metrics.json")
    for file in sorted(set(files)):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def stop_if(problems: list[str], what: str) -> None:
    """End the build with the list of problems, if there are any."""
    if problems:
        sys.exit(f"{what}:\n  " + "\n  ".join(problems))


def main() -> None:
    """Check, build, check again."""
    quick = BOOK / "runs" / "quick"
    pages = contents(ROOT / "_toc.yml")
    stop_if(missing_pages(pages, BOOK), "Pages of _toc.yml are missing")
    runs = [Path(page).name for page in pages if page.startswith("runs/quick/")]
    notebooks = [quick / f"{run}.ipynb" for run in runs]
    stop_if(notebook_errors(notebooks), "Executed notebooks hold errors")
    fold_parameters(notebooks)
    generated = BOOK / "_generated"
    generated.mkdir(exist_ok=True)
    (generated / "summary.md").write_text(summary(read_records(quick, runs)))
    for name, shown in glued(quick / f"{QUOTED}.ipynb").items():
        (generated / f"{name}.md").write_text(shown)

    stamp = BOOK / "_build" / "made_from"
    if stamp.exists() and stamp.read_text() == made_from():
        print(f"Nothing changed: the book is at {WHERE}")
        return
    # Else from nothing: a page that left the contents must leave the output, and a warning of an
    # earlier build must not be forgotten with it.
    shutil.rmtree(BOOK / "_build", ignore_errors=True)
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        str(BOOK),
        "--quiet",
        "-W",
        "-n",
    ]
    command += ["--keep-going", "--config", "_config.yml", "--toc", str(ROOT / "_toc.yml")]
    command += ["--path-output", str(BOOK)]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit("Jupyter Book found something to warn about: see above")
    stop_if(broken_links(HTML), "Internal links are broken")
    stamp.write_text(made_from())
    print(f"The book is at {WHERE}")


if __name__ == "__main__":
    main()
