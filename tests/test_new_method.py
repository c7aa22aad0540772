"""The promise that a new method edits its folder and a table, nothing else: a made-up one that needs all there is.

Its own flags; the numbers of a batch's places; feature maps; extra modules, checkpointed and left out at test time;
pretraining without evaluation, and --init with a finished run; a row that needs another row's run; a second data set
without pairs; its own way to search; one call for the optimiser's step; a table of its own.
"""
import csv
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
import torch

from conftest import ROOT, WITHOUT_CUDA, copy_checkout, run_sh, script

ROWS = """\
# A made-up method.
row memory-drawn code_Memory --pretrain
row memory code_Memory --init @memory-drawn --unpaired_path {target} --lambda_memory 0.2
test_row memory-turned code_Memory memory --first 3
"""
EPOCHS, PLACES = 4, 24
# Without AMP, so that runs of one and of two sittings are the same on every processor.
SMALL = f"--stages 3 --img_size 32 --batch_size 8 --epochs {EPOCHS} --amp off"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, demo):
    """A copy of the repository with one folder more, and a table of its rows."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout") / "repository")
    before = contents(folder)
    shutil.copytree(ROOT / "tests/new_method/code_Memory", folder / "code_Memory")
    (folder / "tables/memory.sh").write_text(ROWS.format(target=demo))
    yield folder
    changed = {file for file, content in contents(folder).items() if before.get(file) != content}
    own = {"tables/memory.sh", *(f"code_Memory/{name}.py" for name in ("train", "test", "exemplars"))}
    assert changed == own, "no other folder was edited"


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files
            if file.relative_to(folder).parts[0] != "results"}


def test_a_new_method_is_a_folder_and_the_lines_of_a_table(checkout, demo, forked):
    run = checkout / "results/demo/memory/seed0"
    settings = {"DATA_PATH": str(demo), "FLAGS": SMALL}
    environment = {**os.environ, **WITHOUT_CUDA, "PYTHON": str(forked), **settings, "TABLES": "memory"}
    process = subprocess.Popen(["bash", checkout / "run.sh"], env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while not ((run / "log.txt").is_file() and "epoch 2:" in (run / "log.txt").read_text()):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)                # run.sh and what it runs, in the middle of the second row
    process.communicate()
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert {"model", "memory", "decoder", "optimizer", "schedule"} <= state.keys() and not (run / "weights.pt").exists()

    again = run_sh(checkout, forked, **settings, ROWS="memory-turned")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "memory-drawn/seed0 is finished" in again.stdout, "the row that the row that is asked for starts from"
    assert "going on from epoch" in again.stdout
    drawn = checkout / "results/demo/memory-drawn/seed0"
    assert json.loads((drawn / "metrics.json").read_text())["evaluated_on"] == "nothing"
    assert "embed" not in (drawn / "log.txt").read_text() and not (drawn / "retrieval.json").exists()

    # One sitting gives the same, bit for bit, and its decoder and memory are not in what is tested.
    whole = checkout / "results/whole"
    done = script("code_Memory/train.py", "--data_path", demo, "--result_path", whole, "--recipe", "cpu", "--init",
                  drawn, "--unpaired_path", demo, "--lambda_memory", "0.2", *SMALL.split(), "--device", "cpu",
                  cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert f"{PLACES} training places; 12 optical and 12 SAR images without pairs" in done.stdout
    one, other = (torch.load(folder / "weights.pt", weights_only=True)["model"] for folder in (run, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not any("decoder" in name or "memory" in name for name in one)
    assert json.loads((run / "args.json").read_text())["lambda_memory"] == 0.2
    header = (run / "epochs.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,lr,drawn,triplet,memory,spread,seconds,FC_top1")

    # The table, the report, and the other table, which is not touched by it.
    with open(checkout / "results/demo/memory.csv") as file:
        lines = [(line["row"], line["feature"], float(line["top1"])) for line in csv.DictReader(file)]
    assert [line[:2] for line in lines] == [("memory", "FC"), ("memory", "POOL5"), ("memory-turned", "FC turned round")]
    assert not (checkout / "results/demo/table.md").exists(), "no row of the ablation is finished"
    first, turned = (json.loads((checkout / f"results/demo/{row}/seed0/retrieval.json").read_text())
                     for row in ("memory", "memory-turned"))
    for answers, turned_round in zip(first["FC"]["answers"], turned["FC turned round"]["answers"]):
        expected = [name for name, _ in answers]
        assert [name for name, _ in turned_round] == [*expected[:3][::-1], *expected[3:]]
    page = (checkout / "results/demo/report.html").read_text()
    assert "<td>memory-turned</td><td>FC turned round</td>" in page


def test_tables_and_rows_are_asked_for_by_name(checkout, demo, forked):
    def refused(**settings):
        done = run_sh(checkout, forked, DATA_PATH=str(demo), **settings)
        assert done.returncode == 2 and "==" not in done.stdout
        return done.stderr

    message = refused(TABLES="memory absent")
    assert "TABLES names absent, but run.sh has the tables ablation" in message and " memory " in message
    text = (checkout / "tables/memory.sh").read_text()
    (checkout / "tables/memory.sh").write_text(text.replace("--init @memory-drawn", "--init @absent"))
    try:
        assert "row memory starts from absent, but run.sh has no such row" in refused(ROWS="memory")
    finally:
        (checkout / "tables/memory.sh").write_text(text)
