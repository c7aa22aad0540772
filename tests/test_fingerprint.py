"""A run knows its data by the names and sizes of the images, not by the name of a folder."""
import json
import shutil

import pytest
import torch

from shared import options
from shared.finished_run import FinishedRun, asked_of, is_tested
from shared.plumbing.errors import InputError
from shared.reading.fingerprint import fingerprint, fingerprints
from shared.run import Run
from test_dataset import make_data

METRICS = {"FC": {"top1": 50.0, "mAP": 60.0}, "seconds": 1.0}


def open_run(folder, data, *flags):
    parser = options.training("")
    return Run(parser.parse_args(["--data_path", str(data), "--result_path", str(folder), *map(str, flags)]), __file__)


def finish(folder):
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "weights.pt").write_bytes(b"weights")
    return folder


def settings_of(folder):
    return json.loads((folder / "args.json").read_text())


def test_it_is_names_and_sizes(tmp_path):
    data = make_data(tmp_path / "d")
    first = fingerprint(data, "train")
    assert first.startswith("12 files, 0 names left out, ") and first != fingerprint(data, "test")
    for name in (".DS_Store", "._p01.png", "Thumbs.db", "notes.txt"):
        (data / "train/opt" / name).write_bytes(b"left by a desktop")
    (data / "train/opt/p01.png").touch()
    assert fingerprint(data, "train") == first
    (data / "leave_out.csv").write_text("split,id,reason\ntest,p01,x\n")
    assert fingerprint(data, "train") == first and "1 names left out" in fingerprint(data, "test")
    content = (data / "train/opt/p01.png").read_bytes()
    (data / "train/opt/p01.png").write_bytes(content + b"\0")
    other = fingerprint(data, "train")
    assert other != first
    (data / "train/opt/p01.png").rename(data / "train/opt/p77.png")
    assert fingerprint(data, "train") not in (first, other)


def test_the_other_layouts_have_one_too(tmp_path):
    for folder, size in (("a", 8), ("b", 9)):
        (tmp_path / folder).mkdir()
        for modality in ("opt", "sar"):
            torch.save(torch.full((4, 3, 8, 8), size), tmp_path / folder / f"{modality}_ori_train.pt")
            images = tmp_path / f"cmpc_{folder}/train/imgs" / modality
            images.mkdir(parents=True)
            (images / "x.tif").write_bytes(b"." * size)
    for a, b in (("a", "b"), ("cmpc_a", "cmpc_b")):
        one, other = fingerprint(tmp_path / a, "train"), fingerprint(tmp_path / b, "train")
        assert one.startswith("2 files") and other.startswith("2 files") and one != other


def test_names_and_sizes_may_be_the_same(tmp_path):
    """Crops that are not compressed."""
    first, second = make_data(tmp_path / "a"), make_data(tmp_path / "b", seed=1)
    files = [sorted((data / "train/opt").iterdir()) for data in (first, second)]
    assert [(a.name, a.stat().st_size) for a in files[0]] == [(b.name, b.stat().st_size) for b in files[1]]
    assert fingerprint(first, "train") != fingerprint(second, "train")


def test_a_link_that_leads_nowhere_is_left_to_the_reader(tmp_path):
    data = make_data(tmp_path / "d")
    whole = fingerprint(data, "train")
    (data / "train/opt/p00.png").unlink()
    (data / "train/opt/p00.png").symlink_to(tmp_path / "nowhere.png")
    assert fingerprint(data, "train").startswith("12 files") and fingerprint(data, "train") != whole


def test_what_is_not_read_does_not_count(tmp_path):
    data = make_data(tmp_path / "d")
    before = fingerprints(data, validate=0.2)
    shutil.rmtree(data / "test")
    assert fingerprints(data, validate=0.2) == before and list(before) == ["train"]
    with pytest.raises(InputError, match="there is no such folder"):
        fingerprints(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["metrics.json", "checkpoint.pt"])
