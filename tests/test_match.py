"""code_Match as programs: halves, calibration, its table; the tiles that it reads; what is refused."""
import argparse
import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from conftest import ROOT, script
from shared.mapping.localization import Answer
from shared.model import PseudoSiamese
from shared.plumbing.errors import InputError
from shared.plumbing.files import read_rows, write_rows
from shared.plumbing.lines import Lines
from queries import Query
from test_localization import ground
from tiles import load_tiles, projection
from tools.bench import load_script
from tools.results import write_table

figures = load_script(ROOT / "code_Match/test.py").figures

TINY = ["--recipe", "cpu", "--input", "both", "--loss", "infonce", "--windows", "--img_size", "64", "--part", "32",
        "--batch_size", "2", "--epochs", "1"]
ON_CPU = ["--device", "cpu", "--amp", "off"]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """Four training tiles and two test tiles of 136 px with their crops, where they lie, and their crops' rows."""
    root = tmp_path_factory.mktemp("tiled")
    places, corners = [], []
    for split, names in (("train", "abcf"), ("test", "de")):
        for folder in (split, f"{split}_tiles"):
            for modality in ("opt", "sar"):
                (root / folder / modality).mkdir(parents=True)
        for name in names:
            image = ground(136, ord(name))
            for modality, seen in (("opt", image), ("sar", 255 - image)):
                cv2.imwrite(str(root / f"{split}_tiles" / modality / f"{name}.png"), seen)
                for column in (0, 1):
                    cv2.imwrite(str(root / split / modality / f"{name}_0{column}.png"),
                                seen[:64, 64 * column:64 * column + 64])
            left = 1360 * "abcdef".index(name) - (200 if name == "d" else 0)      # d shows 20 px of c
            corners.append({"split": split, "tile": name, "left": left, "top": 1360, "right": left + 1360, "bottom": 0})
            places += [{"split": split, "id": f"{name}_0{column}", "tile": name, "x_m": left + 320 + 640 * column,
                        "y_m": 1040, "size_m": 640} for column in (0, 1)]
    write_rows(root / "tiles.csv", list(corners[0]), corners)
    write_rows(root / "pairs.csv", list(places[0]), places)
    return root


def test_tiles_and_what_is_hidden_of_them(tiled, tmp_path):
    root = shutil.copytree(tiled, tmp_path / "data")
    leave_out = [{"split": "train", "id": "a_00"}, {"split": "train", "id": "a_01"}, {"split": "test", "id": "e_01"}]
    write_rows(root / "leave_out.csv", ["split", "id"], leave_out)
    train, test = load_tiles(root, "train", 2), load_tiles(root, "test", 2)
    assert train.names == ["b", "c", "f"] and test.names == ["d", "e"] and test.metres == 10, "a is left out whole"
    assert train.hidden == [[], [], []] and test.hidden == [[(0, 0, 136, 20)], [(0, 64, 64, 128)]]
    assert np.array_equal(test.opt[0], 255 - test.sar[0]) and train.opt[0].shape == (136, 136, 3)
    kept, held_out = train.hold_out(0.34)
    assert (kept.names, held_out.names) == (["b", "f"], ["c"])
    kept, held_out = train.hold_out(0.34, other_half=True)
    assert (kept.names, held_out.names) == (["c"], ["b", "f"])
    (root / "test_tiles/sar/d.png").write_bytes(b"")
    (root / "test_tiles/sar/e.png").unlink()
    with pytest.raises(InputError, match="(?s)e is not there in both.*d.png") as problems:
        load_tiles(root, "test", 2)
    assert "2 problem(s)" in str(problems.value)
    (root / "tiles.csv").write_text("split,tile,left\ntrain,b,1\n")
    with pytest.raises(InputError, match="tile b has no number"):
        load_tiles(root, "train", 2)


def test_metres_are_the_grounds(tiled, demo, tmp_path):
    """A data set counts in a Mercator map's metres, of which 0.5 make one on the ground at 60 degrees."""
    assert load_tiles(tiled, "test", 2).metres == 10
    root = shutil.copytree(tiled, tmp_path / "data")
    rows = read_rows(root / "tiles.csv")
    north = 8_399_738                                   # of 60 degrees in EPSG:3857, on a sphere
    for row in rows:
        row.update(top=float(row["top"]) + north, bottom=float(row["bottom"]) + north)
    write_rows(root / "tiles.csv", list(rows[0]), rows)
    crs = projection("EPSG:3395")
    assert load_tiles(root, "test", 2, crs=crs).metres == pytest.approx(5.0, rel=0.01)
    assert load_tiles(tiled, "test", 2, crs=crs).metres == pytest.approx(10.0, rel=0.01), "at the equator"
    for row in rows:
        row.update(top=1e9, bottom=1e9 - 1360)
    write_rows(root / "tiles.csv", list(rows[0]), rows)
    with pytest.raises(InputError, match="--crs EPSG:3395: .* is no place of it"):
        load_tiles(root, "test", 2, crs=crs)
    for text, words in (("EPSG:4326", "does not count in metres"), ("EPSG:99999", "is no CRS"), ("x", "is no CRS")):
        with pytest.raises(argparse.ArgumentTypeError, match=words):
            projection(text)


