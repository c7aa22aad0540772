"""One page to read a data set's results on: results/DATA/report.html, a single file that needs no network.

    python tools/report.py results/S1S2align200

The table with intervals and paired tests, the author's figures where the data set is theirs, curves, what tools/analyze.py and
tools/compare_filters.py have left in the folder, and for each row a gallery of right and wrong retrievals. Only finished runs that were
evaluated on the test split count. --data_path: where the data set is now, if it has moved.
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
from shared.errors import InputError, run_script
from shared.files import read_rows, write_text
from shared.results import AUTHOR, AUTHORS_DATA_SET, AUTHORS_NOTES, DEMO_NOTE, FIGURES, collect, finished_runs, recipes, with_std
from tools.figures import CYCLE, MARKERS, panels, png

TEMPLATE = Path(__file__).with_name("report_template.html")
RESAMPLES, AT_ONCE = 10_000, 500
LEVEL = 0.05
PICTURES = {"tsne": "t-SNE of test embeddings, optical and SAR, the two of a place joined", "matched": "Scores of matched and of non-matched pairs",
            "pseudo_modal": "Pseudo-modal images among the others", "training": "Training", "failures": "Rank of the truth against edge density, and by region"}
CURVES = ("CMC, mean of the seeds", "Top-1 over the epochs where it was evaluated, first seed", "Main loss term, first seed")


# The statistics --------------------------------------------------------------------------------------------------

def bootstrap_intervals(values, level=0.95, seed=0):
    """Percentile intervals of means over queries. values: (N, K), one column for each mean. Returns (2, K): lower and upper ends.

    All columns are resampled alike. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    generator = np.random.default_rng(seed)
    count = len(values)
    means = [generator.multinomial(count, np.full(count, 1 / count), AT_ONCE) @ values / count for _ in range(RESAMPLES // AT_ONCE)]
    return np.percentile(np.concatenate(means), [50 * (1 - level), 50 * (1 + level)], axis=0)


def sign_flip_p(differences, seed=0):
    """Two-sided p values of paired differences, by a randomisation test. differences: (N, K), one column for each comparison. Returns (K).

    Where two rows are alike, the sign of each query's difference is a coin's: p is the share of random signs whose sum is as far from 0,
    the one observed counted among them. Source: Smucker et al., "A Comparison of Statistical Significance Tests for
    Information Retrieval Evaluation", CIKM 2007, section 3.
    """
    generator = np.random.default_rng(seed)
    observed = np.abs(differences.sum(0))
    as_far = np.ones(differences.shape[1])
    for _ in range(RESAMPLES // AT_ONCE):
        signs = generator.choice([-1.0, 1.0], (AT_ONCE, len(differences)))
        as_far += (np.abs(signs @ differences) >= observed - 1e-9).sum(0)
    return as_far / (RESAMPLES + 1)


def compare_rows(values):
    """Every pair of rows over the same queries. values: (N, R), a row's top-1 (0 to 1, mean of its seeds) at each query.

    Returns difference (R, R), row less column, and adjusted p (R, R), NaN on the diagonal, by Benjamini and Hochberg's procedure over all pairs.
    """
    rows = values.shape[1]
    first, second = np.triu_indices(rows, 1)
    p = np.full((rows, rows), np.nan)
    if rows > 1:
        p[first, second] = p[second, first] = false_discovery_control(sign_flip_p(values[:, first] - values[:, second]))
    mean = values.mean(0)
    return mean[:, None] - mean[None], p


# What is read ------------------------------------------------------------------------------------------------------

def read_retrievals(runs):
    """Row -> [what each of its runs found]. runs: as finished_runs gives them. Raises InputError where the runs do not share their queries."""
    found, shared = {}, None
    for name, folders in runs.items():
        for folder, _ in folders:
            file = folder / "retrieval.json"
            if not file.is_file():
                raise InputError(f"{folder} has no retrieval.json: its row must be trained again (--fresh), or tested again where it is a row of test.py")
            content = json.loads(file.read_text())
            queries = content["query"], content["truth"]
            shared = shared or (folder, queries)
            if queries != shared[1]:
                raise InputError(f"{folder} and {shared[0]} were evaluated on other queries: move one of them out of the folder")
            found.setdefault(name, []).append(content)
    return found


# The parts of the page ------------------------------------------------------------------------------------------------

def table(header, rows):
    """HTML. Cells are text, or ("left out of escaping",) for HTML."""
    cell = lambda value: value[0] if isinstance(value, tuple) else html.escape(str(value))
    lines = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in header) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell(value)}</td>" for value in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def picture(content, text):
    """HTML of a PNG (bytes) with its caption."""
    return (f'<figure><img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{html.escape(text)}">'
            f"<figcaption>{html.escape(text)}</figcaption></figure>")


def results_table(rows, found, authors):
    """Means and standard deviations over the seeds, as in table.md, with the intervals of top-1 and mAP."""
    values = np.stack([np.mean([run[row["feature"]][name] for run in found[row["row"]]], 0) for row in rows for name in ("top1", "ap")], 1)
    ends = 100 * bootstrap_intervals(values).T.reshape(len(rows), 2, 2)                          # rows x (top-1, mAP) x (lower, upper)
    lines = []
    for row, (top1, average) in zip(rows, ends):
        cells = [row["row"], row["feature"], row["seeds"]] + [with_std(row, name) for name in FIGURES]
        cells.insert(4, "{:.1f} to {:.1f}".format(*top1))
        cells += ["{:.1f} to {:.1f}".format(*average), f"{row['seconds']:.0f}"]
        lines.append(cells + ([AUTHOR.get(row["row"], "") if row["feature"] == "FC" else ""] if authors else []))
    header = ["row", "feature", "seeds", "top-1 (%)", "95% interval", "top-5", "top-10", "top-20", "mAP (%)", "95% interval", "training (s)"]
    return table(header + (["the author: top-1, 5, 10, 20, mAP"] if authors else []), lines)


def differences_table(names, values):
    difference, p = compare_rows(values)
    lines = []
    for i, name in enumerate(names):
        cells = [name]
        for j in range(len(names)):
            mark = "strong" if p[i, j] < LEVEL else "span"
            cells.append("" if i == j else (f'<{mark} title="p = {p[i, j]:.4f}">{100 * difference[i, j]:+.1f}{"*" if mark == "strong" else ""}</{mark}>',))
        lines.append(cells)
    return table(["row less column", *names], lines)


def curves(runs, found):
    """PNGs: CMC of each row (mean of its seeds); top-1 and the main loss term of its first run over the epochs."""
    figures, ((cmc,), (top1,), (loss,)) = zip(*(panels(width=4, height=4) for _ in range(3)))
    ks = np.arange(1, 21)
    for i, name in enumerate(found):
        style = dict(color=CYCLE[i % len(CYCLE)], marker=MARKERS[i % len(MARKERS)], markersize=2.5, linestyle=("-", "--", ":")[i // len(CYCLE) % 3], label=name)
        ranks = np.array([run["FC"]["rank"] for run in found[name]])                             # seeds x queries
        cmc.plot(ks, 100 * (ranks[..., None] <= ks).mean((0, 1)), **style)
        folder = runs[name][0][0]
        if (folder / "epochs.csv").is_file():                                                    # a row of test.py trains nothing
            epochs = read_rows(folder / "epochs.csv")
            known = [(int(row["epoch"]), float(row["FC_top1"])) for row in epochs if row.get("FC_top1")]
            top1.plot(*zip(*known), **style)
            term = next(column for column in epochs[0] if column not in ("epoch", "lr"))
            loss.plot([int(row["epoch"]) for row in epochs], [float(row[term]) / float(epochs[0][term]) for row in epochs], **style)
    cmc.set(xlabel="rank k", ylabel="queries with the truth in the first k (%)")
    top1.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    loss.set(xlabel="epoch", ylabel="main loss / its value in epoch 1", ylim=(0, None))
    for figure, axis in zip(figures, (cmc, top1, loss)):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return [png(figure) for figure in figures]


def analyses(runs):
    """What tools/analyze.py has left: its figures as one table, the pictures of several runs, then those of each run."""
    lines, several, single = [], [], []
    for name, folders in runs.items():
        for run, _ in folders:
            folder = run / "analysis"
            if not (folder / "figures.json").is_file():
                continue
            figures = json.loads((folder / "figures.json").read_text())
            gap, distance = figures["modality_gap"], figures["median_distance"]
            lines.append([f"{name}, {run.name}", f"{figures['roc_area']:.4f}", f"{distance['matched']:.3f}", f"{distance['non-matched']:.3f}", f"{gap['mean_distance']:.3f}",
                          f"{100 * gap['accuracy']:.1f}", *(f"{100 * share:.1f}" for share in figures["between"].values()), f"{figures['rank_edge_density_correlation']:.2f}"])
            header = ["run", "ROC area", "median squared distance, matched", "non-matched", "distance of the modalities' means", "modality told apart (%)",
                      *(f"between: {kind} (%)" for kind in figures["between"]), "rank ~ edge density"]
            if (folder / "tsne_runs.png").is_file():
                several.append(picture((folder / "tsne_runs.png").read_bytes(), f"{PICTURES['tsne']}; several runs"))
            inside = "".join(picture((folder / f"{file}.png").read_bytes(), text) for file, text in PICTURES.items())
            single.append(f"<details><summary>{html.escape(f'{name}, {run.name}')}</summary>{inside}</details>")
    if not lines:
        return "<p>None yet: <code>python tools/analyze.py --run results/DATA/ROW/seed0 --run …</code> makes them.</p>"
    return table(header, lines) + "".join(several + single)


def filters(folder):
    """What tools/compare_filters.py has left."""
    if not (folder / "filters.csv").is_file():
        return "<p>None yet: <code>python tools/compare_filters.py --data_path DATA --run results/DATA/ROW/seed0</code> makes them.</p>"
    rows = read_rows(folder / "filters.csv")
    number = lambda text: f"{float(text):.4g}" if text else "–"
    note = (folder / "filters.md").read_text().split("\n\n", 1)[1]
    return (table(list(rows[0]), [[row["filter"], *(number(text) for name, text in row.items() if name != "filter")] for row in rows])
            + f"<p>{html.escape(note)}</p>" + picture((folder / "filters.png").read_bytes(), "One place under every filter"))


def thumbnail(image):
    content = io.BytesIO()
    Image.fromarray(image.numpy()).save(content, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def gallery(found, pairs, most, seed=0):
    """What the page's script reads: the images once each, and of each row's first run the queries shown, with answers. FC."""
    first = {name: runs[0] for name, runs in found.items()}
    queries = next(iter(first.values()))["query"]
    shown = sorted(torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:most].tolist())
    truths = next(iter(first.values()))["truth"]
    needed = {truths[i] for i in shown} | {name for run in first.values() for i in shown for name, _ in run["FC"]["answers"][i]}
    place, strip = ({name: i for i, name in enumerate(names)} for names in (pairs.names, pairs.sar_names))
    lost = sorted((needed - place.keys()) | ({queries[i] for i in shown} - strip.keys()))
    if lost:
        raise InputError(f"the data set has no test image {lost[0]}, which the runs found: it is not the one they were evaluated on; give its --data_path")
    return {"rows": {name: [{"query": queries[i], "truth": truths[i], "rank": run["FC"]["rank"][i], "answers": run["FC"]["answers"][i]} for i in shown]
                     for name, run in first.items()},
            "opt": {name: thumbnail(pairs.opt[place[name]]) for name in sorted(needed)},
            "sar": {queries[i]: thumbnail(pairs.sar[strip[queries[i]]]) for i in shown}}


def fill(template, parts):
    """The template with its {{slots}} filled; what the slots hold is not searched again."""
    pieces = template.split("{{")
    page = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        page += [parts[name], rest]
    return "".join(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    parser.add_argument("--rows", nargs="*", default=[], help="the order of the rows")
    parser.add_argument("--data_path", help="the data set (default: where the runs read it)")
    parser.add_argument("--queries", type=int, default=200, help="how many queries the gallery of retrievals shows")
    args = parser.parse_args()
    rows = collect(args.folder, args.rows)
    finished = finished_runs(args.folder, "test")
    runs = {row["row"]: finished[row["row"]] for row in rows}                                    # in the table's order
    found = read_retrievals(runs)
    folder, metrics = next(iter(runs.values()))[0]
    data_path = args.data_path or json.loads((folder / "args.json").read_text())["data_path"]
    pairs, = load_splits(data_path, ("test",), 96, workers=2)

    name = args.folder.resolve().name
    values = np.stack([np.mean([run["FC"]["top1"] for run in found[row]], 0) for row in runs], 1)
    notes = [DEMO_NOTE] if name == "demo" else []
    notes += [f"{metrics['queries']} queries, {metrics['gallery']} places in the gallery, {metrics['distractors']} of them distractors. Last epoch of each run."]
    notes += recipes(args.folder) + (AUTHORS_NOTES.strip().split("\n") if name == AUTHORS_DATA_SET else [])
    page = fill(TEMPLATE.read_text(), {
        "title": html.escape(name),
        "notes": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "results": results_table(rows, found, name == AUTHORS_DATA_SET),
        "differences": differences_table(list(runs), values),
        "curves": "".join(map(picture, curves(runs, found), CURVES)),
        "analyses": analyses(runs),
        "filters": filters(args.folder / "filters"),
        "gallery": json.dumps(gallery(found, pairs, args.queries)).replace("<", "\\u003c"),      # no name can close the script element
    })
    write_text(args.folder / "report.html", page)
    print(args.folder / "report.html")


if __name__ == "__main__":
    run_script(main)
