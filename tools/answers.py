"""Writes docs/answers.md and docs/answers.zh.md: the texts of docs/answers/, the figures of docs/answers/figures.json.

    python tools/answers.py

In a text {{row.figure}} stands for a figure, so that both languages give the same ones. Draws docs/filters.png of them.
"""
import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_bytes, write_text
from tools.figures import OPT, SKY, panels, png

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/answers"
DOCUMENTS = {"en": ROOT / "docs/answers.md", "zh": ROOT / "docs/answers.zh.md"}
PLACE = re.compile(r"\{\{(\w+)\.(\w+)\}\}")


def fill(text, figures):
    """The text with its figures. figures: {row: {figure: text}}. InputError that names those that are not known."""
    unknown = {".".join(names) for names in PLACE.findall(text) if names[1] not in figures.get(names[0], {})}
    if unknown:
        raise InputError(f"figures.json has no {', '.join(sorted(unknown))}: add it, or mend the text")
    return PLACE.sub(lambda place: figures[place[1]][place[2]], text)


def read_figures():
    return json.loads((FOLDER / "figures.json").read_text())


def written(language):
    """The document in one language, `en` or `zh`."""
    return fill((FOLDER / f"{language}.md").read_text(), read_figures())


def draw_filters(top1):
    """A PNG: a bar for each filter that training saw, best first, and a line for training without. top1: {name: text}.
    """
    values = {name: float(text) for name, text in top1.items() if name != "none"}
    names = sorted(values, key=values.get)
    figure, (axis,) = panels(1, width=5, height=2.4)
    axis.barh(names, [values[name] for name in names], color=[SKY if name == "channel exchange" else OPT
                                                              for name in names])
    for row, name in enumerate(names):
        axis.text(values[name] - 0.5, row, top1[name], va="center", ha="right", color="white", fontsize=7)
    axis.axvline(float(top1["none"]), color="black", linestyle="--", linewidth=1)
    axis.text(float(top1["none"]) + 0.8, 0, f"no pseudo-\nmodal image:\n{top1['none']}", va="bottom", fontsize=7)
    axis.set(xlabel="top-1 (%)", xlim=(0, 60))
    return png(figure)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser.parse_args()


def main(args):
    for language, file in DOCUMENTS.items():
        write_text(file, written(language))
        print(file.relative_to(ROOT))
    write_bytes(ROOT / "docs/filters.png", draw_filters(read_figures()["filters"]))
    print("docs/filters.png")


if __name__ == "__main__":
    run_script(main, arguments)
