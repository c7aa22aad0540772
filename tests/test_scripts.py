"""Every script from end to end on the demo pairs, as a user calls it."""
import json
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, SMALL, script


def train(folder, data, out, *flags):
    done = script(f"{folder}/train.py", "--data_path", data, "--result_path", out, *SMALL, *flags)
    assert done.returncode == 0, done.stderr
    return done


def weights(out):
    return torch.load(out / "weights.pt", weights_only=True)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def baseline(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "baseline"
    train("code", demo, out)
    return out


def test_the_baseline_trains_and_its_test_gives_the_same_figures(demo, baseline):
    assert {file.name for file in baseline.iterdir()} == {
        "args.json", "log.txt", "epochs.csv", "weights.pt", "metrics.json", "reading.json", "retrieval.json",
    }
    epochs = (baseline / "epochs.csv").read_text().splitlines()
    assert len(epochs) == 3 and epochs[0].startswith("epoch,lr,triplet,seconds,FC_top1")
    tested = script("code/test.py", "--run", baseline)
    assert tested.returncode == 0, tested.stderr
    assert "12 queries, 12 places in the gallery, 0 of them distractors" in tested.stdout
    metrics, test = (
        json.loads((baseline / "metrics.json").read_text()),
        json.loads((baseline / "test.json").read_text()),
    )
    assert {f: metrics[f] for f in ("FC", "POOL5")} == {f: test[f] for f in ("FC", "POOL5")}
    (baseline / "test.json").unlink()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(demo, baseline, tmp_path):
    train("code", demo, tmp_path / "again", "--workers", "1")
    assert same(weights(baseline), weights(tmp_path / "again"))
    train("code", demo, tmp_path / "other", "--seed", "1")
    assert not same(weights(baseline), weights(tmp_path / "other"))


@pytest.mark.parametrize("folder, flags", [
    ("code", ["--init"]), ("code_Aux", ["--channel_exchange", "--init"]), ("code_Adv", ["--init"]),
    ("code_Con", ["--init"]), ("code_SAN", ["--stages", "5", "--init"]),
    ("code_Adapt", ["--target_region", "left", "--tone_pairs", "1", "--start"]),
    ("code_ARN", ["--target_region", "left", "--start"]),
])
def test_weights_that_are_not_there_are_told_before_the_data_are_read(demo, tmp_path, folder, flags):
    data = shutil.copytree(demo, tmp_path / "data")
    (data / "train/opt/0000.png").write_bytes(b"no image")
    out = tmp_path / "out"
    done = script(f"{folder}/train.py", "--data_path", data, "--result_path", out, *SMALL, *flags, "none.pt")
    assert done.returncode == 2 and f"{flags[-1]} none.pt" in done.stderr and "0000" not in done.stderr, done.stderr


def test_the_critic_does_not_move_the_model_but_its_loss_does(demo, baseline, tmp_path):
    train("code_Adv", demo, tmp_path / "none", "--lambda_adv", "0")
    assert same(weights(baseline), weights(tmp_path / "none"))
    train("code_Adv", demo, tmp_path / "some", "--lambda_adv", "1")
    assert not same(weights(baseline), weights(tmp_path / "some"))


def test_a_critic_of_no_weight_is_not_trained(demo, tmp_path):
    """With --lambda_adv 0 it ends as it began, and costs nothing; with a weight it learns."""
    program = "import sys; sys.path.insert(0, {!r}); from shared import critics; critics.critic_step = print"
    program = program.format(str(ROOT))
    program += "; import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = ["-c", program, "code_Adv/train.py", "--data_path", demo, *SMALL, "--epochs", "1", "--result_path"]
    off = script(*command, tmp_path / "off", "--lambda_adv", "0")
    assert off.returncode == 0 and "WassersteinCritic" not in off.stdout, off.stderr
    assert (tmp_path / "off/epochs.csv").read_text().startswith("epoch,lr,triplet,seconds,")
    on = script(*command, tmp_path / "on")
    assert on.returncode != 0 and "WassersteinCritic" in on.stdout, "the step that is watched is the one that is taken"


def test_a_modal_loss_is_recorded_and_moves_the_model_by_its_weight(demo, baseline, tmp_path):
    off = ["--modal_loss", "mmd", "--lambda_adv", "0", "--lambda_modal"]
    train("code_Adv", demo, tmp_path / "none", *off, "0")
    assert same(weights(baseline), weights(tmp_path / "none"))
    assert (tmp_path / "none/epochs.csv").read_text().startswith("epoch,lr,triplet,modal,seconds,")
    train("code_Adv", demo, tmp_path / "some", *off, "1")
    assert not same(weights(baseline), weights(tmp_path / "some"))


def test_what_each_query_found_adds_up_to_the_metrics(demo, baseline):
    metrics, found = (json.loads((baseline / name).read_text()) for name in ("metrics.json", "retrieval.json"))
    assert found["query"] == found["truth"] and len(set(found["query"])) == 12
    for feature in ("FC", "POOL5"):
        top1, ap, rank, answers = (found[feature][name] for name in ("top1", "ap", "rank", "answers"))
        assert sum(top1) / 12 * 100 == pytest.approx(metrics[feature]["top1"]) and sum(ap) / 12 * 100 == pytest.approx(
            metrics[feature]["mAP"]
        )
        for truth, first, place, five in zip(found["truth"], top1, rank, answers):
            names, scores = zip(*five)
            assert len(five) == 5 and sorted(scores, reverse=True) == list(scores)
            assert (first == 1) == (place == 1) == (names[0] == truth)
            if truth in names:
                assert names.index(truth) + 1 == place


@pytest.mark.parametrize(
    "folder, flags, tested_by",
    [
        ("code_Aux", [], "code_Aux"),
        ("code_Aux", ["--guided_filter"], "code_Aux"),
        ("code_Aux", ["--filter", "guided-by-other"], "code_Aux"),
        ("code_Adv", ["--channel_exchange", "--guided_filter", "--specify_num", "3"], "code_Adv"),
        ("code_Aux", ["--pooling", "grid", "--layer4_stride", "2", "--symmetries"], "code_Aux"),
        ("code_Adv", "--adv classifier --modal_loss coral --no_normalize --optim adamw".split(), "code_Adv"),
    ],
)
def test_each_method_trains_and_tests(demo, tmp_path, folder, flags, tested_by):
    done = train(folder, demo, tmp_path / "run", "--stages", "5", *flags, "--epochs", "1")
    assert "FC: top-1: " in done.stdout and "POOL5: top-1: " in done.stdout
    args = json.loads((tmp_path / "run/args.json").read_text())
    if folder == "code_Aux" and "--pooling" not in flags:
        expected = {"--guided_filter": "guided", "--filter": "guided-by-other"}.get(flags[0] if flags else None)
        assert (args["channel_exchange"], args["filter"]) == (expected is None, expected)
    tested = script(f"{tested_by}/test.py", "--run", tmp_path / "run")
    assert tested.returncode == 0 and tested.stdout.splitlines()[-1] in done.stdout


def test_a_finished_run_is_not_trained_again_nor_mixed_with_another(demo, baseline):
    before = (baseline / "weights.pt").stat().st_mtime_ns
    again = train("code", demo, baseline)
    assert "is finished" in again.stdout and "FC: top-1" in again.stdout
    other = script("code/train.py", "--data_path", demo, "--result_path", baseline, *SMALL, "--margin", "0.7")
    assert other.returncode == 2 and "margin 0.5 there, 0.7 here" in other.stderr and "--fresh" in other.stderr
    assert (baseline / "weights.pt").stat().st_mtime_ns == before


def test_a_flag_that_a_run_did_not_know_had_its_default(demo, baseline, tmp_path):
    """args.json from before a flag existed: the same command is the same run."""
    out = shutil.copytree(baseline, tmp_path / "run")
    theirs = json.loads((out / "args.json").read_text())
    for name in ("margin", "symmetries", "pooling", "init"):
        del theirs[name]
    (out / "args.json").write_text(json.dumps(theirs))
    other = script("code/train.py", "--data_path", demo, "--result_path", out, *SMALL, "--margin", "0.7")
    assert other.returncode == 2 and "margin 0.5 there, 0.7 here" in other.stderr
    assert "init imagenet there, none here" in other.stderr and "pooling" not in other.stderr
    (out / "args.json").write_text(json.dumps({**theirs, "init": "none"}))
    assert "is finished" in train("code", demo, out).stdout


def test_validation_never_reads_the_test_split(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "demo")
    shutil.rmtree(tmp_path / "demo/test")
    train("code", tmp_path / "demo", tmp_path / "run", "--validate", "0.25")
    assert json.loads((tmp_path / "run/metrics.json").read_text())["evaluated_on"] == "validation"


@pytest.mark.parametrize("flags, words", [
    (["--data_path", "nowhere"], "--data_path nowhere: there is no such folder"),
    (["--arch", "resnet19"], "resnet19: choose one of resnet18"),
    (["--epochs", "0"], "0 is not above 0"),
    (["--batch_size", "25"], "--batch_size 25: choose 2 to 24"),
    (["--init", "nowhere.pth"], "--init nowhere.pth: there is no such file or folder; give one, or one of none"),
    (["--device", "quantum"], "--device quantum cannot be used here"),
    (["--specify_num", "6"], "invalid choice: 6"),
    (["--learning_rate", "1"], "unrecognized arguments: --learning_rate"),
])
def test_bad_flags_end_with_one_sentence_and_status_2(demo, tmp_path, flags, words):
    done = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, *flags)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert "epoch 1" not in done.stdout