def test_another_data_set_of_the_same_name_is_refused(tmp_path, file):
    first, second = make_data(tmp_path / "a/patches"), make_data(tmp_path / "b/patches", seed=1)
    open_run(tmp_path / "run", first)
    (tmp_path / "run" / file).write_text(json.dumps(METRICS))
    before = (tmp_path / "run/args.json").read_bytes()
    with pytest.raises(InputError) as caught:
        open_run(tmp_path / "run", second)
    text = str(caught.value)
    assert f"train images of {first} there (12 files" in text and f"of {second} here (12 files" in text
    assert "test images of" in text and "--fresh" in text and (tmp_path / "run/args.json").read_bytes() == before
    assert open_run(tmp_path / "run", first).finished == (file == "metrics.json")
    assert not open_run(tmp_path / "run", second, "--fresh").finished and settings_of(tmp_path / "run")["data_path"] \
        == str(second)


def test_a_data_set_that_was_moved_is_the_same(tmp_path, capsys):
    data, target = make_data(tmp_path / "a/patches"), make_data(tmp_path / "a/target", seed=1)
    open_run(tmp_path / "run", data, "--target_path", target)
    finish(tmp_path / "run")
    shutil.move(tmp_path / "a", tmp_path / "b")
    run = open_run(tmp_path / "run", tmp_path / "b/patches", "--target_path", tmp_path / "b/target")
    assert run.finished and "FC: top-1: 50.00%" in capsys.readouterr().out
    settings = settings_of(tmp_path / "run")
    assert settings["data_path"] == str(tmp_path / "b/patches"), "where test.py looks for it"
    assert settings["target_path"] == str(tmp_path / "b/target")


def test_another_target_is_refused(tmp_path):
    data, target = make_data(tmp_path / "a/patches"), make_data(tmp_path / "a/target", seed=1)
    other = make_data(tmp_path / "b/target", seed=2)
    open_run(tmp_path / "run", data, "--target_path", target)
    finish(tmp_path / "run")
    with pytest.raises(InputError, match=f"target test images of {target} there .*, of {other} here"):
        open_run(tmp_path / "run", data, "--target_path", other)
    with pytest.raises(InputError, match=r"target test images of .* there .*, of None here \(none\)"):
        open_run(tmp_path / "run", data)


def test_a_run_of_before_has_its_data_sets_name(tmp_path):
    data, other = make_data(tmp_path / "a/patches"), make_data(tmp_path / "b/others")
    open_run(tmp_path / "run", data)
    settings = settings_of(tmp_path / "run")
    del settings["data"]
    old = json.dumps({**settings, "data_set": "patches", "data_path": "/elsewhere/patches"})
    (tmp_path / "run/args.json").write_text(old)
    (tmp_path / "run/checkpoint.pt").write_text("")
    with pytest.raises(InputError, match="data_set patches there, others here"):
        open_run(tmp_path / "run", other)
    finish(tmp_path / "run")
    assert open_run(tmp_path / "run", data).finished
    assert (tmp_path / "run/args.json").read_text() == old, "what it saw is not known: it is not named anew"
    (tmp_path / "run/metrics.json").unlink()
    assert not open_run(tmp_path / "run", data).finished
    assert settings_of(tmp_path / "run")["data"] == fingerprints(data), "an unfinished one goes on with this"


# Rows of tests -------------------------------------------------------------------------------------------------------

