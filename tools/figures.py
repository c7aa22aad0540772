"""How the pictures of tools/ look: a paper's column, colours that the colour-blind tell apart, PNG and PDF."""
import io

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from shared.plumbing.files import write_bytes

COLUMN = 3.5                                            # inches, the width of a paper's column
# Okabe and Ito, "Color Universal Design", 2008.
OPT, SAR, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY = "#888888"
CYCLE = (OPT, SAR, GREEN, ORANGE, PURPLE, SKY, "black")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "legend.frameon": False,
                     "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2,
                     "pdf.fonttype": 42, "axes.prop_cycle": plt.cycler(color=CYCLE), "figure.dpi": 200})


def panels(columns=1, rows=1, width=COLUMN, height=2.4):
    """A figure and its axes, a column wide for each panel, as a flat list."""
    size = width * columns, height * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(axes.flat)


def known_values(epochs, name):
    """(epochs, values) of a column of epochs.csv, where it has a value: some are asked for every few epochs."""
    rows = [row for row in epochs if row.get(name)]
    return [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows]


def save(figure, file):
    """Write FILE.png and FILE.pdf, and close the figure."""
    _lay_out(figure)
    write_bytes(file.with_suffix(".pdf"), _content(figure, "pdf", metadata={"CreationDate": None}))
    write_bytes(file.with_suffix(".png"), png(figure))


def png(figure):
    """The figure as a PNG (bytes); closes it."""
    _lay_out(figure)
    content = _content(figure, "png")
    plt.close(figure)
    return content


def _lay_out(figure):
    """Give all its place, once: left to savefig, it is found for each file, and all is drawn once more for it."""
    if figure.get_layout_engine():
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine(None)


def _content(figure, suffix, **settings):
    content = io.BytesIO()
    figure.savefig(content, format=suffix, **settings)
    return content.getvalue()
