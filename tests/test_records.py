"""tools/record.py, and that what the pages print is what the records hold."""
import csv
import json
import re
from statistics import mean, stdev

import pytest

from conftest import ROOT, script
from tools.record import without_paths


def write_run(folder, **metrics):
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"data_path": f"{folder}/pairs", "epochs": 2}))
    (folder / "log.txt").write_text(f"{folder}: cpu\nepoch 1: triplet 0.5 seconds 3\n")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_record_tells_the_run_and_no_path(tmp_path):
    runs = [write_run(tmp_path / f"row/seed{seed}", seconds=3.0) for seed in (0, 1)]
    words = "--machine", "one core", "--commit", "abc1234", "--out", tmp_path / "records"
    assert script("tools/record.py", "--run", *runs, *words).returncode == 0
    first, second = sorted((tmp_path / "records").iterdir())
    assert first.name.endswith("_row_seed0") and second.name.endswith("_row_seed1")
    kept = {file.name: file.read_text() for file in first.iterdir()}
    assert json.loads(kept["args.json"]) == {"data_path": "pairs", "epochs": 2}
    assert json.loads(kept["metrics.json"]) == {"seconds": 3.0} and kept["log.txt"].startswith("seed0: cpu\nepoch 1")
    record = json.loads(kept["record.json"])
    assert record == {"row": "row_seed0", "day": first.name[:10], "commit": "abc1234", "machine": "one core"}
    again = script("tools/record.py", "--run", *runs, *words)
    assert again.returncode == 2 and "row_seed0" in again.stderr and "row_seed1" in again.stderr
    for flag, wrong, reason in (("--row", "../a/b", "a name of letters"), ("--row", "..", "a name of letters"),
                                ("--machine", " ", "on what"), ("--commit", "none", "digits of a commit's hash")):
        done = script("tools/record.py", "--run", runs[0], *words, flag, wrong)
        assert done.returncode == 2 and reason in done.stderr
    (second / "record.json").unlink()                   # as where it was interrupted
    assert script("tools/record.py", "--run", runs[1], *words).returncode == 0 and (second / "record.json").is_file()
    (tmp_path / "records" / first.name).rename(tmp_path / f"records/2020-01-01_{first.name[11:]}")
    older = script("tools/record.py", "--run", runs[0], *words)
    assert older.returncode == 2 and "2020-01-01_row_seed0: recorded already" in older.stderr
    twice = script("tools/record.py", "--run", *2 * [write_run(tmp_path / "other/seed0")], *words)
    assert twice.returncode == 2 and "other_seed0, other_seed0" in twice.stderr
    none = script("tools/record.py", "--run", tmp_path, tmp_path / "none", *words)
    assert none.returncode == 2 and f"{tmp_path}, {tmp_path / 'none'}" in none.stderr


@pytest.mark.parametrize("file, bytes_of_it", [("metrics.json", b"1"), ("metrics.json", b"{"), ("args.json", None),
                                               ("log.txt", b"\xff\xfe")])
def test_what_is_not_a_runs_file_is_told_and_nothing_is_written(tmp_path, file, bytes_of_it):
    good, *both = [write_run(tmp_path / f"row/seed{seed}") for seed in range(3)]
    for bad in both:
        if bytes_of_it is None:
            (bad / file).unlink()
        else:
            (bad / file).write_bytes(bytes_of_it)
    done = script("tools/record.py", "--run", good, *both, "--machine", "one core", "--commit", "abc1234",
                  "--out", tmp_path / "records")
    assert done.returncode == 2 and not (tmp_path / "records").exists()
    assert all(f"{bad / file} is not what" in done.stderr for bad in both)


@pytest.mark.parametrize("text, kept", [
    ('"data_path": "/home/a/S1S2"', '"data_path": "S1S2"'), ('"/home/a b/my data/pairs"', '"pairs"'),
    (r'"C:\\Users\\a\\pairs"', '"pairs"'), ("file:///home/a/x y", "x y"), ("~a/b/c and //nas/share/d", "c and d"),
    ("/tmp/a+b/seed0: cpu, bfloat16", "seed0: cpu, bfloat16"),
    ("../x/y ~/data/z", "y z"), ("2 / 3 of a/b, 1/2", "2 / 3 of a/b, 1/2"), ("http://a.org/b", "http://a.org/b")])
