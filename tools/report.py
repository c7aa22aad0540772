"""One page to read a data set's results on: results/DATA/report.html, a single file that needs no network.

    python tools/report.py results/S1S2align200

Each table with intervals and paired tests, the author's figures where the data set is theirs, curves, what
tools/analyze.py and tools/compare_filters.py have left in the folder, and for each row a gallery of right and wrong
retrievals. Only finished runs that were evaluated on the test split count. --data_path: where the data set is now, if
it has moved.
"""
import argparse
import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
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
from tools.results import (AUTHOR, AUTHORS_DATA_SET, AUTHORS_NOTES, DEMO_NOTE, add_tables, has_own_columns,
                           own_cells, read_tables, recipes, tables_of, tabulate, tabulate_own, with_std)

TEMPLATE = Path(__file__).with_name("report_template.html")
NAMED = 5                                               # rows with a colour of their own in the curves
PICTURES = {"tsne": "t-SNE of test embeddings, optical and SAR, the two of a place joined",
            "matched": "Scores of matched and of non-matched pairs",
            "pseudo_modal": "Pseudo-modal images among the others",
            "training": "Training",
            "failures": "Rank of the truth against edge density, and by region"}
CURVES = ("CMC, mean of the seeds; the best rows in colour", "Top-1 over the epochs where it was evaluated, first seed",
          "Main loss term, first seed")


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


def analyses(runs):
    """What tools/analyze.py has left of each run: its title, figures and pictures.

    And the pictures that belong to no such run, (PNG, caption): the methods' own, and of several runs side by side.
    """
    analysed, others = [], []
    for name, row_runs in runs.items():
        for run, _ in row_runs:
            folder, title = run / "analysis", f"{name}, {run.name}"
            for file in sorted(run.glob("pictures/*.png")):
                others.append((file.read_bytes(), f"{title}: {file.stem.replace('_', ' ')}"))
            if not (folder / "figures.json").is_file():
                continue
            if (folder / "tsne_runs.png").is_file():
                others.append(((folder / "tsne_runs.png").read_bytes(), f"{PICTURES['tsne']}; several runs"))
            pictures = [((folder / f"{file}.png").read_bytes(), text) for file, text in PICTURES.items()]
            figures = json.loads((folder / "figures.json").read_text())
            analysed.append({"title": title, "figures": figures, "pictures": pictures})
    return analysed, others


def filters(folder):
    """What tools/compare_filters.py has left, or None."""
    if not (folder / "filters.csv").is_file():
        return None
    return {"rows": read_rows(folder / "filters.csv"), "strip": (folder / "filters.png").read_bytes(),
            "note": (folder / "filters.md").read_text().split("\n\n", 1)[1]}


# The figures -------------------------------------------------------------------------------------------------------

def mean_of_seeds(row_retrievals, feature, figure="top1"):
    """What a row reaches at each query: the mean of its seeds, (N)."""
    return np.mean([run[feature][figure] for run in row_retrievals], 0)


def lines_with_intervals(runs, retrievals, tiles):
    """The lines of tabulate(), each with the ends of the 95% intervals of top-1 and mAP: top1_ends, mAP_ends.

    And how many times as wide they are as with queries drawn one by one; None where tiles are not known.
    """
    lines = tabulate(runs)
    values = np.stack([mean_of_seeds(retrievals[line["row"]], line["feature"], figure)
                       for line in lines for figure in ("top1", "ap")], 1)
    ends = 100 * bootstrap_intervals(values, tiles)
    times_as_wide = None
    if tiles is not None:
        by_query = 100 * bootstrap_intervals(values)
        times_as_wide = np.ptp(ends, axis=0).sum() / max(np.ptp(by_query, axis=0).sum(), 1e-9)
    for line, (top1, average) in zip(lines, ends.T.reshape(len(lines), 2, 2)):
        line.update(top1_ends=top1, mAP_ends=average)
    return lines, times_as_wide


def main_lines(lines):
    """The line of each row's main feature, its first."""
    by_row = {}
    for line in lines:
        by_row.setdefault(line["row"], line)
    return list(by_row.values())


def best_line(lines):
    """The line of the best row; of each row its main feature counts."""
    return max(main_lines(lines), key=lambda line: line["top1"])


