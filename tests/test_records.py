"""tools/record.py, and that what the pages print is what the records hold."""
import json

import pytest

from conftest import script
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
    none = script("tools/record.py", "--run", tmp_path, tmp_path / "none", *words)
    assert none.returncode == 2 and f"{tmp_path}, {tmp_path / 'none'}" in none.stderr


@pytest.mark.parametrize("text, kept", [
    ('"data_path": "/home/a/S1S2"', '"data_path": "S1S2"'), ("/tmp/a+b/seed0: cpu, bfloat16", "seed0: cpu, bfloat16"),
    ("../x/y ~/data/z", "y z"), ("2 / 3 of a/b, 1/2", "2 / 3 of a/b, 1/2"), ("http://a.org/b", "http://a.org/b")])
def test_of_a_path_the_last_part_is_kept(text, kept):
    assert without_paths(text) == kept
