"""tools/record.py, and that what the pages print is what the records hold."""
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
    for flag, wrong, reason in (("--row", "../a/b", "a name without slashes"), ("--machine", " ", "on what"),
                                ("--commit", "none", "digits of a commit's hash")):
        done = script("tools/record.py", "--run", runs[0], *words, flag, wrong)
        assert done.returncode == 2 and reason in done.stderr
    none = script("tools/record.py", "--run", tmp_path, tmp_path / "none", *words)
    assert none.returncode == 2 and f"{tmp_path}, {tmp_path / 'none'}" in none.stderr


@pytest.mark.parametrize("text, kept", [
    ('"data_path": "/home/a/S1S2"', '"data_path": "S1S2"'), ("/tmp/a+b/seed0: cpu, bfloat16", "seed0: cpu, bfloat16"),
    ("../x/y ~/data/z", "y z"), ("2 / 3 of a/b, 1/2", "2 / 3 of a/b, 1/2"), ("http://a.org/b", "http://a.org/b")])
def test_of_a_path_the_last_part_is_kept(text, kept):
    assert without_paths(text) == kept


# What is printed -----------------------------------------------------------------------------------------------------

RECORDS = sorted((ROOT / "records").glob("*/record.json"))
# The records from which a row has its figures on maps and in the worlds.
WORLDS = ("ombria", "isro", "sen12")
POSITIONS = {"contrastive-both": "match-cells-finer", "structure": "match-structure"}


def records_of(row):
    """The metrics of all records of a row, seed after seed."""
    names = {file: json.loads(file.read_text())["row"] for file in RECORDS}
    found = [file for file, name in names.items() if name == row or re.fullmatch(re.escape(row) + r"_seed\d+", name)]
    return [json.loads((file.parent / "metrics.json").read_text()) for file in found]


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


def table_rows(document, number=0):
    """{row: its cells}, of a table of a document, counted from 0."""
    table = re.findall(r"(?:^\|.*\n)+", document.read_text(), re.M)[number].splitlines()[2:]
    cells = [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in table]
    return {re.search(r"[\w+-]+", line[0].replace("`", ""))[0]: line[1:] for line in cells}


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_figures_are_in_the_records(name):
    rows = table_rows(ROOT / name)
    assert len(rows) == 10
    for row, (top1, m_ap, worlds, within, *_) in rows.items():
        runs = records_of(row)
        assert top1 == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert m_ap == f"{mean(run['FC']['mAP'] for run in runs):.1f}", row
        if worlds:
            assert worlds == in_worlds(row), row
        if within:
            asked, = records_of(POSITIONS[row])
            line, = [line for line in asked["lines"]
                     if (line["side"], line["map"], line["rotation"]) == (200, "tile", "known")]
            assert within == f"{line['within10']:.1f}", row


def test_the_first_table_of_pretrained_is_in_the_records():
    rows = table_rows(ROOT / "docs/pretrained.md")
    assert len(rows) >= 4
    for row, (rates, top1, m_ap, pool5, _) in rows.items():
        runs = records_of(row)
        assert top1.split(" [")[0] == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert m_ap == f"{mean(run['FC']['mAP'] for run in runs):.1f}", row
        assert pool5 == mean_and_std([run["POOL5"]["top1"] for run in runs]), row


def of_vector(runs, vector="FC", deviations=True):
    """What a page prints of runs: top-1, top-5, top-10 and mAP, of the latter with its deviation or without."""
    figures = {name: [run[vector][name] for run in runs] for name in ("top1", "top5", "top10", "mAP")}
    shown = {name: f"{mean(values):.1f}" for name, values in figures.items()}
    return {**shown, "top1": mean_and_std(figures["top1"]),
            **({"mAP": mean_and_std(figures["mAP"])} if deviations else {})}


def without_interval(cell):
    return re.sub(r" \(.*\)", "", cell)


def test_the_first_table_of_contrastive_is_in_the_records():
    table = (ROOT / "docs/contrastive.md").read_text().split("## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if re.search(r"\| (FC|POOL5) \|", line)]
    assert len(rows) == 5
    for row, vector, *cells in rows:
        row = re.search(r"[\w+-]+", row)[0]
        figures = of_vector(records_of(row), vector)
        assert [without_interval(cell) for cell in cells] == list(figures.values()), (row, vector)


def test_the_ladder_is_in_the_records():
    rows = table_rows(ROOT / "docs/contrastive.md", number=1)
    for row in ("triplet", "ladder-windows", "ladder-cells", "contrastive", "ladder-structure"):
        _, _, top1, m_ap = rows[row]
        figures = of_vector(records_of(row), deviations=False)
        assert (without_interval(top1), m_ap) == (figures["top1"], figures["mAP"]), row


def test_regions_with_structure_are_in_the_records():
    rows = table_rows(ROOT / "docs/regions.md")
    for row in ("source-both", "source-both-querybank", "tones-both",
                "source-lite0", "source-lite0-querybank", "tones-lite0"):
        top1, top10, m_ap, seeds = rows[row]
        runs = records_of(row)
        figures = of_vector(runs)
        assert (without_interval(top1), top10, m_ap) == (figures["top1"], figures["top10"], figures["mAP"]), row
        assert seeds == str(len(runs))


def test_the_first_table_of_structure_is_in_the_records():
    rows = table_rows(ROOT / "docs/structure.md")
    learned_in_texas = {"contrastive-both": "source-both", "lite0-both": "source-lite0"}
    assert list(rows) == ["structure", "contrastive", "contrastive-both", "lite0-both"]
    for row, (home, away, worlds, _) in rows.items():
        assert without_interval(home) == of_vector(records_of(row))["top1"], row
        assert worlds == in_worlds(row), row
        if row in learned_in_texas:
            assert without_interval(away) == of_vector(records_of(learned_in_texas[row]))["top1"], row


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


def test_records_are_small_and_of_no_machine():
    assert len(RECORDS) >= 15
    files = [file for record in RECORDS for file in record.parent.iterdir()]
    assert {file.name for file in files} <= {"args.json", "metrics.json", "log.txt", "record.json"}
    assert sum(file.stat().st_size for file in files) <= 2 ** 20
    for file in files:
        assert without_paths(file.read_text()) == file.read_text(), file
