"""One page to read a data set's results on: results/DATA/report.html, a single file that needs no network.

    python tools/report.py results/S1S2align200

Each table with intervals and paired tests, the author's figures where the data set is theirs, curves, what
tools/analyze.py and tools/compare_filters.py have left in the folder, and for each row a gallery of right and wrong
retrievals. Only finished runs that were evaluated on the test split count. --data_path: where the data set is now, if
it has moved.
"""
import argparse
import base64
import html
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.stats import false_discovery_control

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ and tools/ are

from shared.dataset import load_splits
from shared.evaluate import features_of
from shared.finished_run import read_settings
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import read_rows, write_text
from tools.figures import CYCLE, MARKERS, panels, png
from tools.results import (AUTHOR, AUTHORS_DATA_SET, AUTHORS_NOTES, DEMO_NOTE, FIGURES, add_tables, read_tables,
                           recipes, tables_of, tabulate, with_std)

TEMPLATE = Path(__file__).with_name("report_template.html")
RESAMPLES, AT_ONCE = 10_000, 500
LEVEL = 0.05
PICTURES = {"tsne": "t-SNE of test embeddings, optical and SAR, the two of a place joined",
            "matched": "Scores of matched and of non-matched pairs",
            "pseudo_modal": "Pseudo-modal images among the others",
            "training": "Training",
            "failures": "Rank of the truth against edge density, and by region"}
CURVES = ("CMC, mean of the seeds", "Top-1 over the epochs where it was evaluated, first seed",
          "Main loss term, first seed")
FILTERS_COMMAND = "python tools/compare_filters.py --data_path DATA --run results/DATA/ROW/seed0"
ANALYSES_COMMAND = "python tools/analyze.py --run results/DATA/ROW/seed0 --run …"


# The statistics --------------------------------------------------------------------------------------------------

def bootstrap_intervals(values, level=0.95, seed=0):
    """Percentile intervals of means over queries.

    values: (N, K), one column for each mean; all columns are resampled alike. Returns (2, K): lower and upper ends.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    means = []
    for _ in range(RESAMPLES // AT_ONCE):
        times_drawn = generator.multinomial(count, np.full(count, 1 / count), AT_ONCE)
        means.append(times_drawn @ values / count)
    return np.percentile(np.concatenate(means), [50 * (1 - level), 50 * (1 + level)], axis=0)


def sign_flip_p(differences, seed=0):
    """Two-sided p values of paired differences, by a randomisation test.

    differences: (N, K), one column for each comparison. Returns (K).
    Where two rows are alike, the sign of each query's difference is a coin's: p is the share of random signs whose sum
    is as far from 0, the one observed counted among them.
    Source: Smucker et al., "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation", CIKM
    2007, section 3.
    """
    generator = np.random.default_rng(seed)
    observed = np.abs(differences.sum(0))
    as_far = np.ones(differences.shape[1])
    for _ in range(RESAMPLES // AT_ONCE):
        signs = generator.choice([-1.0, 1.0], (AT_ONCE, len(differences)))
        as_far += (np.abs(signs @ differences) >= observed - 1e-9).sum(0)
    return as_far / (RESAMPLES + 1)


def compare_rows(values):
    """Every pair of rows over the same queries.

    values: (N, R), a row's top-1 (0 to 1, mean of its seeds) at each query.
    Returns difference (R, R), row less column, and adjusted p (R, R), NaN on the diagonal, by Benjamini and Hochberg's
    procedure over all pairs.
    """
    rows = values.shape[1]
    first, second = np.triu_indices(rows, 1)
    p = np.full((rows, rows), np.nan)
    if rows > 1:
        p[first, second] = false_discovery_control(sign_flip_p(values[:, first] - values[:, second]))
        p[second, first] = p[first, second]
    mean = values.mean(0)
    return mean[:, None] - mean[None], p


# What is read ------------------------------------------------------------------------------------------------------

def read_retrievals(runs):
    """{row: what each of its runs found}. runs: {row: [(folder, metrics)]}.

    Raises InputError where a run keeps nothing, or the runs do not share their queries.
    """
    retrievals, first = {}, None
    for name, row_runs in runs.items():
        for folder, _ in row_runs:
            file = folder / "retrieval.json"
            if not file.is_file():
                raise InputError(f"{folder} has no retrieval.json: its row must be trained again (--fresh), or tested "
                                 "again where it is a row of test.py")
            content = json.loads(file.read_text())
            queries = content["query"], content["truth"]
            first = first or (folder, queries)
            if queries != first[1]:
                raise InputError(f"{folder} and {first[0]} were evaluated on other queries: "
                                 "move one of them out of the folder, or give it a table of its own")
            retrievals.setdefault(name, []).append(content)
    return retrievals


def main_feature(runs, name):
    """FC, or the first of what a row's own search reports."""
    return features_of(runs[name][0][1])[0]