def test_of_a_path_the_last_part_is_kept(text, kept):
    assert without_paths(text) == kept


# What is printed -----------------------------------------------------------------------------------------------------

RECORDS = sorted((ROOT / "records").glob("*/record.json"))
ROWS = {file: json.loads(file.read_text())["row"] for file in RECORDS}
# The records from which a row has its figures on maps and in the worlds.
WORLDS = ("ombria", "isro", "sen12")
ASKED_ELSEWHERE = ("structure", "contrastive", "contrastive-both", "lite0-both")
POSITIONS = {"contrastive-both": "match-cells-finer", "structure": "match-structure"}


def records_of(row, file="metrics.json"):
    """The metrics of all records of a row, seed after seed, or what they were called with (args.json)."""
    found = [record for record, name in ROWS.items() if re.fullmatch(re.escape(row) + r"(_seed\d+)?", name)]
    return [json.loads((record.parent / file).read_text()) for record in found]


def setting_of(row, name):
    """What all runs of a row were called with."""
    value, = {asked[name] for asked in records_of(row, "args.json")}
    return value


def fastest_epoch(row):
    """The seconds of a row's fastest epoch on a CPU, where it was timed there; else 0."""
    logs = [(record.parent / "log.txt").read_text() for record, name in ROWS.items()
            if re.fullmatch(rf"(cpu|timed)_{re.escape(row)}_seed\d", name)]
    ends = [[0, *map(float, re.findall(r"^epoch .* seconds ([\d.]+)", log, re.M))] for log in logs]
    return min((end - start for times in ends for start, end in zip(times, times[1:])), default=0)


def mean_and_std(values):
    """Figures as the pages print them: the mean of the seeds, and their deviation where there are several."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def in_worlds(row):
    """Top-1 of whole images in each of WORLDS, as the pages print it: the mean of the seeds asked."""
    right = {world: [] for world in WORLDS}
    for asked in records_of(f"worlds_{row}"):
        for line in asked["lines"]:
            if line["windows"] == "aligned" and line["world"] in right:
                right[line["world"]].append(line["right"])
    return ", ".join(f"{mean(values):.1f}" for values in right.values())


def table_of(page, number=0):
    """The cells of a page's table, counted from 0, line by line: the heading, the rule, and the rows."""
    table = re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.M)[number]
    return [[cell.strip().replace("**", "") for cell in line[1:-1].split("|")] for line in table.splitlines()]


def table_rows(page):
    """{row: its cells}, of a page's first table."""
    return {row_in(cells[0]): cells[1:] for cells in table_of(page)[2:]}


def row_in(cell):
    return re.search(r"[\w+-]+", cell)[0]


def figure_in(cell):
    """A cell without its interval."""
    return re.sub(r" [(\[].*", "", cell)


def shown(cell, values, figure):
    """What a page prints of the seeds: the mean, and its deviation with top-1 and where else one is printed."""
    return mean_and_std(values) if "±" in cell or figure == "top-1" else f"{mean(values):.1f}"


def opening_of(page):
    """The paragraph after the title and the link to the other language."""
    return next(text for text in page.read_text().split("\n\n")[1:] if not re.fullmatch(r"\[.*\]\(.*\)", text))


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_figures_are_in_the_records(name):
    rows = table_rows(name)
    assert len(rows) == 10
    timed = 0
    for row, (top1, m_ap, worlds, within, minutes) in rows.items():
        runs = records_of(row)
        if fastest := fastest_epoch(row):
            assert minutes == f"{fastest * setting_of(row, 'epochs') / 60:.0f}", row
            timed += 1
        assert top1 == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert m_ap == f"{mean(run['FC']['mAP'] for run in runs):.1f}", row
        assert worlds == (in_worlds(row) if row in ASKED_ELSEWHERE else ""), row
        assert bool(within) == (row in POSITIONS), row
        if within:
            asked, = records_of(POSITIONS[row])
            line, = [line for line in asked["lines"]
                     if (line["side"], line["map"], line["rotation"]) == (200, "tile", "known")]
            assert within == f"{line['within10']:.1f}", row
    assert timed == 4


