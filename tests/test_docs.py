"""The documents: links lead somewhere, lines fit, and both languages give the same figures."""
import re

import pytest

from conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*/README.md")])
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def anchors(document):
    """The names by which GitHub links to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_lines(document):
    for target in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{target}: there is no such heading"
    lines = document.read_text().splitlines()
    assert [f"{i}: {line}" for i, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")] == []


def figures(document):
    """The cells of the tables of a document that hold a figure, without their words."""
    rows = [line for line in document.read_text().splitlines() if line.startswith("|")]
    return [re.findall(r"\d+\.\d+", row) for row in rows if re.search(r"\d+\.\d", row)]


@pytest.mark.parametrize("name", ["README", "docs/answers"])
def test_both_languages_have_the_same_figures(name):
    english, chinese = figures(ROOT / f"{name}.md"), figures(ROOT / f"{name}.zh.md")
    assert len(english) >= 5 and english == chinese


def test_the_readme_fits_its_first_hour():
    for name in ("README.md", "README.zh.md"):
        assert len((ROOT / name).read_text().splitlines()) <= 110


def test_commands_of_the_readme_exist():
    text = "".join(file.read_text() for file in DOCUMENTS)
    scripts = set(re.findall(r"python ((?:code\w*|tools|data)/[\w/]+\.py)", text))
    assert len(scripts) >= 8 and all((ROOT / script).is_file() for script in scripts)
