"""A run as ONNX gives the numbers that it gives in torch."""
import importlib.util
import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from shared.model import PseudoSiamese, load_model
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_tensors
from shared.structure import structure, structure_of_any_size
from tools.bench import load_script

EXPORT = load_script(ROOT / "tools/export.py")
IS_THERE = all(importlib.util.find_spec(name) for name in ("onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not IS_THERE, reason="requirements-optional.txt is not installed")


def make_run(folder, arch="resnet18", **settings):
    folder.mkdir()
    torch.manual_seed(0)
    settings = {"specify_num": 1, "pooling": "cells", "stages": 1, "input": "both", **settings}
    model = PseudoSiamese(arch, **settings)
    for parameter in model.sar_stages.parameters():     # they begin as the optical ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    model(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))         # batch norm has seen something
    write_tensors(folder / "weights.pt", {**model.settings, "img_size": 64, "model": model.state_dict()})
    return folder


def export(run, out):
    """tools/export.py, called here: what it imports takes longer than what it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export.py", "--run", str(run), "--out", str(out)])
        EXPORT.main(EXPORT.arguments())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, and its files in onnx/ beside it."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run")
    export(run, run.parent / "onnx")
    return run


@needs_onnx
def test_its_files_give_what_the_run_gives_at_any_size(run):
    import onnxruntime
    model, _ = load_model(run, torch.device("cpu"))
    images = torch.rand(3, 3, 77, 180, generator=torch.Generator().manual_seed(5))
    answers = {}
    for modality in ("sar", "opt"):
        session = onnxruntime.InferenceSession(run.parent / f"onnx/run_{modality}.onnx")
        fc, answers[modality] = session.run(["fc", "cells"], {"images": images.numpy()})
        with torch.no_grad():
            assert np.abs(fc - model(**{modality: images}).fc.numpy()).max() < 1e-5
            assert np.abs(answers[modality] - model.cells(**{modality: images}).numpy()).max() < 1e-4
    assert np.abs(answers["sar"] - answers["opt"]).max() > 1e-2, "each modality has a first stage of its own"


@needs_onnx
def test_a_file_that_differs_is_not_written(run, tmp_path, monkeypatch):
    other = (run.parent / "onnx/run_opt.onnx").read_bytes()
    monkeypatch.setattr(EXPORT, "exported", lambda network: other)
    with pytest.raises(InputError, match="run_sar.onnx: onnxruntime differs from torch by"):
        export(run, tmp_path)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "run_opt.onnx").write_text("mine")
    with pytest.raises(InputError, match="run_opt.onnx: there already"):
        export(run, tmp_path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_structure_of_any_size_is_structure():
    for size in ((2, 3, 40, 33), (1, 3, 7, 120)):
        images = torch.rand(*size, generator=torch.Generator().manual_seed(1))
        assert (structure(images) - structure_of_any_size(images)).abs().max() < 1e-5


@needs_onnx
def test_what_has_no_such_form_is_refused(tmp_path):
    with pytest.raises(InputError, match="has --pooling grid"):
        export(make_run(tmp_path / "grid", pooling="grid"), tmp_path / "out")
    with pytest.raises(InputError, match="lite0, whose padding depends on the image's size"):
        export(make_run(tmp_path / "lite0", "timm:tf_efficientnet_lite0", input="rgb"), tmp_path / "out")


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="onnxruntime.* is not installed: .*-m pip install -r .*optional.txt"):
        export("x", "y")