# A page's table by its columns: what each heading names is the same in all of them. The records 64px_ROW are of images
# of 64 px, trained on for 12 epochs or as many as the page says; lite0-ROW begins from ImageNet.
TABLES = [("pretrained", 0, ""), ("contrastive", 0, ""), ("contrastive", 1, ""), ("regions", 0, ""),
          ("answers", 0, "lite0-"), ("answers.zh", 0, "lite0-"), ("simsiam", 0, "64px_"), ("san", 0, "64px_"),
          ("arn", 0, "64px_"), ("hhl", 0, "64px_"), ("ecn", 0, "64px_")]
FIGURES = {"top-1": "top1", "top-5": "top5", "top-10": "top10", "mAP": "mAP"}
STARTS = {"ImageNet": "lite0-", "scratch": "64px_", "从零": "64px_"}
BEFORE = {"triplet-from-simsiam": "simsiam"}


@pytest.mark.parametrize("page, number, prefix", TABLES)
def test_the_tables_of_the_pages_are_in_the_records(page, number, prefix):
    heading, _, *rows = table_of(f"docs/{page}.md", number)
    assert 2 <= len(rows) <= 8
    for row, *cells in rows:
        row, start, held, vector = row_in(row), prefix, 0, "FC"
        steps = [step for step in (BEFORE.get(row), row) if step]
        for name, cell in zip(heading[1:], cells, strict=True):
            start = next((start for word, start in STARTS.items() if word in name), start)
            runs = records_of(start + row)
            figure = re.search(r"top-\d+|mAP", name)
            if name == "vector":
                vector = cell
            elif name == "seeds":
                assert cell == ("" if row in ROWS.values() else str(len(runs))), row
            elif name == "epochs":
                assert cell == " + ".join(str(setting_of(start + step, "epochs")) for step in steps), row
            elif name in ("rate", "学习率", "rate, head"):
                rates = [setting_of(start + row, rate) for rate in ("lr", "lr_head")[:name.count(",") + 1]]
                assert cell == ", ".join(map(str, rates)), row
            elif re.search("seconds|秒", name):
                seconds = [mean(run["seconds"] for run in records_of(start + step)) for step in steps]
                assert cell == " + ".join(f"{value:.0f}" for value in seconds), row
            elif figure:
                values = [run["POOL5" if "POOL5" in name else vector][FIGURES[figure[0]]] for run in runs]
                assert figure_in(cell) == shown(cell, values, figure[0]), (row, name)
                for low, high in re.findall(r"[(\[]([\d.]+)(?: to |, )([\d.]+)[)\]]", cell):
                    assert float(low) <= mean(values) <= float(high), (row, name)
                held += 1
        assert held >= 2, row


def test_what_a_page_opens_with_is_in_the_records():
    """Every mean of several seeds, of any row, in the paragraph after a page's title."""
    rows = {re.sub(r"_seed\d+$", "", row) for row in ROWS.values()}
    seeds = [[run[vector][figure] for run in runs] for runs in map(records_of, rows) if "FC" in runs[0]
             for vector in ("FC", "POOL5") for figure in ("top1", "mAP")]
    known = {mean_and_std(values) for values in seeds}
    printed = [(page.name, figure) for page in sorted((ROOT / "docs").glob("*.md"))
               for figure in re.findall(r"\d+\.\d ± \d+\.\d", opening_of(page))]
    assert len(printed) >= 10
    assert [figure for figure in printed if figure[1] not in known] == []


@pytest.mark.parametrize("page, column, wanted, count, named, vectors", [
    ("pretrained", "table", "rows", 14, "row",
     {"FC": "{top1} ± {top1_std}", "POOL5": "{pool5_top1} ± {pool5_top1_std}"}),
    ("answers", "note", "in records/ as ", 9, "note", {"FC": "{top1} ± {std}"})])
