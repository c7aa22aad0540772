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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ and tools/ are

from shared.dataset import load_splits
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import read_rows, write_text
from shared.plumbing.run_files import features_of, read_settings
from shared.reading.layouts import find_data, read_pairs_csv
from shared.reading.readers import readers_of_run
from tools.figures import CYCLE, GREEN, MARKERS, SAR, SKY, known_values, panels, png
from tools.intervals import bootstrap_intervals, compare_rows
from tools.results import (AUTHOR, AUTHORS_DATA_SET, AUTHORS_NOTES, DEMO_NOTE, FIGURES, add_tables, has_own_columns,
                           own_cells, read_tables, recipes, tables_of, tabulate, tabulate_own, with_std)

TEMPLATE = Path(__file__).with_name("report_template.html")
LEVEL = 0.05
NAMED = 5                                               # rows with a colour of their own in the curves
PICTURES = {"tsne": "t-SNE of test embeddings, optical and SAR, the two of a place joined",
            "matched": "Scores of matched and of non-matched pairs",
            "pseudo_modal": "Pseudo-modal images among the others",
            "training": "Training",
            "failures": "Rank of the truth against edge density, and by region"}
CURVES = ("CMC, mean of the seeds; the best rows in colour", "Top-1 over the epochs where it was evaluated, first seed",
          "Main loss term, first seed")
FILTERS_COMMAND = "python tools/compare_filters.py --data_path DATA --run results/DATA/ROW/seed0"
ANALYSES_COMMAND = "python tools/analyze.py --run results/DATA/ROW/seed0 --run …"


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


def tiles_of_queries(retrievals, pairs):
    """The tile of each query's place, N names; None where the data set does not tell tiles apart from places."""
    if pairs.tiles == pairs.names:
        return None
    tile_of = dict(zip(pairs.names, pairs.tiles))
    return [tile_of.get(truth, truth) for truth in next(iter(retrievals.values()))[0]["truth"]]


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


def lines_with_intervals(runs, retrievals, tiles):
    """The lines of tabulate(), each with the ends of the 95% intervals of top-1 and mAP: top1_ends, mAP_ends.

    And the values whose means these are, (N, 2 x lines): of each line top-1 and average precision at every query.
    """
    lines = tabulate(runs)
    values = []
    for line in lines:
        for figure in ("top1", "ap"):
            values.append(np.mean([run[line["feature"]][figure] for run in retrievals[line["row"]]], 0))
    values = np.stack(values, 1)
    ends = 100 * bootstrap_intervals(values, tiles).T.reshape(len(lines), 2, 2)
    return [{**line, "top1_ends": top1, "mAP_ends": average} for line, (top1, average) in zip(lines, ends)], values


def results_table(lines, values, tiles, authors):
    """Means and standard deviations over the seeds, as in table.md, with the intervals of top-1 and mAP."""
    cells = []
    for line in lines:
        figures = [with_std(line, name) for name in FIGURES]
        figures.insert(1, "{:.1f} to {:.1f}".format(*line["top1_ends"]))
        figures += ["{:.1f} to {:.1f}".format(*line["mAP_ends"]), f"{line['seconds']:.0f}"]
        if authors:
            figures.append(AUTHOR.get(line["row"], "") if line["feature"] == "FC" else "")
        cells.append([line["row"], line["feature"], line["seeds"], *figures])
    header = ["row", "feature", "seeds", "top-1 (%)", "95% interval", "top-5", "top-10", "top-20", "mAP (%)",
              "95% interval", "training (s)"]
    html_table = table(header + (["the author: top-1, 5, 10, 20, mAP"] if authors else []), cells)
    return html_table + f"<p>{interval_note(lines, values, tiles)}</p>"


def own_table(name, runs):
    """A table whose rows bring their own columns, under its name."""
    return f"<h3>{escape(name)}</h3>" + table(*own_cells(tabulate_own(runs)))


