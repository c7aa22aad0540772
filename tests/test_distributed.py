"""Two processes on the CPU: the same loss and gradients as one, one log, and no hang when one of them dies."""
import json
import os
import subprocess
import sys
import time
from functools import partial

import numpy
import pytest
import torch

from conftest import ROOT, SMALL, WITHOUT_CUDA, script

WORKER = """
import sys
sys.path.insert(0, {root!r})
import torch
import torch.nn.functional as F
from shared.critics import CRITICS, critic_step
from shared.losses import cross_modal_triplet
from shared.plumbing import distributed

out, places = sys.argv[1], 8
distributed.start(torch.device("cpu"))
for kinds in (2, 4):
    torch.manual_seed(0)
    inputs = torch.randn(kinds, places, 24)                      # every process draws the same and takes its share
    layer = torch.nn.Linear(24, 16)
    critic = CRITICS["wasserstein"](dim=16)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    network = distributed.parallelize(layer, torch.device("cpu"))
    mine = inputs[:, distributed.share(places)].flatten(0, 1).requires_grad_()
    fc = distributed.gather(F.normalize(network(mine)), kinds)
    critic_step(critic, optimizer, fc.chunk(kinds)[0], fc.chunk(kinds)[kinds // 2])
    loss = cross_modal_triplet(fc, kinds, 0.5) + critic.model_loss(fc.chunk(kinds)[0], fc.chunk(kinds)[kinds // 2])
    loss.backward()
    rows = distributed.gather_shares(torch.arange(7.0).view(7, 1)[distributed.share(7)], torch.device("cpu"))
    norm = torch.nn.BatchNorm1d(24)                             # each keeps the averages of its own share
    norm(inputs[:, distributed.share(places)].flatten(0, 1).detach() + distributed.rank())
    own = norm.running_mean.clone(), norm.running_var.clone()
    distributed.average_batchnorm(torch.nn.Sequential(torch.nn.Linear(2, 2), norm))
    stop = distributed.any_process(distributed.rank() == 1, torch.device("cpu"))
    state = {{"loss": loss.detach(), "weight": layer.weight.grad, "fc": fc.detach(), "critic": critic.state_dict()}}
    averages = {{"own": own, "averaged": (norm.running_mean, norm.running_var)}}
    file = f"{{out}}/{{kinds}}_{{distributed.world_size()}}_{{distributed.rank()}}.pt"
    torch.save({{**state, **averages, "rows": rows, "stop": stop}}, file)
distributed.stop()
"""


def torchrun(processes, *arguments, launcher, python=None):
    """Run a script on so many processes, of the launcher's Python or of another. launcher: this Python, or `forked`."""
    program = "from torch.distributed.run import main; main()"
    return subprocess.run(
        [launcher, "-c", program, "--standalone", f"--nproc_per_node={processes}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **WITHOUT_CUDA, "PYTHON_EXEC": str(python or launcher)},
    )


@pytest.fixture(scope="module")
def halves(tmp_path_factory, forked):
    """What the worker left: {kinds of images}_{processes}_{rank}.pt."""
    folder = tmp_path_factory.mktemp("halves")
    (folder / "worker.py").write_text(WORKER.format(root=str(ROOT)))
    worker = [folder / "worker.py", folder]
    for done in (script(*worker), torchrun(2, *worker, launcher=forked)):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kinds", [2, 4])
def test_two_halves_give_the_loss_and_gradients_of_the_whole(halves, kinds):
    one = torch.load(halves / f"{kinds}_1_0.pt")
    for rank in (0, 1):
        two = torch.load(halves / f"{kinds}_2_{rank}.pt")
        for name in ("loss", "fc", "weight"):
            assert torch.allclose(one[name], two[name], atol=1e-5), name
        assert all(torch.equal(one["critic"][name], two["critic"][name]) for name in one["critic"]), (
            "the critics stay alike"
        )
        assert two["rows"].flatten().tolist() == list(range(7)) and two["stop"]
    assert one["weight"].abs().sum() > 0
    assert all(torch.equal(own, same) for own, same in zip(one["own"], one["averaged"]))
    first, second = (torch.load(halves / f"{kinds}_2_{rank}.pt") for rank in (0, 1))
    for i in (0, 1):
        mean = (first["own"][i] + second["own"][i]) / 2
        assert not torch.allclose(first["own"][i], second["own"][i], atol=1e-3)
        assert torch.allclose(first["averaged"][i], mean) and torch.equal(first["averaged"][i], second["averaged"][i])


def test_a_script_trains_on_two_processes_and_tests_alike(demo, forked, tmp_path):
    out = tmp_path / "run"
    done = torchrun(
        2, "code_Adv/train.py", "--data_path", demo, "--result_path", out, *SMALL, "--channel_exchange", "--amp", "off",
        launcher=forked, python=sys.executable,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1:") == 1 and "cpu x 2" in done.stdout, "one process speaks"
    assert (out / "epochs.csv").read_text().count("\n") == 3
    # In float32: in bf16 the rounding depends on how many images are embedded at once.
    embeddings = []
    # Without --, torchrun would take --run for its own.
    for call in (script, partial(torchrun, 2, "--", launcher=forked)):
        tested = call("code_Adv/test.py", "--run", out, "--amp", "off", "--device", "cpu", "--save_embeddings")
        assert tested.returncode == 0 and tested.stdout.count("FC: top-1") == 1, tested.stderr
        metrics, test = (json.loads((out / name).read_text()) for name in ("metrics.json", "test.json"))
        for feature in ("FC", "POOL5"):
            assert metrics[feature] == pytest.approx(test[feature], abs=1e-6), "the run's figures are its weights'"
        embeddings.append({file.name: numpy.load(file) for file in (out / "embeddings").glob("*.npy")})
    assert sorted(embeddings[0]) == ["opt_FC.npy", "opt_POOL5.npy", "sar_FC.npy", "sar_POOL5.npy"]
    for name, array in embeddings[0].items():
        assert array.shape == (12, 512 if "FC" in name else 128)
        assert numpy.allclose(array, embeddings[1][name], atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_an_error(demo, forked, tmp_path):
    done = torchrun(
        2, "code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--batch_size", "7",
        launcher=forked,
    )
    assert done.returncode != 0 and "choose a multiple of 2" in done.stderr


def test_a_process_that_dies_ends_the_run_with_its_reason(demo, forked, tmp_path):
    (tmp_path / "dies.py").write_text(f"""
import os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import shared.run
if os.environ["RANK"] == "1":
    record = shared.run.Run.record
    def dies(self, **terms):
        raise RuntimeError("the second process dies here")
    shared.run.Run.record = dies
runpy.run_path({str(ROOT / 'code/train.py')!r}, run_name="__main__")
""")
    start = time.monotonic()
    done = torchrun(
        2, tmp_path / "dies.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--epochs", "50",
        launcher=forked,
    )
    assert done.returncode != 0 and "the second process dies here" in done.stderr
    assert time.monotonic() - start < 120 and not (tmp_path / "run/weights.pt").exists()
    assert os.path.exists(tmp_path / "run/args.json")