def test_tiles_csv_whose_zeros_a_spreadsheet_has_eaten(tiled, tmp_path):
    root = shutil.copytree(tiled, tmp_path / "data")
    for modality in ("opt", "sar"):
        (root / f"test_tiles/{modality}/d.png").rename(root / f"test_tiles/{modality}/007.png")
    text = (root / "tiles.csv").read_text()
    (root / "tiles.csv").write_text(text.replace("test,d,", "test,7,"))
    with pytest.raises(InputError, match="tiles.csv: 1 of 2 ids of test differ .* leading zeros .7 for 007."):
        load_tiles(root, "test", 2)
    (root / "tiles.csv").write_text(text.replace("test,d,", "test;007;").replace(",", ";"))
    assert load_tiles(root, "test", 2).hidden[0] == [(0, 0, 136, 20)]


def test_crops_stand_for_tiles_that_are_not_there(demo):
    tiles = load_tiles(demo, "test", 2)
    assert len(tiles) == 12 and tiles.opt[0].shape == (200, 200, 3) and tiles.hidden == [[]] * 12


@pytest.fixture(scope="module")
def runs(tiled, tmp_path_factory):
    """{name: folder}: a run of all tiles, those of two halves of them, and one that differs."""
    root = tmp_path_factory.mktemp("runs")
    flags = {"whole": [], "half": ["--validate", "0.5"], "other": ["--validate", "0.5", "--other_half"]}
    for name, more in flags.items():
        done = script("code_Con/train.py", "--data_path", tiled, "--result_path", root / name, *TINY, *more, *ON_CPU)
        assert done.returncode == 0, done.stderr
    changed = json.loads((root / "other/args.json").read_text())
    shutil.copytree(root / "other", root / "changed")
    (root / "changed/args.json").write_text(json.dumps({**changed, "lr": 0.5}))
    # As runs were before they noted what images they learned from: taken for one of the same.
    whole = json.loads((root / "whole/args.json").read_text())
    del whole["data"]
    (root / "whole/args.json").write_text(json.dumps(whole))
    return {name: root / name for name in (*flags, "changed")}