def test_a_tested_row_of_other_figures_is_refused(tmp_path, capsys):
    data, other = make_data(tmp_path / "a/patches"), make_data(tmp_path / "b/patches", seed=1)
    finish(open_run(tmp_path / "run", data).folder)
    row = tmp_path / "row"
    row.mkdir()
    finish(row)
    tested = {**settings_of(tmp_path / "run"), "tta": "flip", "run": str(tmp_path / "run"),
              "tested_data": fingerprint(data, "test")}
    (row / "args.json").write_text(json.dumps(tested))

    def test_again(*flags):
        words = ["--run", tmp_path / "run", "--result_path", row, "--tta", "flip", *flags]
        return FinishedRun(options.testing("").parse_args([str(word) for word in words])).tested

    assert test_again() and "is finished" in capsys.readouterr().out
    with pytest.raises(InputError, match="tta flip there, none here"):
        test_again("--tta", "none")
    with pytest.raises(InputError, match=f"test images of {data} there .*, of {other} here"):
        test_again("--data_path", other)
    shutil.copytree(tmp_path / "run", tmp_path / "another")
    with pytest.raises(InputError, match="run .*/run there, .*/another here"):
        test_again("--run", tmp_path / "another")


def test_a_row_knows_every_flag_that_its_figures_depend_on(tmp_path, monkeypatch):
    """Another way to search, other regions: what stands there is not printed as what was asked for."""
    data = make_data(tmp_path / "data")
    run = open_run(tmp_path / "run", data)
    finish(run.folder)

    def parse(*flags):
        parser = options.testing("")
        parser.add_argument("--querybank", action="store_true")
        words = ["--run", run.folder, "--result_path", tmp_path / "row", *flags]
        return parser.parse_args([str(word) for word in words])

    (tmp_path / "row").mkdir()
    row = finish(tmp_path / "row")
    settings = {**settings_of(run.folder), "target_region": ["a"], "run": str(run.folder)}
    (run.folder / "args.json").write_text(json.dumps(settings))
    (row / "args.json").write_text(json.dumps({**settings, "asked": {**asked_of(parse()), "regions": ["a"]}}))
    assert FinishedRun(parse()).tested and FinishedRun(parse("--device", "cpu", "--workers", "1")).tested
    with pytest.raises(InputError, match="querybank False there, True here"):
        FinishedRun(parse("--querybank"))
    with pytest.raises(InputError, match=r"regions \['a'\] there, None here"):
        FinishedRun(parse("--data_path", data))
    kept = (run.folder / "weights.pt").read_bytes()
    (run.folder / "weights.pt").write_bytes(b"trained anew")
    with pytest.raises(InputError, match="by weights that .*/run no longer has"):
        FinishedRun(parse())
    (run.folder / "weights.pt").write_bytes(kept)
    monkeypatch.setattr("sys.argv", ["tools/worlds.py"])
    with pytest.raises(InputError, match="test .* there, tools/worlds.py here"):
        FinishedRun(parse())
    (run.folder / "log.txt").write_text("epoch 1")
    with pytest.raises(InputError, match="run holds a run, and no figures of a test"):
        FinishedRun(parse("--result_path", run.folder))


@pytest.mark.parametrize("name, text, reason", [
    ("log.txt", "epoch 1", "holds a run, and no figures of a test"),
    ("args.json", '{"mine": 1}', "holds an args.json that no test has written"),
    (None, "", "is a file: give a folder")])
def test_what_is_no_rows_folder_is_left_as_it_is(tmp_path, name, text, reason):
    """A training that was stopped, or files of the user's."""
    row = tmp_path / "row"
    if name:
        row.mkdir()
    file = row / name if name else row
    file.write_text(text)
    with pytest.raises(InputError, match=reason):
        is_tested(row)
    assert file.read_text() == text


def test_the_loss_terms_of_a_checkpoint_go_to_the_runs_device(tmp_path, monkeypatch):
    """As a run that was stopped within an epoch goes on, on CUDA; meta stands for any device that is not the CPU."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    data = make_data(tmp_path / "data")
    run = open_run(tmp_path / "run", data)
    run.resume()
    run.record(triplet=torch.tensor(1.0))
    run.save()
    run.device = torch.device("meta")
    run.resume()
    assert [term.device.type for step in run.terms for term in step.values()] == ["meta"]