def best_line(lines):
    """The line of the best row; of each row its first feature counts."""
    return max(main_lines(lines), key=lambda line: line["top1"])


def answer(best):
    """The page's first sentence: the best row, a line, and how sure that is."""
    lower, upper = best["top1_ends"]
    text = (f"<strong>{escape(best['row'])}</strong> finds {best['top1']:.1f}% of the places first "
            f"(95% interval {lower:.1f} to {upper:.1f}; {escape(best['feature'])}, ")
    return f'<p class="answer">{text}{best["seeds"]} seed{"s" if best["seeds"] > 1 else ""}).</p>'


def main_lines(lines):
    """The line of each row's main feature."""
    by_row = {}
    for line in lines:
        by_row.setdefault(line["row"], line)
    return list(by_row.values())


def bars(lines, authors):
    """PNG: top-1 of every row with its interval; further features as hollow marks, the author's as crosses."""
    rows = main_lines(lines)
    figure, (axis,) = panels(width=6.5, height=1.2 + 0.22 * len(rows))
    names = [line["row"] for line in rows]
    top1 = np.array([line["top1"] for line in rows])
    ends = np.array([line["top1_ends"] for line in rows])
    at = np.arange(len(rows))
    errors = np.abs(ends - top1[:, None]).T
    axis.barh(at, top1, color=SKY, xerr=errors, error_kw={"linewidth": 0.8, "capsize": 2}, label=rows[0]["feature"])
    others = [line for line in lines if not any(line is row for row in rows)]
    if others:
        axis.plot([line["top1"] for line in others], [names.index(line["row"]) for line in others], "o", color=SAR,
                  markerfacecolor="none", markersize=4, label=others[0]["feature"])
    if authors:
        marks = [(AUTHOR.get(name, "").split(",")[0], i) for i, name in enumerate(names)]
        known = [(float(text), i) for text, i in marks if text.replace(".", "", 1).isdigit()]
        axis.plot(*zip(*known), "x", color="black", markersize=4, label="the author, FC")
    axis.set(yticks=at, yticklabels=names, xlabel="top-1 (%), 95% interval", xlim=(0, 100))
    axis.invert_yaxis()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return png(figure)


def place_map(best, retrievals, pairs, region_of):
    """PNG: where the places of the test split lie, green where the best row found them first, or None.

    best: a line of tabulate(). region_of: name of a place -> its region; each has a panel of its own.
    """
    if pairs.positions is None:
        return None
    runs = retrievals[best["row"]]
    share = np.mean([run[best["feature"]]["top1"] for run in runs], 0)
    position_of = dict(zip(pairs.names, pairs.positions.numpy()))
    truths = runs[0]["truth"]
    points = np.array([position_of[truth] for truth in truths]) / 1000
    regions = np.array([region_of.get(truth, "") for truth in truths])
    names = [name for name in np.unique(regions) if np.isfinite(points[regions == name]).all()]
    if not names:
        return None
    figure, axes = panels(len(names), width=2.8, height=3)
    for axis, name in zip(axes, names):
        for is_found, colour, label in ((True, GREEN, "found first"), (False, SAR, "not")):
            chosen = (regions == name) & ((share >= 0.5) == is_found)
            axis.scatter(*points[chosen].T, s=5, color=colour, marker="s", linewidths=0, label=label)
        axis.set(title=name, xlabel="east (km)", ylabel="north (km)", aspect="equal")
        axis.ticklabel_format(useOffset=False)
        axis.locator_params(nbins=4)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return png(figure)


def interval_note(lines, values, tiles):
    """What the intervals know; where that is tiles, how much wider they are than with queries one by one."""
    if tiles is None:
        return "Intervals and tests take each query by itself: the data set does not tell tiles apart from places."
    by_tile = sum(np.ptp(line[ends]) for line in lines for ends in ("top1_ends", "mAP_ends"))
    by_query = 100 * np.ptp(bootstrap_intervals(values), axis=0).sum()
    ratio = by_tile / max(by_query, 1e-9)
    return (f"Intervals and tests draw the {len(set(tiles))} tiles, not the {len(tiles)} queries, since neighbouring "
            f"places are right or wrong together: the intervals are {ratio:.1f} times as wide as by query.")