# The parts of the page ------------------------------------------------------------------------------------------------

class Html(str):
    """Text that is HTML already."""


def escape(value):
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def table(header, rows):
    """HTML of a table. Cells are text, or Html."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def picture(content, text):
    """HTML of a PNG (bytes) with its caption."""
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    return f'<figure><img src="{source}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'


def results_table(runs, retrievals, authors):
    """Means and standard deviations over the seeds, as in table.md, with the intervals of top-1 and mAP."""
    lines = tabulate(runs)
    values = []
    for line in lines:
        for figure in ("top1", "ap"):
            values.append(np.mean([run[line["feature"]][figure] for run in retrievals[line["row"]]], 0))
    intervals = 100 * bootstrap_intervals(np.stack(values, 1)).T.reshape(len(lines), 2, 2)
    cells = []
    for line, (top1, average) in zip(lines, intervals):                # of each the lower and the upper end
        figures = [with_std(line, name) for name in FIGURES]
        figures.insert(1, "{:.1f} to {:.1f}".format(*top1))
        figures += ["{:.1f} to {:.1f}".format(*average), f"{line['seconds']:.0f}"]
        if authors:
            figures.append(AUTHOR.get(line["row"], "") if line["feature"] == "FC" else "")
        cells.append([line["row"], line["feature"], line["seeds"], *figures])
    header = ["row", "feature", "seeds", "top-1 (%)", "95% interval", "top-5", "top-10", "top-20", "mAP (%)",
              "95% interval", "training (s)"]
    return table(header + (["the author: top-1, 5, 10, 20, mAP"] if authors else []), cells)


def differences_table(runs, retrievals):
    """Of each row's main feature, against every other row."""
    names = list(runs)
    values = [np.mean([run[main_feature(runs, name)]["top1"] for run in retrievals[name]], 0) for name in names]
    difference, p = compare_rows(np.stack(values, 1))
    lines = []
    for i, name in enumerate(names):
        cells = [name]
        for j in range(len(names)):
            is_significant = p[i, j] < LEVEL
            mark, star = ("strong", "*") if is_significant else ("span", "")
            text = f'<{mark} title="p = {p[i, j]:.4f}">{100 * difference[i, j]:+.1f}{star}</{mark}>'
            cells.append(Html("" if i == j else text))
        lines.append(cells)
    return table(["row less column", *names], lines)