def test_one_run_halves_of_it_and_the_table(tiled, runs, tmp_path):
    results, halves = tmp_path / "results/tiled", ["--halves", runs["half"], runs["other"]]
    command = ["code_Match/calibrate.py", "--run", runs["whole"], *halves, "--queries", "2", "--result_path",
               results / "match-calibration/seed0", *ON_CPU]
    done = script(*command)
    assert done.returncode == 0 and "queries of 4 tiles" in done.stdout, done.stderr
    kept = json.loads((runs["whole"] / "calibration.json").read_text())
    assert kept["metres"] == 10 and kept["sides"] == [100] and "is finished" in script(*command).stdout
    command[2] = runs["half"]
    (runs["half"] / "calibration.json").write_bytes((runs["whole"] / "calibration.json").read_bytes())
    another = script(*command)
    assert another.returncode == 2 and "holds other figures (run " in another.stderr
    (runs["half"] / "calibration.json").unlink()
    for method, more in (("cells", []), ("voting", []), ("graph", halves), ("ncc", []), ("trust", [])):
        row = results / f"match-{method}/seed0"
        command = ["code_Match/test.py", "--run", runs["whole"], "--method", method, *more, "--sides", "48",
                   "--queries", "2", "--result_path", row, *ON_CPU]
        done = script(*command)
        assert done.returncode == 0, done.stderr
        lines = json.loads((row / "metrics.json").read_text())["lines"]
        assert lines[0]["side"] == 48 and lines[0]["queries"] == 4
    assert "is finished" in script(*command).stdout
    found = {f"match-{method}": [(results / f"match-{method}/seed0",
                                  json.loads((results / f"match-{method}/seed0/metrics.json").read_text()))] * 2
             for method in ("cells", "ncc")}
    write_table(results, "match", found)
    with open(results / "match.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["match-cells"] * 6 + ["match-ncc"]
    assert {(row["map"], row["rotation"]) for row in rows[:6]} >= {("tile", "unknown"), ("mosaic", "unknown")}
    for row in rows:
        shares = [float(row[f"within{px}"]) for px in (1, 3, 5, 10, 20)]
        assert shares == sorted(shares) and row["seeds"] == "2" and float(row["seconds"]) >= 0
        assert float(row["failures"]) == pytest.approx(100 - shares[-1]) and float(row["auc10"]) <= shares[3]
    assert "| match-ncc | 2 | 48 | tile | known |" in (results / "match.md").read_text()
    done = script("tools/report.py", results, "--table", "match", "match-cells", "match-ncc", "--table",
                  "match-trust", "match-trust", "--data_path", tiled)
    page = (results / "report.html").read_text()
    assert done.returncode == 0 and "<td>match-ncc</td>" in page and "<th>off_map_located</th>" in page, done.stderr
    # A run that held tiles out needs no halves.
    done = script("code_Match/calibrate.py", "--run", runs["half"], "--queries", "1", *ON_CPU)
    assert done.returncode == 0 and "queries of 2 tiles" in done.stdout, done.stderr


def test_figures_of_the_field():
    queries = [Query(None, 0, 50.0, 50.0, 0.0)] * 4
    answers = [Answer(0, 50.0 + off, 50.0, 0.0, 1.0) for off in (0.0, 2.0, 4.0)] + [Answer(1, 50.0, 50.0, 0.0, 1.0)]
    line = figures(queries, answers, [(np.array([1.0, 0.0]), None)], 10.0)
    assert [line[f"within{px}"] for px in (1, 3, 5, 10, 20)] == [25, 50, 75, 75, 75] and line["failures"] == 25
    assert line["right_rmse_px"] == pytest.approx((20 / 3) ** 0.5, abs=0.01) and line["ce90_px"] is None
    assert line["auc10"] == pytest.approx(100 * (1 + 0.8 + 0.6) / 4) and line["auc3"] == pytest.approx(100 * 4 / 3 / 4,
                                                                                                       abs=0.01)
    assert line["corrected1"] == 50 and line["median_m"] == 30


def test_what_is_refused(tiled, runs, demo, tmp_path):
    (tmp_path / "old").mkdir()
    torch.save({"channels": 16, "widths": [32], "img_size": 64, "model": {}}, tmp_path / "old/weights.pt")
    torch.save({**PseudoSiamese("resnet18", pooling="grid", stages=1).settings, "img_size": 64,
                "model": PseudoSiamese("resnet18", pooling="grid", stages=1).state_dict()}, tmp_path / "grid.pt")
    for folder in ("old", "grid"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "args.json").write_text(json.dumps({"data_path": str(tiled)}))
    (tmp_path / "grid.pt").rename(tmp_path / "grid/weights.pt")
    test, calibrate = ["code_Match/test.py", "--run"], ["code_Match/calibrate.py", "--run"]
    whole, half, other, changed = (runs[name] for name in ("whole", "half", "other", "changed"))
    cases = [
        ([*test, tmp_path], "cannot be read"),
        ([*test, tmp_path / "old"], "is of a matcher for positions alone"),
        ([*test, tmp_path / "grid"], "has --pooling grid, and positions come of cells"),
        ([*test, half, "--method", "cells", "--halves", half, other], "leave it out"),
        ([*test, other, "--method", "trust"], "code_Match/calibrate.py --run"),
        ([*test, whole, "--validation"], "held no training tiles out"),
        ([*calibrate, whole], "held no training tiles out"),
        ([*calibrate, whole, "--halves", half, half], "held 4 tiles out, 2 of them different, of 4"),
        ([*calibrate, whole, "--halves", half, changed], "not trained as"),
    ]
    for command, words in cases:
        done = script(*command, *ON_CPU)
        assert done.returncode == 2 and words in done.stderr and done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_an_interrupted_test_goes_on_behind_its_last_line(tmp_path, capsys):
    """What was measured is kept, for the same command alone."""
    args = argparse.Namespace(run=tmp_path, method="ncc", queries=2, result_path=None, device="cpu", workers=2)
    Lines(tmp_path / "lines.json", args).add({"side": 100, "map": "tile", "within1": 3.0})
    again = Lines(tmp_path / "lines.json", args)
    assert again.has(side=100, map="tile") and not again.has(side=200, map="tile")
    args.workers, args.queries = 1, 3
    assert not Lines(tmp_path / "lines.json", args).lines, "another command"
    assert "side 100  map tile  within1 3.0" in capsys.readouterr().out
