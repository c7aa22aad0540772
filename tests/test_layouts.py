"""The same pairs in every layout give the same metrics, and each layout says what is wrong with it."""
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from shared.dataset import load_splits
from shared.evaluate import embed_pairs, evaluate, search
from shared.model import PseudoSiamese
from shared.plumbing.device import autocast
from shared.plumbing.errors import InputError


def stack(folder):
    return torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in sorted(folder.iterdir())])


def as_tensors(demo, out, convert):
    out.mkdir()
    for split in ("train", "test"):
        for modality in ("opt", "sar"):
            torch.save(convert(stack(demo / split / modality)), out / f"{modality}_ori_{split}.pt")
    return out


def as_cmpc(demo, out):
    for split in ("train", "test"):
        for modality in ("opt", "sar"):
            images, notes = out / split / "imgs" / modality, out / split / "annotations" / modality
            images.mkdir(parents=True)
            notes.mkdir(parents=True)
            for i, file in enumerate(sorted((demo / split / modality).iterdir())):
                shutil.copy(file, images / f"{modality}_{i:03d}.png")
                (notes / f"{i:03d}.json").write_text(
                    json.dumps({"id": i, "pos": {"x": 100.0 * i, "y": 5.0}, "file_path": f"{modality}_{i:03d}.png"})
                )
    return out


@pytest.fixture(scope="module")
def layouts(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {
        "folders": demo,
        "SN6-CMPC": as_cmpc(demo, folder / "cmpc"),
        "uint8, N 3 H W": as_tensors(demo, folder / "a", lambda x: x.permute(0, 3, 1, 2).contiguous()),
        "uint8, N H W 3": as_tensors(demo, folder / "b", lambda x: x),
        "float, 0 to 1": as_tensors(demo, folder / "c", lambda x: x.permute(0, 3, 1, 2) / 255),
        "float, 0 to 255": as_tensors(demo, folder / "d", lambda x: x.float()),
    }


def test_all_layouts_give_the_same_metrics(layouts):
    torch.manual_seed(0)
    model = PseudoSiamese("resnet18").eval()
    found = {}
    for name, root in layouts.items():
        train, test = load_splits(root, ("train", "test"), 48, 2)
        assert len(train) == 24 and len(test) == 12
        cpu = torch.device("cpu")
        query, gallery = embed_pairs(model, test, cpu, autocast(cpu, "off"))
        metrics = evaluate(search(query, gallery, test, cpu), test)
        assert ("distance" in metrics) == (name == "SN6-CMPC"), "only this layout holds positions"
        found[name] = {feature: metrics[feature] for feature in ("FC", "POOL5")}
    # CMPC's names come in another order, and a mean in another order differs in its last digit.
    for metrics in found.values():
        for feature, figures in found["folders"].items():
            assert metrics[feature] == pytest.approx(figures, rel=1e-12)


def test_cmpc_several_sar_files_of_one_id(layouts, tmp_path):
    root = shutil.copytree(layouts["SN6-CMPC"], tmp_path / "cmpc")
    note = json.loads((root / "test/annotations/sar/003.json").read_text())
    (root / "test/annotations/sar/003b.json").write_text(json.dumps({**note, "file_path": "sar_004.png"}))
    _, test = load_splits(root, ("train", "test"), 16, 2)
    assert test.sar_place.bincount()[test.names.index("3")] == 2 and len(test.sar) == 13
    assert test.positions[test.names.index("11")].tolist() == [1100.0, 5.0]


def test_cmpc_faults_are_named(layouts, tmp_path):
    root = shutil.copytree(layouts["SN6-CMPC"], tmp_path / "cmpc")
    (root / "train/annotations/opt/000.json").write_text('{"id": "x"')
    (root / "train/imgs/sar/sar_001.png").unlink()
    note = (root / "test/annotations/opt/000.json").read_text()
    (root / "test/annotations/opt/001.json").write_text(note)
    with pytest.raises(InputError) as caught:
        load_splits(root, ("train", "test"), 16, 2)
    text = str(caught.value)
    assert (
        "000.json: not an annotation" in text
        and "sar_001.png, which is not there" in text
        and "has the same id 0" in text
    )


def test_tensor_faults_are_named(layouts, tmp_path):
    root = shutil.copytree(layouts["uint8, N H W 3"], tmp_path / "tensors")
    torch.save(torch.randn(4, 3, 8, 8), root / "opt_ori_train.pt")
    torch.save({"a": print}, root / "sar_ori_train.pt")
    torch.save(torch.zeros(4, 8, 8), root / "opt_ori_test.pt")
    (root / "sar_ori_test.pt").unlink()
    with pytest.raises(InputError) as caught:
        load_splits(root, ("train", "test"), 16, 2)
    text = str(caught.value)
    for words in (
        "opt_ori_train.pt: values from -",
        "sar_ori_train.pt cannot be read as tensors",
        "opt_ori_test.pt: (4, 8, 8); expected",
        "there is no file",
    ):
        assert words in text, text


def test_positions_come_from_pairs_csv(demo, tmp_path):
    root = shutil.copytree(demo, tmp_path / "demo")
    (root / "pairs.csv").write_text("split,id,region,x_m,y_m\ntest,0003,north,10.5,-2\ntest,0004,north,,\n")
    _, test = load_splits(root, ("train", "test"), 16, 2)
    assert test.positions[3].tolist() == [10.5, -2] and test.positions[4].isnan().all()
    (root / "pairs.csv").write_text("name\n0003\n")
    with pytest.raises(InputError, match="columns split and id"):
        load_splits(root, ("train", "test"), 16, 2)
