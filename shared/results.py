"""The ablation table: every finished run of a data set, mean and standard deviation over the seeds.

    python shared/results.py results/SN6align200 [--rows triplet triplet+exchange ...] [--validation]

A run is a folder results/DATA/ROW/seedK with a metrics.json. Writes table.md and table.csv beside the rows
and prints the first. Rows named by --rows come first, in that order, then any others found. --validation tabulates the runs
that were evaluated on held-out training tiles (--validate) instead of those evaluated on the test split.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.errors import InputError, run_script
from shared.files import write_rows, write_text

FIGURES = ("top1", "top5", "top10", "top20", "mAP")
COLUMNS = ("row", "feature", "seeds", *FIGURES, "top1_std", "mAP_std", "seconds")

DEMO_NOTE = "Demo pairs: a check that everything works, no result of the method."

# The author's figures, on the author's own cut of SpaceNet 6 (gallery of 2,250): top-1, 5, 10, 20, mAP.
AUTHORS_DATA_SET = "SN6align200"
AUTHOR = {
    "triplet": "73.22, 90.67, 94.76, 93.29, 81.34",
    "triplet+exchange": "89.39, 96.63, 98.13, 98.93, 92.70",
    "triplet+adv": "80.42, 93.29, 96.31, 98.31, 86.15",
    "triplet+adv+exchange": "89.43, 96.63, 98.45, 99.02, 92.66",
    "triplet+adv+exchange+guided": "never finished",
    "triplet+adv+exchange-normalize": "0.04, 0.22, 0.44, 0.89, 0.36",
    "triplet+exchange+guided": "74.60, 90.41, 93.52, 96.94, 81.62 (second table: batch 24, FC)",
    "sharing-3": "top-1 -, mAP 92.66",
    "sharing-5": "top-1 80.06, mAP 85.61",
}
AUTHORS_NOTES = """
The author's top-20 of `triplet` (93.29) is below the same row's top-10 (94.76): a slip in the author's notes.
The author's specify_num 0 on Adv + channelExchange: top-1 89.79, mAP 92.82; here that row is `triplet+adv+exchange`.
The author's second table (batch 24, FC top-1 and mAP): base 62.66, 72.99; channel exchange 80.60, 82.74; channel exchange + adv 77.75, 84.00.
"""


def finished_runs(folder, evaluated_on):
    """Row name -> [(the run's folder, its metrics)], of the runs that were evaluated on `test` or on `validation` places."""
    rows = {}
    for file in sorted(folder.glob("*/seed*/metrics.json")):
        metrics = json.loads(file.read_text())
        if metrics["evaluated_on"] == evaluated_on:
            rows.setdefault(file.parent.parent.name, []).append((file.parent, metrics))
    return rows


def collect(folder, first=(), evaluated_on="test"):
    """The table's rows as dictionaries of COLUMNS. Raises InputError where no run is finished."""
    found = finished_runs(folder, evaluated_on)
    names = [name for name in first if name in found] + [name for name in found if name not in first]
    if not names:
        raise InputError(f"{folder} holds no finished run (ROW/seedK/metrics.json) evaluated on {evaluated_on} places: bash run.sh makes them")
    rows = []
    for name in names:
        runs = [metrics for _, metrics in found[name]]
        for feature in ("FC", "POOL5"):
            values = {figure: [run[feature][figure] for run in runs] for figure in FIGURES}
            std = {figure: statistics.stdev(values[figure]) if len(runs) > 1 else "" for figure in ("top1", "mAP")}
            rows.append({"row": name, "feature": feature, "seeds": len(runs),
                         **{figure: statistics.mean(values[figure]) for figure in FIGURES},
                         "top1_std": std["top1"], "mAP_std": std["mAP"], "seconds": statistics.mean(run["seconds"] for run in runs)})
    return rows


def with_std(row, figure):
    """A figure of a row of collect() as text, with its standard deviation where there is one."""
    std = row.get(f"{figure}_std", "")
    return f"{row[figure]:.2f}" + (f" ± {std:.2f}" if std != "" else "")


def markdown(rows, authors):
    """The table as Markdown; authors: put the author's figures beside the FC rows."""
    lines = ["| row | feature | seeds | top-1 | top-5 | top-10 | top-20 | mAP | seconds |" + (" the author |" if authors else ""),
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |" + (" --- |" if authors else "")]
    for row in rows:
        cells = [row["row"], row["feature"], row["seeds"], *(with_std(row, figure) for figure in FIGURES), f"{row['seconds']:.0f}"]
        if authors:
            cells.append(AUTHOR.get(row["row"], "") if row["feature"] == "FC" else "")
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n" + (AUTHORS_NOTES if authors else "")


def recipes(folder, evaluated_on="test"):
    """How the runs of a folder were trained: one line, or one for each recipe with the rows that it made."""
    rows = {}
    for name, run in ((name, run) for name, runs in finished_runs(folder, evaluated_on).items() for run, _ in runs):
        args = json.loads((run / "args.json").read_text())
        line = ("{arch}, {img_size} px, init {init}, {epochs} epochs, {batch_size} pairs, {optim}, {schedule} schedule, "
                "learning rates {lr} and {lr_head}").format(**args) + (", windows" if args["windows"] else "")
        rows.setdefault(line, {})[name] = None
    if len(rows) == 1:
        return [f"Ours: {line}." for line in rows]
    return [f"{', '.join(names)}: {line}." for line, names in rows.items()]


def write_table(folder, first=(), evaluated_on="test"):
    rows = collect(folder, first, evaluated_on)
    text = markdown(rows, folder.resolve().name == AUTHORS_DATA_SET) + "\n" + "\n\n".join(recipes(folder, evaluated_on))
    if evaluated_on == "validation":
        text += "\n\nEvaluated on held-out tiles of the training split, to choose by: not figures of the test split."
    if folder.resolve().name == "demo":
        text += "\n" + DEMO_NOTE
    rounded = [{name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    write_rows(folder / "table.csv", COLUMNS, rounded)
    write_text(folder / "table.md", text)
    print(text)
    print(f"{folder / 'table.md'}, {folder / 'table.csv'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    parser.add_argument("--rows", nargs="*", default=[], help="the order of the rows")
    parser.add_argument("--validation", action="store_true", help="of the runs evaluated on held-out training tiles")
    args = parser.parse_args()
    write_table(args.folder, args.rows, "validation" if args.validation else "test")


if __name__ == "__main__":
    run_script(main)
