"""Every error that the package raises is found in the book's page on what to do."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "troubleshooting.md").read_text()
TERMS = [
    term for row in re.findall(r"^\| (`.+?) \|", PAGE, re.M) for term in re.findall("`(.+?)`", row)
]


def words(node):
    """Give a message as it is written, an ellipsis for what it fills in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def messages():
    for file in sorted((ROOT / "scmoe").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            raised = name.endswith(("Error", "Claim", "Interrupt")) and node.args
            if raised and words(node.args[0]).strip("…: "):
                yield f"{file.name}: {words(node.args[0])}"


def matches(term, message):
    return re.search(".*".join(map(re.escape, term.split("…"))), message.partition(": ")[2], re.S)


def test_every_message_is_found_on_the_page():
    found = set(messages())
    assert len(found) > 100
    assert [text for text in found if not any(matches(term, text) for term in TERMS)] == []


def test_what_the_page_lists_is_raised_somewhere():
    found = set(messages())
    assert [term for term in TERMS if not any(matches(term, text) for text in found)] == []
