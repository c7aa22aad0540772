"""The network that comes with the repository is what its card says."""
import hashlib
import re
import subprocess

import pytest
import torch

from conftest import ROOT
from shared.dataset import load_splits
from shared.evaluate import embed_pairs, evaluate, search
from shared.mapping.calibration import load_calibration
from shared.model import load_model
from shared.plumbing.device import autocast
from shared.plumbing.packed import unpack
from shared.plumbing.run_files import read_settings
from shared.reading.readers import readers_of_run

MODELS = sorted(ROOT.glob("models/*.pt"))
CPU = torch.device("cpu")


def card():
    """{what: said} of the card's first table."""
    text = (ROOT / "models/README.md").read_text()
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.M))


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.name)
def test_its_file_is_the_card_s(file):
    said, settings = card(), read_settings(file)
    assert f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`" == said["sha256"]
    assert said["seed, epochs"] == f"{settings['seed']}, {settings['epochs']}"
    assert settings["data_path"] == "data/S1S2align200" and not settings["validate"] and not settings["region"]
    assert file.stat().st_size <= 3 * 2 ** 20 and {*unpack(file)} >= {"args.json", "metrics.json", "calibration.json"}
    assert load_calibration(file).metres > 0


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.name)
def test_it_finds_of_the_demo_pairs_what_the_card_says(file, demo):
    model, img_size = load_model(file, CPU)
    pairs, = load_splits(demo, ("test",), img_size, 1, readers=readers_of_run(file, is_own_data=False))
    query, gallery = embed_pairs(model, pairs, CPU, autocast(CPU, "off"))
    figures = evaluate(search(query, gallery, pairs, CPU), pairs)["FC"]
    found = f"{figures['top1']:.1f} top-1, {figures['mAP']:.1f} mAP: {len(pairs)} places"
    assert card()["demo pairs"].startswith(found)


def test_no_other_binary_is_in_the_repository():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout")
    weights = re.compile(r"\.(pt|pth|onnx|npy|npz|ckpt|safetensors|bin)$")
    assert {name for name in done.stdout.splitlines() if weights.search(name)} <= {"models/sentinel.pt"}