def curves(runs, retrievals):
    """HTML: CMC of each row (mean of its seeds); top-1 and the main loss term of its first run over the epochs."""
    figures, ((cmc,), (top1,), (loss,)) = zip(*(panels(width=4, height=4) for _ in range(3)))
    ks = np.arange(1, 21)
    for i, name in enumerate(runs):
        style = dict(color=CYCLE[i % len(CYCLE)], marker=MARKERS[i % len(MARKERS)], markersize=2.5,
                     linestyle=("-", "--", ":")[i // len(CYCLE) % 3], label=name)
        feature = main_feature(runs, name)
        ranks = np.array([run[feature]["rank"] for run in retrievals[name]])      # seeds x queries
        cmc.plot(ks, 100 * (ranks[..., None] <= ks).mean((0, 1)), **style)
        folder = runs[name][0][0]
        if not (folder / "epochs.csv").is_file():                                # a row of test.py trains nothing
            continue
        epochs = read_rows(folder / "epochs.csv")
        numbers = [int(row["epoch"]) for row in epochs]
        known = [(number, float(row[f"{feature}_top1"])) for number, row in zip(numbers, epochs)
                 if row.get(f"{feature}_top1")]
        if known:
            top1.plot(*zip(*known), **style)
        term = next(column for column in epochs[0] if column not in ("epoch", "lr"))
        values = np.array([float(row[term]) for row in epochs])
        loss.plot(numbers, values / values[0], **style)
    cmc.set(xlabel="rank k", ylabel="queries with the truth in the first k (%)")
    top1.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    loss.set(xlabel="epoch", ylabel="main loss / its value in epoch 1", ylim=(0, None))
    for figure, axis in zip(figures, (cmc, top1, loss)):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    images = "".join(picture(png(figure), text) for figure, text in zip(figures, CURVES))
    return f'<div class="row">{images}</div>'


def analyses(runs):
    """What tools/analyze.py has left: its figures as one table, the pictures of several runs, then of each run."""
    lines, several, single = [], [], []
    for name, row_runs in runs.items():
        for run, _ in row_runs:
            folder, title = run / "analysis", f"{name}, {run.name}"
            if not (folder / "figures.json").is_file():
                continue
            figures = json.loads((folder / "figures.json").read_text())
            gap, distance, between = figures["modality_gap"], figures["median_distance"], figures["between"]
            correlation = figures["rank_edge_density_correlation"]
            lines.append([title, f"{figures['roc_area']:.4f}", f"{distance['matched']:.3f}",
                          f"{distance['non-matched']:.3f}", f"{gap['mean_distance']:.3f}",
                          f"{100 * gap['accuracy']:.1f}", *(f"{100 * share:.1f}" for share in between.values()),
                          "–" if correlation is None else f"{correlation:.2f}"])
            header = ["run", "ROC area", "median squared distance, matched", "non-matched",
                      "distance of the modalities' means", "modality told apart (%)",
                      *(f"between: {kind} (%)" for kind in between), "rank ~ edge density"]
            if (folder / "tsne_runs.png").is_file():
                content = (folder / "tsne_runs.png").read_bytes()
                several.append(picture(content, f"{PICTURES['tsne']}; several runs"))
            pictures = [picture((folder / f"{file}.png").read_bytes(), text) for file, text in PICTURES.items()]
            single.append(f"<details><summary>{escape(title)}</summary>{''.join(pictures)}</details>")
    if not lines:
        return f"<p>None yet: <code>{ANALYSES_COMMAND}</code> makes them.</p>"
    return table(header, lines) + "".join(several + single)


def filters(folder):
    """What tools/compare_filters.py has left."""
    if not (folder / "filters.csv").is_file():
        return f"<p>None yet: <code>{FILTERS_COMMAND}</code> makes them.</p>"
    rows = read_rows(folder / "filters.csv")
    cells = []
    for row in rows:
        name = row.pop("filter")
        cells.append([name, *(f"{float(text):.4g}" if text else "–" for text in row.values())])
    note = (folder / "filters.md").read_text().split("\n\n", 1)[1]
    strip = picture((folder / "filters.png").read_bytes(), "One place under every filter")
    return table(["filter", *rows[0]], cells) + f"<p>{escape(note)}</p>" + strip


def thumbnail(image):
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def gallery(runs, retrievals, pairs, most, seed=0):
    """What the page's script reads: of each row's first run the queries shown, with answers, and the images once each.

    By the row's main feature. Raises InputError where the runs found images that the data set does not have.
    """
    rows, places, queries = {}, set(), set()
    for name, row_retrievals in retrievals.items():
        content = row_retrievals[0]
        found = content[main_feature(runs, name)]
        count = len(content["query"])
        shown = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].tolist())
        rows[name] = [{"query": content["query"][i], "truth": content["truth"][i], "rank": found["rank"][i],
                       "answers": found["answers"][i]} for i in shown]
        for card in rows[name]:
            queries.add(card["query"])
            places.add(card["truth"])
            places.update(answer for answer, _ in card["answers"])
    place_row = {name: i for i, name in enumerate(pairs.names)}
    query_row = {name: i for i, name in enumerate(pairs.sar_names)}
    lost = sorted((places - place_row.keys()) | (queries - query_row.keys()))
    if lost:
        raise InputError(f"the data set has no test image {lost[0]}, which the runs found: it is not the one they were "
                         "evaluated on; give its --data_path")
    return {"rows": rows,
            "opt": {name: thumbnail(pairs.opt[place_row[name]]) for name in sorted(places)},
            "sar": {name: thumbnail(pairs.sar[query_row[name]]) for name in sorted(queries)}}