def test_a_mistake_does_not_take_the_folder(demo, tmp_path):
    wrong = script(
        "code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--batch_size", "25"
    )
    assert wrong.returncode == 2
    train("code", demo, tmp_path / "run", "--epochs", "1")


def test_a_run_that_is_none_or_of_another_architecture(demo, baseline, tmp_path):
    nothing = script("code/test.py", "--run", tmp_path)
    assert nothing.returncode == 2 and "holds no run" in nothing.stderr
    saved = torch.load(baseline / "weights.pt", weights_only=True)
    torch.save({**saved, "arch": "resnet34"}, tmp_path / "weights.pt")
    shutil.copy(baseline / "args.json", tmp_path)
    other = script("code/test.py", "--run", tmp_path)
    assert other.returncode == 2 and "does not hold a resnet34" in other.stderr
    torch.save(saved["model"], tmp_path / "weights.pt")
    strange = script("code/test.py", "--run", tmp_path)
    assert (
        strange.returncode == 2 and "is not what a run writes" in strange.stderr and "Traceback" not in strange.stderr
    )


def test_a_network_that_gives_nan_is_an_error_not_a_score(demo, baseline, tmp_path):
    out = shutil.copytree(baseline, tmp_path / "run")
    saved = torch.load(out / "weights.pt", weights_only=True)
    saved["model"]["embedding.1.running_var"][0] = -1.0
    torch.save(saved, out / "weights.pt")
    done = script("code/test.py", "--run", out)
    assert (
        done.returncode == 2
        and "FC vectors cannot be evaluated (12 of 12 query embeddings hold NaN" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_pythons_own_code_module_stays_importable():
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import code, pdb; print(code.InteractiveConsole.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "InteractiveConsole", done.stderr


def test_a_collapse_is_said_in_the_log(demo, baseline, tmp_path):
    # Distances far below the margin: the loss stands at it.
    stuck = [
        "--lr", "0", "--lr_head", "0", "--margin", "1e6", "--epochs", "5",
    ]
    train("code", demo, tmp_path / "run", *stuck)
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("have collapsed;") == 2, "when it is seen, and at the end"
    assert log.count("try a lower --lr\n") == 2 and "--schedule" not in log, "the schedule is cosine already"
    assert "have collapsed" not in (baseline / "log.txt").read_text()