def shown_of_table(name, runs, retrievals, pairs, region_of, authors):
    """What the page shows of a table. authors: row -> the author's figures as text."""
    tiles = tiles_of_queries(retrievals, pairs)
    lines, times_as_wide = lines_with_intervals(runs, retrievals, tiles)
    best = best_line(lines)
    top1 = [mean_of_seeds(retrievals[row], main_feature(runs, row)) for row in runs]
    difference, p = compare_rows(np.stack(top1, 1), tiles)
    _, metrics = next(iter(runs.values()))[0]
    return {"name": name, "rows": list(runs), "lines": lines, "best": best, "metrics": metrics,
            "tiles": len(set(tiles)) if tiles else None, "times_as_wide": times_as_wide, "recipes": recipes(runs),
            "difference": 100 * difference, "p": p, "bars": bars(lines, authors), "curves": curves(runs, retrievals),
            "map": place_map(best, retrievals, pairs, region_of)}


# The pictures ------------------------------------------------------------------------------------------------------

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
    marks = [(authors.get(name, "").split(",")[0], i) for i, name in enumerate(names)]
    known = [(float(text), i) for text, i in marks if text.replace(".", "", 1).isdigit()]
    if known:
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
    share = mean_of_seeds(runs, best["feature"])
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


def curves(runs, retrievals):
    """[(PNG, caption)]: CMC of each row (mean of its seeds); top-1 and the main loss term of its first run over the
    epochs. The best rows are named, the others grey. A picture in which no row has two points is left out.
    """
    def top1_of(name):
        return mean_of_seeds(retrievals[name], main_feature(runs, name)).mean()

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
    pictures = []
    for figure, axis, text in zip(figures, (cmc, top1, loss), CURVES):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        has_curve = any(len(line.get_xdata()) > 1 for line in axis.lines)
        content = png(figure)
        if has_curve:
            pictures.append((content, text))
    return pictures


def data_url(content, kind="png"):
    """An image (bytes) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(image):
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "JPEG", quality=80)
    return data_url(content.getvalue(), "jpeg")


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


# The page ----------------------------------------------------------------------------------------------------------

def page(**shown):
    """The page's text. shown: what report_template.html names."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_url"] = data_url
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}             # the rows in the tables' order
    return environment.get_template(TEMPLATE.name).render(with_std=with_std, **shown)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    add_tables(parser)
    parser.add_argument("--data_path", help="the data set (default: where the runs read it)")
    parser.add_argument("--queries", type=int, default=200, help="how many queries the gallery of retrievals shows")
    return parser.parse_args()


def main(args):
    tables = read_tables(args.folder, tables_of(args))
    own = [(name, *own_cells(tabulate_own(runs))) for name, runs in tables.items() if has_own_columns(runs)]
    first_folder, _ = next(iter(next(iter(tables.values())).values()))[0]
    tables = {name: runs for name, runs in tables.items() if not has_own_columns(runs)}
    retrievals = {name: read_retrievals(runs) for name, runs in tables.items()}
    all_runs = {row: runs for table_runs in tables.values() for row, runs in table_runs.items()}
    all_retrievals = {row: found for table_found in retrievals.values() for row, found in table_found.items()}

    data_path = args.data_path or read_settings(first_folder)["data_path"]
    readers = readers_of_run(first_folder, is_own_data=args.data_path is None)
    pairs, = load_splits(data_path, ("test",), 96, workers=2, readers=readers)
    region_of = {name: row.get("region") or "" for name, row in read_pairs_csv(find_data(data_path), "test").items()}

    cards = gallery(all_runs, all_retrievals, pairs, args.queries)              # refuses another data set's images
    data_set = args.folder.resolve().name
    authors = AUTHOR if data_set == AUTHORS_DATA_SET else {}
    shown = [shown_of_table(name, runs, retrievals[name], pairs, region_of, authors) for name, runs in tables.items()]
    analysed, other_pictures = analyses(all_runs)
    # The row that the strip at the head of the page shows: the best of the first table.
    best = shown[0]["best"]["row"] if shown else None
    text = page(title=data_set, demo_note=DEMO_NOTE if data_set == "demo" else None, tables=shown, own=own,
                authors=authors, authors_notes=AUTHORS_NOTES.strip().split("\n") if authors else [],
                analysed=analysed, other_pictures=other_pictures, filters=filters(args.folder / "filters"),
                gallery={"best": best, **cards})
    write_text(args.folder / "report.html", text)
    print(args.folder / "report.html")


if __name__ == "__main__":
    run_script(main, arguments)