def differences_table(runs, retrievals, tiles):
    """Of each row's main feature, against every other row; the columns are numbered, so that they fit a screen."""
    names = list(runs)
    values = [np.mean([run[main_feature(runs, name)]["top1"] for run in retrievals[name]], 0) for name in names]
    difference, p = compare_rows(np.stack(values, 1), tiles)
    lines = []
    for i, name in enumerate(names):
        cells = [f"{i + 1} {name}"]
        for j in range(len(names)):
            is_significant = p[i, j] < LEVEL
            mark, star = ("strong", "*") if is_significant else ("span", "")
            title = f"{escape(name)} less {escape(names[j])}: p = {p[i, j]:.4f}"
            text = f'<{mark} title="{title}">{100 * difference[i, j]:+.1f}{star}</{mark}>'
            cells.append(Html("" if i == j else text))
        lines.append(cells)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    return f'<div class="dense">{table(["row less column", *numbers], lines)}</div>'


def curves(runs, retrievals):
    """HTML: CMC of each row (mean of its seeds); top-1 and the main loss term of its first run over the epochs.

    The best rows are named, the others grey. A picture in which no row has two points is left out.
    """
    def top1_of(name):
        return np.mean([run[main_feature(runs, name)]["top1"] for run in retrievals[name]])

    best = sorted(runs, key=top1_of, reverse=True)[:NAMED]
    figures, ((cmc,), (top1,), (loss,)) = zip(*(panels(width=4, height=4) for _ in CURVES))
    ks = np.arange(1, 21)
    for name in sorted(runs, key=lambda name: name in best):                     # the named ones over the grey ones
        style = dict(color="0.75", linewidth=0.7, markersize=2)
        if name in best:
            number = best.index(name)
            style = dict(color=CYCLE[number], marker=MARKERS[number], markersize=2.5, label=name)
        feature = main_feature(runs, name)
        ranks = np.array([run[feature]["rank"] for run in retrievals[name]])      # seeds x queries
        cmc.plot(ks, 100 * (ranks[..., None] <= ks).mean((0, 1)), **style)
        folder = runs[name][0][0]
        if not (folder / "epochs.csv").is_file():                                # a row of test.py trains nothing
            continue
        epochs = read_rows(folder / "epochs.csv")
        evaluated, shares = known_values(epochs, f"{feature}_top1")
        if evaluated:
            top1.plot(evaluated, shares, **{"marker": ".", **style})
        term = next(column for column in epochs[0] if column not in ("epoch", "lr"))
        numbers, values = known_values(epochs, term)
        loss.plot(numbers, np.array(values) / values[0], **style)
    cmc.set(xlabel="rank k", ylabel="queries with the truth in the first k (%)")
    top1.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    loss.set(xlabel="epoch", ylabel="main loss / its value in epoch 1", ylim=(0, None))
    images = []
    for figure, axis, text in zip(figures, (cmc, top1, loss), CURVES):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        has_curve = any(len(line.get_xdata()) > 1 for line in axis.lines)
        content = png(figure)
        if has_curve:
            images.append(picture(content, text))
    return f'<div class="row">{"".join(images)}</div>'


