"""Nothing is lost: kills, signals, losses that are not finite, full disks, files that hold code."""
import argparse
import os
import shutil
import signal

import pytest
import torch

from conftest import ROOT, SMALL, Program, has_logged, script
from shared.plumbing import errors, files
from shared.plumbing.errors import InputError

FLAGS = [*SMALL, "--epochs", "4", "--channel_exchange"]


def command(demo, out, *flags):
    return [str(ROOT / "code_Adv/train.py"), "--data_path", str(demo), "--result_path", str(out), *FLAGS, *flags]


def weights(out):
    return torch.load(out / "weights.pt", weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert script(*command(demo, out)).returncode == 0
    return out


# A slow checkpoint gives the kill a moment to hit while it is being written.
SLOW = """
import os, sys, time
sys.path.insert(0, {root!r})
import shared.plumbing.files as files
real = os.fsync
def slow(descriptor):
    time.sleep(0.2)
    real(descriptor)
files.os.fsync = slow
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "moment", ["before the first checkpoint", "while a checkpoint is written", "after the second epoch"]
)
def test_a_killed_run_ends_with_the_same_weights(demo, whole, tmp_path, moment):
    out = tmp_path / "run"
    (tmp_path / "slow.py").write_text(SLOW.format(root=str(ROOT)))
    conditions = {
        "before the first checkpoint": lambda: has_logged(out, "training places"),
        "while a checkpoint is written": lambda: (out / ".checkpoint.pt.part").exists() and (
            out / "checkpoint.pt").exists(),
        "after the second epoch": lambda: has_logged(out, "epoch 2:"),
    }
    Program(tmp_path / "slow.py", *command(demo, out)).stop_when(conditions[moment])
    assert not (out / "weights.pt").exists()
    again = script(*command(demo, out))
    assert again.returncode == 0, again.stderr
    assert ("going on from epoch" in again.stdout) == (moment != "before the first checkpoint")
    assert same(weights(whole), weights(out))
    assert (out / "epochs.csv").read_text().count("\n") == 5 and not (out / "checkpoint.pt").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_says_how_to_go_on(demo, whole, tmp_path, number):
    out = tmp_path / "run"
    done = Program(*command(demo, out)).stop_when(lambda: has_logged(out, "epoch 1:"), number)
    assert done.returncode == 130 and "the same command goes on from here" in done.stdout
    assert "Traceback" not in done.stderr
    again = script(*command(demo, out))
    assert again.returncode == 0 and "going on from epoch" in again.stdout, again.stderr
    assert same(weights(whole), weights(out))


def test_fresh_starts_over(demo, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    done = script(*command(demo, out, "--fresh", "--margin", "0.7"))
    assert done.returncode == 0 and "going on" not in done.stdout
    assert not same(weights(whole), weights(out))


def test_a_loss_that_is_not_finite_names_itself_and_keeps_the_checkpoint(demo, tmp_path):
    out = tmp_path / "run"
    Program(*command(demo, out)).stop_when(
        lambda: has_logged(out, "epoch 2:") and (out / "checkpoint.pt").exists(), signal.SIGTERM)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    state["model"]["embedding.0.weight"][0] = float("nan")
    torch.save(state, out / "checkpoint.pt")
    before = (out / "checkpoint.pt").read_bytes()
    done = script(*command(demo, out))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the loss term triplet is nan in epoch" in done.stderr and f"step {state['step'] + 1}" in done.stderr
    assert (out / "checkpoint.pt").read_bytes() == before


def test_a_checkpoint_with_code_in_it_is_refused(demo, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    out = tmp_path / "run"
    done = script(*command(demo, out, "--epochs", "1"))
    assert done.returncode == 0
    for name, call in (
        ("checkpoint.pt", command(demo, out, "--epochs", "1")),
        ("weights.pt", ["code/test.py", "--run", out]),
    ):
        torch.save({"model": Evil()}, out / name)
        (out / "metrics.json").unlink(missing_ok=True)
        done = script(*call)
        assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    """/dev/full behaves as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    file = tmp_path / "checkpoint.pt"
    files.write_tensors(file, {"a": torch.ones(3)})
    (tmp_path / "checkpoint.pt.part").write_text("the user's")
    os.symlink("/dev/full", tmp_path / ".checkpoint.pt.part")
    with pytest.raises(
        InputError,
        match="checkpoint.pt cannot be written .No space left on device.; what was there before is untouched",
    ):
        files.write_tensors(file, {"a": torch.zeros(3)})
    assert torch.equal(files.load_tensors(file, "x")["a"], torch.ones(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "checkpoint.pt.part"], "nothing stays"
    assert (tmp_path / "checkpoint.pt.part").read_text() == "the user's"


def test_a_results_folder_that_cannot_be_made(demo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "file/run", *SMALL)
    assert done.returncode == 2 and "cannot be made" in done.stderr and "Traceback" not in done.stderr


def test_out_of_memory_names_the_batch_size_to_try(capsys):
    def main(args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    with pytest.raises(SystemExit) as caught:
        errors.run_script(main, lambda: argparse.Namespace(batch_size=24))
    assert caught.value.code == 2 and "try --batch_size 12" in capsys.readouterr().err
