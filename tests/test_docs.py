"""The documents: links lead somewhere, lines fit, and both languages give the same figures."""
import re

import pytest

from conftest import ROOT
from shared.plumbing.errors import InputError
from tools.answers import DOCUMENTS as DOCUMENTS_OF_ANSWERS, FOLDER, PLACE, fill, read_figures, written

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("data/*/README.md"),
                    *ROOT.glob("models/README.md")])
pytestmark = pytest.mark.checkout

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


def test_the_pages_fit_an_afternoon():
    """What is only looked up stands in a CSV beside its page, which has no bound."""
    assert sum(len(page.read_text().splitlines()) for page in ROOT.glob("docs/*.md")) <= 1300


def test_the_readme_fits_its_first_hour():
    for name in ("README.md", "README.zh.md"):
        assert len((ROOT / name).read_text().splitlines()) <= 110


# The answers -------------------------------------------------------------------------------------------------------

def test_the_answers_are_written_from_one_file_of_figures():
    places = {}
    for language, file in DOCUMENTS_OF_ANSWERS.items():
        assert file.read_text() == written(language), "python tools/answers.py writes it anew"
        places[language] = sorted(PLACE.findall((FOLDER / f"{language}.md").read_text()))
    assert places["en"] == places["zh"] and len(places["en"]) > 80
    known = {(row, figure) for row, values in read_figures().items() for figure in values if row != "filters"}
    assert known == set(places["en"]), "no figure that no answer gives"


def test_an_answer_without_its_figure_is_refused():
    assert fill("top-1 {{a.b}} ± {{a.c}}", {"a": {"b": "46.7", "c": "2.1"}}) == "top-1 46.7 ± 2.1"
    with pytest.raises(InputError, match="has no a.d, e.b: add it"):
        fill("{{e.b}} {{a.d}} {{a.b}}", {"a": {"b": "46.7"}})


def test_both_languages_ask_the_same_in_the_same_shape():
    english, chinese = (file.read_text() for file in DOCUMENTS_OF_ANSWERS.values())
    for mark in ("\n## ", "\n**", "<details>", "\n| ", "![", "\n```"):
        assert english.count(mark) == chinese.count(mark), mark
    sections = english.split("\n## ")[2:]
    assert len(sections) == 12
    for section in sections:
        assert section.split("\n\n")[1].startswith("**"), "each answer begins with one sentence in bold"