def fill(template, parts):
    """The template with its {{slots}} filled; what the slots hold is not searched again."""
    pieces = template.split("{{")
    page = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        page += [parts[name], rest]
    return "".join(page)


def for_each_table(tables, part):
    """A part of the page for each table, under the table's name where there are several."""
    sections = []
    for name in tables:
        heading = f"<h3>{escape(name)}</h3>" if len(tables) > 1 else ""
        sections.append(heading + part(name))
    return "".join(sections)


def notes(tables, data_set):
    """The paragraphs above the tables."""
    lines = [DEMO_NOTE] if data_set == "demo" else []
    for name, runs in tables.items():
        _, metrics = next(iter(runs.values()))[0]
        of_table = f"{name}: " if len(tables) > 1 else ""
        lines.append(f"{of_table}{metrics['queries']} queries, {metrics['gallery']} places in the gallery, "
                     f"{metrics['distractors']} of them distractors. Last epoch of each run.")
        lines += [of_table + recipe for recipe in recipes(runs)]
    if data_set == AUTHORS_DATA_SET:
        lines += AUTHORS_NOTES.strip().split("\n")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    add_tables(parser)
    parser.add_argument("--data_path", help="the data set (default: where the runs read it)")
    parser.add_argument("--queries", type=int, default=200, help="how many queries the gallery of retrievals shows")
    args = parser.parse_args()
    tables = read_tables(args.folder, tables_of(args))
    retrievals = {name: read_retrievals(runs) for name, runs in tables.items()}
    all_runs = {row: runs for table_runs in tables.values() for row, runs in table_runs.items()}
    all_retrievals = {row: found for table_found in retrievals.values() for row, found in table_found.items()}
    first_folder, _ = next(iter(all_runs.values()))[0]
    data_path = args.data_path or read_settings(first_folder)["data_path"]
    pairs, = load_splits(data_path, ("test",), 96, workers=2)

    data_set = args.folder.resolve().name
    authors = data_set == AUTHORS_DATA_SET
    data = json.dumps(gallery(all_runs, all_retrievals, pairs, args.queries))
    page = fill(TEMPLATE.read_text(), {
        "title": escape(data_set),
        "notes": notes(tables, data_set),
        "results": for_each_table(tables, lambda name: results_table(tables[name], retrievals[name], authors)),
        "differences": for_each_table(tables, lambda name: differences_table(tables[name], retrievals[name])),
        "curves": for_each_table(tables, lambda name: curves(tables[name], retrievals[name])),
        "analyses": analyses(all_runs),
        "filters": filters(args.folder / "filters"),
        "gallery": data.replace("<", "\\u003c"),      # no name can close the script element
    })
    write_text(args.folder / "report.html", page)
    print(args.folder / "report.html")


if __name__ == "__main__":
    run_script(main)
