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


def table_rows(document, number=0):
    """{row: its cells}, of a table of a document, counted from 0."""
    table = re.findall(r"(?:^\|.*\n)+", document.read_text(), re.M)[number].splitlines()[2:]
    cells = [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in table]
    return {re.search(r"[\w+-]+", line[0].replace("`", ""))[0]: line[1:] for line in cells}


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_figures_are_in_the_records(name):
    rows = table_rows(ROOT / name)
    assert len(rows) == 9
    for row, (top1, m_ap, worlds, within, *_) in rows.items():
        runs = records_of(row)
        assert top1 == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert m_ap == f"{mean(run['FC']['mAP'] for run in runs):.1f}", row
        if worlds:
            asked, = records_of(f"worlds_{row}")
            right = {line["world"]: f"{line['right']:.1f}" for line in asked["lines"] if line["windows"] == "aligned"}
            assert worlds.split(", ") == [right[world] for world in WORLDS], row
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


def test_the_ladder_is_in_the_records():
    rows = table_rows(ROOT / "docs/contrastive.md", number=1)
    for row in ("triplet", "ladder-windows", "ladder-cells", "ladder-structure"):
        _, _, top1, m_ap = rows[row]
        runs = records_of(row)
        assert top1.split(" (")[0] == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert m_ap == f"{mean(run['FC']['mAP'] for run in runs):.1f}", row


def test_regions_with_structure_are_in_the_records():
    rows = table_rows(ROOT / "docs/regions.md")
    for row in ("source-both", "source-both-querybank", "tones-both"):
        top1, top10, m_ap, seeds = rows[row]
        runs = records_of(row)
        assert seeds == str(len(runs))
        assert top1.split(" (")[0] == mean_and_std([run["FC"]["top1"] for run in runs]), row
        assert top10 == f"{mean(run['FC']['top10'] for run in runs):.1f}", row
        assert m_ap == mean_and_std([run["FC"]["mAP"] for run in runs]), row


def test_records_are_small_and_of_no_machine():
    assert len(RECORDS) >= 15
    files = [file for record in RECORDS for file in record.parent.iterdir()]
    assert {file.name for file in files} <= {"args.json", "metrics.json", "log.txt", "record.json"}
    assert sum(file.stat().st_size for file in files) <= 2 ** 20
    for file in files:
        assert without_paths(file.read_text()) == file.read_text(), file