def analyses(runs):
    """What tools/analyze.py has left: its figures as one table, the pictures of several runs, then of each run."""
    lines, several, single = [], [], []
    for name, row_runs in runs.items():
        for run, _ in row_runs:
            folder, title = run / "analysis", f"{name}, {run.name}"
            for file in sorted(run.glob("pictures/*.png")):                       # of the method's own
                several.append(picture(file.read_bytes(), f"{title}: {file.stem.replace('_', ' ')}"))
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
        return f"<p>None yet: <code>{ANALYSES_COMMAND}</code> makes them.</p>" + "".join(several)
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
    """What was evaluated, and how the runs were trained: the paragraphs below the tables."""
    lines = []
    for name, runs in tables.items():
        _, metrics = next(iter(runs.values()))[0]
        of_table = f"{name}: " if len(tables) > 1 else ""
        lines.append(f"{of_table}{metrics['queries']} queries, {metrics['gallery']} places in the gallery, "
                     f"{metrics['distractors']} of them distractors. Last epoch of each run.")
        lines += [of_table + recipe for recipe in recipes(runs)]
    if data_set == AUTHORS_DATA_SET:
        lines += AUTHORS_NOTES.strip().split("\n")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    add_tables(parser)
    parser.add_argument("--data_path", help="the data set (default: where the runs read it)")
    parser.add_argument("--queries", type=int, default=200, help="how many queries the gallery of retrievals shows")
    return parser.parse_args()


def main(args):
    all_tables = read_tables(args.folder, tables_of(args))
    own = {name: runs for name, runs in all_tables.items() if has_own_columns(runs)}
    tables = {name: runs for name, runs in all_tables.items() if name not in own}
    retrievals = {name: read_retrievals(runs) for name, runs in tables.items()}
    all_runs = {row: runs for table_runs in tables.values() for row, runs in table_runs.items()}
    all_retrievals = {row: found for table_found in retrievals.values() for row, found in table_found.items()}
    first_folder, _ = next(iter(next(iter(all_tables.values())).values()))[0]
    data_path = args.data_path or read_settings(first_folder)["data_path"]
    readers = readers_of_run(first_folder, is_own_data=args.data_path is None)
    pairs, = load_splits(data_path, ("test",), 96, workers=2, readers=readers)

    tiles = {name: tiles_of_queries(found, pairs) for name, found in retrievals.items()}
    data_set = args.folder.resolve().name
    authors = data_set == AUTHORS_DATA_SET

    lines = {name: lines_with_intervals(tables[name], retrievals[name], tiles[name]) for name in tables}
    region_of = {name: row.get("region") or "" for name, row in read_pairs_csv(find_data(data_path), "test").items()}

    def opening_of(name):
        table_lines, _ = lines[name]
        best = best_line(table_lines)
        content = place_map(best, retrievals[name], pairs, region_of)
        html_map = picture(content, f"Where {best['row']} finds the test places") if content else ""
        chart = picture(bars(table_lines, authors), "All rows")
        return f'{answer(best)}<div class="row opening">{chart}{html_map}</div>'

    def results_of(name):
        return results_table(*lines[name], tiles[name], authors)

    def differences_of(name):
        return differences_table(tables[name], retrievals[name], tiles[name])

    # The row that the strip at the head of the page shows: the best of the first table.
    best = best_line(next(iter(lines.values()))[0])["row"] if lines else None
    data = json.dumps({"best": best, **gallery(all_runs, all_retrievals, pairs, args.queries)})
    page = fill(TEMPLATE.read_text(), {
        "title": escape(data_set),
        "notes": notes(tables, data_set),
        "opening": (f"<p>{DEMO_NOTE}</p>" if data_set == "demo" else "") + for_each_table(tables, opening_of),
        "results": for_each_table(tables, results_of) + "".join(own_table(name, runs) for name, runs in own.items()),
        "differences": for_each_table(tables, differences_of),
        "curves": for_each_table(tables, lambda name: curves(tables[name], retrievals[name])),
        "analyses": analyses(all_runs),
        "filters": filters(args.folder / "filters"),
        "gallery": data.replace("<", "\\u003c"),      # no name can close the script element
    })
    write_text(args.folder / "report.html", page)
    print(args.folder / "report.html")


if __name__ == "__main__":
    run_script(main, arguments)
