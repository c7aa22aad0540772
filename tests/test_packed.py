"""A run as one file: what it holds, that it is taken where a folder is, and what is refused."""
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from conftest import ROOT, script
from scaled import load_tile_network
from shared.mapping.calibration import CALIBRATION, Calibration, load_calibration
from shared.mapping.cells import load_cell_network
from shared.model import PseudoSiamese, initialize, load_model, start_from
from shared.plumbing.embeddings import made_by
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_tensors
from shared.plumbing.packed import outputs_of
from shared.plumbing.run_files import read_settings, seconds_of
from shared.reading.raster import Reader
from shared.reading.readers import READING, readers_of_run, save_readers
from shared.reading.tones import Tones
from tools.pack import halved

CPU = torch.device("cpu")
MIB = 2 ** 20
MODELS = sorted(ROOT.glob("models/*.pt"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, demo):
    """A run as train.py and calibrate.py leave it, of a network that has learned nothing."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    torch.manual_seed(0)
    model = PseudoSiamese("resnet18", specify_num=1, pooling="cells", stages=2, input="both")
    model(torch.rand(4, 3, 32, 32))                     # batch norm has seen something
    write_tensors(folder / "weights.pt", {**model.settings, "img_size": 32, "model": model.state_dict()})
    settings = {"data_path": str(demo), "data_set": "demo", "seed": 0, "target_path": None}
    (folder / "args.json").write_text(json.dumps(settings))
    (folder / "metrics.json").write_text(json.dumps({"seconds": 7.0}))
    save_readers(folder, {"opt": Reader("opt", (3, 2, 1)), "sar": Reader("sar", (1,), "power")},
                 {"opt": Tones(), "sar": Tones()})
    Calibration(sides=[100, 200], scales=[30, 60], mean=[0] * 6, std=[1] * 6, weights=np.eye(3, 6), bias=[0, 0, 1],
                threshold=0.5, edges=[0, 0.5, 1], radii=[90, 4], texture=3, metres=8.3).save(folder / CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def packed(run):
    file = run.parent / "small.pt"
    done = script("tools/pack.py", "--run", run, "--out", file)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(file.read_bytes()).hexdigest() in done.stdout and "calibrated" in done.stdout
    return file


def test_it_is_half_as_large_and_says_the_same(run, packed, demo):
    saved = torch.load(packed, weights_only=True)
    kinds = {tensor.dtype for tensor in saved["weights.pt"]["model"].values() if tensor.ndim > 1}
    assert kinds == {torch.float16} and packed.stat().st_size < 0.6 * (run / "weights.pt").stat().st_size
    whole, half = load_model(run, CPU), load_model(packed, CPU)
    assert half[1] == whole[1] == 32 and half[0].settings == whole[0].settings
    assert {tensor.dtype for tensor in half[0].state_dict().values()} == {torch.float32, torch.int64}
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cosines = (whole[0](sar=images)[1] * half[0](sar=images)[1]).sum(1)
    assert 0.9999 < cosines.min() and not torch.equal(whole[0](sar=images)[1], half[0](sar=images)[1])
    assert load_cell_network(packed, CPU, None)[0].cell == load_cell_network(run, CPU, None)[0].cell
    assert vars(load_calibration(packed)).keys() == vars(load_calibration(run)).keys()
    assert all(np.array_equal(value, vars(load_calibration(run))[name])
               for name, value in vars(load_calibration(packed)).items())
    for is_own in (True, False):
        assert readers_of_run(packed, is_own_data=is_own) == readers_of_run(run, is_own_data=is_own)
    assert readers_of_run(packed)["sar"] == Reader("sar", [1], "power")
    assert seconds_of(packed) == 7.0 and made_by(packed)["weights"] != made_by(run)["weights"]


def test_paths_of_this_machine_stay_here(run, packed, demo):
    assert str(demo) in json.dumps(read_settings(run)) and str(demo.parent) not in json.dumps(read_settings(packed))
    assert read_settings(packed) == {**read_settings(run), "data_path": "data/demo", "crop": 200}


def test_tiles_are_seen_at_the_scale_that_it_learned_at(run, packed, demo, tmp_path):
    """Also where the data set that it learned from is not there."""
    assert load_tile_network(packed, "nowhere", CPU, None).factor == 32 / 200
    assert load_tile_network(run, demo, CPU, None).factor == 32 / 200
    with pytest.raises(InputError, match="holds no data set"):
        load_tile_network(run, tmp_path, CPU, None)


def test_scripts_take_it_by_name(run, packed, demo, tmp_path):
    for script_name, *flags in (["code_Con/test.py", "--data_path", demo],
                                ["tools/search.py", "--gallery", demo / "test/opt", "--query", demo / "test/sar"],
                                ["tools/worlds.py", "--data_path", demo, "--queries", "2", "--result_path", "world"],
                                ["code_Con/test.py", "--data_path", demo, "--result_path", "row"]):
        done = script(ROOT / script_name, "--run", packed, "--amp", "off", *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "results/small/test.json").read_text())
    row = json.loads((tmp_path / "row/metrics.json").read_text())
    assert figures["FC"] == row["FC"] and row["seconds"] == 7.0
    assert json.loads((tmp_path / "row/args.json").read_text())["run"] == str(packed)
    assert json.loads((tmp_path / "world/metrics.json").read_text())["seconds"] == 7.0
    assert (tmp_path / "search.png").is_file() and sorted(file.name for file in run.parent.iterdir()) == ["run",
                                                                                                       "small.pt"]
    again = script(ROOT / "code_Con/test.py", "--run", packed, "--data_path", demo, "--result_path", "row",
                   cwd=tmp_path)
    assert again.returncode == 0 and "row is finished" in again.stdout


def test_outputs_have_a_folder(run, packed):
    assert outputs_of(run) == run and str(outputs_of(packed)) == "results/small"


def test_others_start_from_it(run, packed):
    source, _ = load_model(packed, CPU)
    model = PseudoSiamese("resnet18", specify_num=1, pooling="cells", stages=2, input="both")
    initialize(model, packed)
    states = [network.stages_of("sar")[1].state_dict() for network in (model, source)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    start_from(model, packed)
    assert torch.equal(model.embedding[0].weight, source.embedding[0].weight)


# What is refused -----------------------------------------------------------------------------------------------------

def test_a_file_that_is_no_packed_run_is_refused(run, packed, tmp_path):
    with pytest.raises(InputError, match="weights.pt is no packed run.*or the folder of a run"):
        load_model(run / "weights.pt", CPU)
    (tmp_path / "cut.pt").write_bytes(packed.read_bytes()[:-200])
    for read in (load_calibration, readers_of_run, read_settings, lambda run: load_model(run, CPU)):
        with pytest.raises(InputError, match="cut.pt cannot be read as tensors"):
            read(tmp_path / "cut.pt")
    torch.save({"weights.pt": {}, "args.json": "{}", "run": print}, tmp_path / "code.pt")
    with pytest.raises(InputError, match="holds more than tensors"):
        load_model(tmp_path / "code.pt", CPU)


def test_what_a_run_lacks_its_file_lacks(run, tmp_path):
    bare = shutil.copytree(run, tmp_path / "bare")
    for name in (CALIBRATION, READING, "metrics.json"):
        (bare / name).unlink()
    done = script("tools/pack.py", "--run", bare, "--out", tmp_path / "bare.pt")
    assert done.returncode == 2 and "metrics.json cannot be read" in done.stderr and "Traceback" not in done.stderr
    shutil.copy(run / "metrics.json", bare)
    done = script("tools/pack.py", "--run", bare, "--out", tmp_path / "bare.pt")
    assert done.returncode == 0 and "without calibration.json" in done.stdout
    assert readers_of_run(tmp_path / "bare.pt") == readers_of_run(bare)
    with pytest.raises(InputError, match="bare.pt has no calibration.json"):
        load_calibration(tmp_path / "bare.pt")


def test_nothing_is_written_over(run, packed):
    before = packed.read_bytes()
    done = script("tools/pack.py", "--run", run, "--out", packed)
    assert done.returncode == 2 and "is there already" in done.stderr and packed.read_bytes() == before
    done = script("tools/pack.py", "--run", packed, "--out", packed.with_name("other.pt"))
    assert done.returncode == 2 and "is a file: give the folder" in done.stderr


def test_what_float16_cannot_hold_is_refused():
    state = {"a": torch.tensor([[1e5]]), "b": torch.tensor([1e5]), "c": torch.tensor(3)}
    with pytest.raises(InputError, match="^a: not finite in float16"):
        halved(state)
    assert halved({**state, "a": torch.ones(1, 1)})["b"].dtype == torch.float32


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.name)
def test_a_packed_run_is_not_calibrated(file):
    done = script("code_Match/calibrate.py", "--run", file)
    assert done.returncode == 2 and "is packed: calibrate the folder" in done.stderr
