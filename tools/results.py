"""The tables: every finished run of a data set, mean and standard deviation over the seeds.

    python tools/results.py results/SN6align200 [--rows triplet ...] [--table NAME ROW ...] [--validation]

A run is a folder results/DATA/ROW/seedK with a metrics.json. Writes table.md and table.csv, the ablation, beside the
rows and prints the first. Its rows named by --rows come first, in that order, then any others. --table, which may be
given several times, gives some rows a table of their own: NAME.md and NAME.csv. --validation tabulates the runs that
were evaluated on held-out training tiles (--validate) instead of those evaluated on the test split.
"""
import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_rows, write_text
from shared.plumbing.run_files import features_of, read_settings, side_of_part

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
The author's second table (batch 24, FC top-1 and mAP): base 62.66, 72.99; channel exchange 80.60, 82.74; \
channel exchange + adv 77.75, 84.00.
"""

ABLATION = "ablation"                                   # the table that takes all rows which no other one names


def finished_runs(folder, evaluated_on="test"):
    """Row name -> [(the run's folder, its metrics)], of the runs evaluated on `test` or on `validation` places."""
    runs = {}
    for file in sorted(folder.glob("*/seed*/metrics.json")):
        metrics = json.loads(file.read_text())
        if metrics["evaluated_on"] == evaluated_on:
            runs.setdefault(file.parent.parent.name, []).append((file.parent, metrics))
    return runs


def divide(runs, tables):
    """Share finished runs out to tables: {table: {row: its runs}}, in the tables' order.

    tables: {table: names of its rows}; the rows that none names are the ablation's, behind its own. A row may stand in
    several; a table none of whose rows is new is left out.
    Raises InputError where there is no finished run.
    """
    named = {name for rows in tables.values() for name in rows}
    ablation = [*tables.get(ABLATION, ()), *(name for name in runs if name not in named)]
    wanted = {**tables, ABLATION: ablation}
    divided, shown = {}, set()
    for table, rows in wanted.items():
        finished = {name: runs[name] for name in rows if name in runs}
        if finished.keys() - shown:
            divided[table] = finished
        shown |= finished.keys()
    return divided


def read_tables(folder, tables, evaluated_on="test"):
    """The finished runs of a folder, as divide() gives them. InputError where there are none."""
    runs = finished_runs(folder, evaluated_on)
    if not runs:
        raise InputError(f"{folder} holds no finished run (ROW/seedK/metrics.json) evaluated on {evaluated_on} places: "
                         "bash run.sh makes them")
    return divide(runs, tables)


def tabulate(runs):
    """The lines of a table as dictionaries of COLUMNS. runs: {row: [(folder, metrics)]}."""
    lines = []
    for name, row_runs in runs.items():
        metrics = [run_metrics for _, run_metrics in row_runs]
        for feature in features_of(metrics[0]):
            values = {figure: [run[feature][figure] for run in metrics] for figure in FIGURES}
            line = {"row": name, "feature": feature, "seeds": len(metrics)}
            line.update({figure: statistics.mean(values[figure]) for figure in FIGURES})
            for figure in ("top1", "mAP"):
                line[f"{figure}_std"] = statistics.stdev(values[figure]) if len(metrics) > 1 else ""
            line["seconds"] = statistics.mean(run["seconds"] for run in metrics)
            lines.append(line)
    return lines


def has_own_columns(runs):
    """Whether the rows of a table bring lines with columns of their own ("lines" of metrics.json), as localisation's
    do, instead of retrieval figures."""
    return all("lines" in metrics for row_runs in runs.values() for _, metrics in row_runs)


def tabulate_own(runs):
    """The lines of such a table: numbers are means over the seeds, everything else must agree."""
    lines = []
    for name, row_runs in runs.items():
        for same in zip(*(metrics["lines"] for _, metrics in row_runs)):
            line = {"row": name, "seeds": len(same)}
            for column in same[0]:
                values = [cells[column] for cells in same]
                line[column] = statistics.mean(values) if all(isinstance(v, float) for v in values) else values[0]
            lines.append(line)
    return lines


def own_cells(lines):
    """(columns, cells): such lines as text; what a line lacks, or is not known, is left empty."""
    columns = list(dict.fromkeys(column for line in lines for column in line))
    cells = []
    for line in lines:
        values = [line.get(column) for column in columns]
        cells.append([f"{v:.2f}" if isinstance(v, float) else "" if v is None else str(v) for v in values])
    return columns, cells


def with_std(line, figure):
    """A figure of a line of tabulate() as text, with its standard deviation where there is one."""
    std = line.get(f"{figure}_std", "")
    return f"{line[figure]:.2f}" + (f" ± {std:.2f}" if std != "" else "")


def markdown(lines, authors):
    """The table as Markdown; authors: put the author's figures beside the FC rows."""
    columns = ["row", "feature", "seeds", "top-1", "top-5", "top-10", "top-20", "mAP", "seconds"]
    columns += ["the author"] if authors else []
    text = [columns, ["---"] * len(columns)]
    for line in lines:
        cells = [line["row"], line["feature"], line["seeds"], *(with_std(line, figure) for figure in FIGURES)]
        cells.append(f"{line['seconds']:.0f}")
        if authors:
            cells.append(AUTHOR.get(line["row"], "") if line["feature"] == "FC" else "")
        text.append(cells)
    table = "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in text)
    return table + (AUTHORS_NOTES if authors else "")


def recipe_of(args):
    """How a run was trained, of its arguments."""
    unit = "epoch" if args["epochs"] == 1 else "epochs"
    line = ("{arch}, {img_size} px, init {init}, {epochs} {unit}, {batch_size} pairs, {optim}, {schedule} "
            "schedule, learning rates {lr} and {lr_head}").format(**args, unit=unit)
    line += ", windows" if args.get("windows") else ""
    line += ", cells" if args.get("pooling") == "cells" else ""
    if args.get("input", "rgb") != "rgb":
        line += f", input {args['input']}"
    if args.get("left_out") or args.get("toned"):
        line += f" (left out {args['left_out']}, in tones {args['toned']})"
    line += f", {args['loss']} loss" if args.get("loss") else ""
    side = side_of_part(args.get("part"), args["img_size"])
    return line + (f", parts of {side} px" if side < args["img_size"] else "")


def recipes(runs):
    """How runs were trained: one line, or one for each recipe with the rows that it made."""
    rows = {}
    for name, row_runs in runs.items():
        for folder, _ in row_runs:
            args = read_settings(folder)
            line = recipe_of(args) if "arch" in args else "nothing is learned"
            rows.setdefault(line, {})[name] = None
    if len(rows) == 1:
        return [f"Ours: {line}." for line in rows]
    return [f"{', '.join(names)}: {line}." for line, names in rows.items()]


def write_table(folder, table, runs, evaluated_on="test"):
    """Write and print one table of a folder. runs: {row: [(folder, metrics)]}."""
    data_set = folder.resolve().name
    if has_own_columns(runs):
        lines = tabulate_own(runs)
        columns, cells = own_cells(lines)
        text = "".join(f"| {' | '.join(row)} |\n" for row in [columns, ["---"] * len(columns), *cells])
    else:
        lines, columns = tabulate(runs), COLUMNS
        text = markdown(lines, data_set == AUTHORS_DATA_SET) + "\n" + "\n\n".join(recipes(runs))
    if evaluated_on == "validation":
        text += "\n\nEvaluated on held-out tiles of the training split, to choose by: not figures of the test split."
    if data_set == "demo":
        text += "\n" + DEMO_NOTE
    file = folder / ("table" if table == ABLATION else table)
    rounded = [{name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
               for line in lines]
    write_rows(f"{file}.csv", columns, rounded)
    write_text(f"{file}.md", text)
    print(f"{text}\n{file}.md, {file}.csv")


def add_tables(parser):
    """The flags --rows and --table."""
    parser.add_argument("--rows", nargs="*", default=[], metavar="ROW", help="the order of the ablation's rows")
    parser.add_argument("--table", nargs="+", action="append", default=[], metavar=("NAME", "ROW"),
                        help="a table of its own for these rows; may be given several times")


def tables_of(args):
    """{table: names of its rows} of the flags that add_tables adds."""
    return {ABLATION: args.rows, **{name: rows for name, *rows in args.table}}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results/<data set>")
    add_tables(parser)
    parser.add_argument("--validation", action="store_true", help="of the runs evaluated on held-out training tiles")
    return parser.parse_args()


def main(args):
    evaluated_on = "validation" if args.validation else "test"
    for table, runs in read_tables(args.folder, tables_of(args), evaluated_on).items():
        write_table(args.folder, table, runs, evaluated_on)


if __name__ == "__main__":
    run_script(main, arguments)