def test_the_rows_beside_a_page_are_in_the_records(page, column, wanted, count, named, vectors):
    """Of a CSV: the lines that say what they are, the last word of `named` the record's row."""
    with open(ROOT / f"docs/{page}.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if wanted in line[column]]
    assert len(lines) == count
    for line in lines:
        runs = records_of(line[named].split(" ")[-1])
        assert len(runs) == len(line["seeds"].split())
        for vector, printed in vectors.items():
            assert printed.format(**line) == mean_and_std([run[vector]["top1"] for run in runs]), line["row"]
        assert line["map"] == f"{mean(run['FC']['mAP'] for run in runs):.1f}", line["row"]


def test_the_first_table_of_structure_is_in_the_records():
    rows = table_rows("docs/structure.md")
    learned_in_texas = {"structure": "regions-structure", "contrastive": "source-only",
                        "contrastive-both": "source-both", "lite0-both": "source-lite0"}
    assert list(rows) == list(learned_in_texas)
    for row, (home, away, worlds, seeds) in rows.items():
        asked = [len(records_of(name)) for name in (row, learned_in_texas[row], f"worlds_{row}")]
        if row != "structure":
            assert seeds in (", ".join(map(str, asked)), str(asked[0])), row
        for cell, kept in ((home, row), (away, learned_in_texas[row])):
            assert figure_in(cell) == mean_and_std([run["FC"]["top1"] for run in records_of(kept)]), kept
        assert worlds == in_worlds(row), row


def test_the_first_table_of_worlds_is_in_the_records():
    """Whole images and windows: of records worlds_ROW, or worlds-turned_ROW, which tried turns and scales."""
    table = (ROOT / "docs/worlds.md").read_text().split("\n\n")[2].splitlines()[2:]
    assert len(table) == 8
    for line in table:
        row, *cells = line.strip("| ").split(" | ")
        row, what = re.fullmatch(r"`([\w+-]+)`, (.*)", row).groups()
        runs = records_of(f"worlds-turned_{row}") or records_of(f"worlds_{row}")
        kinds = ("aligned",) if what == "whole images" else ("upright", "turned", "turned and scaled")
        for world, cell in zip(("S1S2align200", *WORLDS), cells, strict=True):
            right = [[line["right"] for run in runs for line in run["lines"]
                      if (line["world"], line["windows"]) == (world, kind)] for kind in kinds]
            assert cell == " / ".join(f"{mean(values):.1f}" for values in right), (row, world)


def test_the_first_table_of_match_is_in_the_records():
    """A row is of the last method named: within 5 / 10 / 20 px on one map, ..., as the records have it."""
    kept = {"oriented gradients": "match-structure", "cells": "match-cells-finer", "cells of 8 px alone": "match-cells"}
    _, _, *rows = table_of("docs/match.md")
    assert len(rows) == 7
    name = None
    for method, side, where, rotation, within, median, corrected, seconds in rows:
        name = method.split(",")[0] or name
        asked, = records_of(kept[name])
        line, = [line for line in asked["lines"]
                 if (str(line["side"]), line["map"], line["rotation"]) == (side, where, rotation)]
        assert within == " / ".join(f"{line[f'within{px}']:.1f}" for px in (5, 10, 20)), (name, side)
        assert corrected == " / ".join(f"{line[f'corrected{px}']:.1f}" for px in (5, 10)), (name, side)
        assert median == f"{line['median_px']:.2f}"
        assert seconds == ("" if name == "oriented gradients" else f"{line['seconds']:.2g}"), (name, side)


def test_the_first_table_of_scale_is_in_the_records():
    figures = ("see_once_cpu_s", "kept_mib", "peak_mib", "query_known_cpu_s", "query_unknown_cpu_s")
    _, _, *rows = table_of("docs/scale.md")
    assert len(rows) == 3
    for row, *cells in rows:
        side = re.search(r"\((.*) px", row)[1].replace(",", "")
        asked, = records_of(f"scale_{side}")
        assert row.startswith(f"{int(side) ** 2 / 1e6:.3g} Mpx") and asked["map_px"] == int(side)
        for name, cell in zip(figures, cells, strict=True):
            assert cell == (f"{asked[name]:,}" if name == "peak_mib" else f"{asked[name]:.1f}"), (side, name)


def test_records_are_small_and_of_no_machine():
    assert len(RECORDS) >= 15
    files = [file for record in RECORDS for file in record.parent.iterdir()]
    assert {file.name for file in files} <= {"args.json", "metrics.json", "log.txt", "record.json"}
    assert sum(file.stat().st_size for file in files) <= 2 ** 20
    for file in files:
        assert without_paths(file.read_text()) == file.read_text(), file
    for record, row in ROWS.items():
        named, seed = re.search(r"_seed(\d+)$", row), json.loads((record.parent / "args.json").read_text()).get("seed")
        assert named is None or seed in (None, int(named[1])), row
