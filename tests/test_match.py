"""code_Match as programs: training, killed and gone on with; its table; the tiles that it reads."""
import argparse
import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from conftest import ROOT, Program, script
from shared.lines import Lines
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_rows
from tiles import load_tiles
from test_matcher import ground
from tools.results import write_table

TINY = ["--img_size", "64", "--query", "32", "--batch_size", "2", "--validate", "0.5", "--device", "cpu",
        "--amp", "off"]


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
    assert (len(kept), len(held_out)) == (2, 1) and kept.windows(64, 10).describe().startswith("10 training places")
    with pytest.raises(InputError, match="smaller"):
        train.windows(200, 10)
    (root / "test_tiles/sar/d.png").write_bytes(b"")
    (root / "test_tiles/sar/e.png").unlink()
    with pytest.raises(InputError, match="(?s)e is not there in both.*d.png") as problems:
        load_tiles(root, "test", 2)
    assert "2 problem(s)" in str(problems.value)
    (root / "tiles.csv").write_text("split,tile,left\ntrain,b,1\n")
    with pytest.raises(InputError, match="tile b has no number"):
        load_tiles(root, "train", 2)


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


def test_trained_killed_and_gone_on_with(tiled, tmp_path):
    def command(out):
        return [str(ROOT / "code_Match/train.py"), "--data_path", str(tiled), "--result_path", str(out), *TINY,
                "--epochs", "20"]

    whole = script(*command(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    Program(*command(tmp_path / "killed")).stop_when((tmp_path / "killed/checkpoint.pt").exists)
    assert not (tmp_path / "killed/calibration.json").exists(), "killed in the middle"
    again = script(*command(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    first, second = (torch.load(tmp_path / name / "weights.pt", weights_only=True)["model"]
                     for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = [(tmp_path / name / "calibration.json").read_text() for name in ("whole", "killed")]
    assert kept[0] == kept[1] and json.loads(kept[0])["metres"] == 10
    with open(tmp_path / "whole/epochs.csv") as file:
        losses = [float(row["position"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]

    # A run whose calibration alone is missing makes that, and nothing else.
    (tmp_path / "whole/calibration.json").unlink()
    third = script(*command(tmp_path / "whole"))
    assert third.returncode == 0 and (tmp_path / "whole/calibration.json").read_text() == kept[0]

    results = tmp_path / "results/tiled"
    for method in ("matcher", "structure", "ncc", "trust"):
        row = results / f"match-{method}/seed0"
        done = script("code_Match/test.py", "--run", tmp_path / "whole", "--method", method, "--sides", "32",
                      "--queries", "2", "--result_path", row, "--device", "cpu", "--amp", "off")
        assert done.returncode == 0, done.stderr
        lines = json.loads((row / "metrics.json").read_text())["lines"]
        assert lines[0]["side"] == 32 and lines[0]["queries"] == 4
    runs = {f"match-{method}": [(results / f"match-{method}/seed0",
                                 json.loads((results / f"match-{method}/seed0/metrics.json").read_text()))] * 2
            for method in ("matcher", "ncc")}
    write_table(results, "match", runs)
    with open(results / "match.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["match-matcher"] * 5 + ["match-ncc"]
    assert {(row["map"], row["rotation"]) for row in rows[:5]} >= {("tile", "unknown"), ("mosaic", "known")}
    for row in rows:
        shares = [float(row[f"within{px}"]) for px in (1, 3, 5, 10, 20)]
        assert shares == sorted(shares) and row["seeds"] == "2" and float(row["seconds"]) >= 0
    assert "| match-ncc | 2 | 32 | tile | known |" in (results / "match.md").read_text()
    done = script("tools/report.py", results, "--table", "match", "match-matcher", "match-ncc", "--table",
                  "match-trust", "match-trust", "--data_path", tiled)
    page = (results / "report.html").read_text()
    assert done.returncode == 0 and "<td>match-ncc</td>" in page and "<th>off_map_located</th>" in page, done.stderr


def test_what_is_refused(tiled, tmp_path):
    cases = [
        (["code_Match/train.py", "--data_path", tiled, "--query", "100"], "--query 100: choose a multiple of 16"),
        (["code_Match/train.py", "--data_path", tiled, "--validate", "0.25"], "1 tile(s) held out"),
        (["code_Match/train.py", "--data_path", tiled, "--validate", "0"], "--validate 0: a matcher is calibrated"),
        (["code_Match/test.py", "--run", tmp_path], "cannot be read"),
        (["code_Match/test.py", "--run", tmp_path, "--method", "graph"], "starts from retrieval: give --retrieval"),
    ]
    for command, words in cases:
        done = script(*command)
        assert done.returncode == 2 and words in done.stderr and done.stderr.startswith("error: "), done.stderr


def test_an_interrupted_test_goes_on_behind_its_last_line(tmp_path, capsys):
    """What was measured is kept, for the same command alone."""
    args = argparse.Namespace(run=tmp_path, method="ncc", queries=2, result_path=None, device="cpu", workers=2)
    Lines(tmp_path / "lines.json", args).add({"side": 100, "map": "tile", "within1": 3.0})
    again = Lines(tmp_path / "lines.json", args)
    assert again.has(side=100, map="tile") and not again.has(side=200, map="tile")
    args.workers, args.queries = 1, 3
    assert not Lines(tmp_path / "lines.json", args).lines, "another command"
    assert "side 100  map tile  within1 3.0" in capsys.readouterr().out
