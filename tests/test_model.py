"""The network: its stages, its poolings, and what --init takes."""
import functools
import re
import runpy
import urllib.error

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from conftest import ROOT
from shared import options
from shared.model import CELL_DIM, PseudoSiamese, build_model, embedding_width, initialize, load_model
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_tensors


@pytest.mark.parametrize("specify_num", range(6))
def test_the_first_stages_exist_once_for_each_modality(specify_num):
    model = PseudoSiamese("resnet18", specify_num)
    opt = {name for name, p in model.named_parameters() if reaches(model, p, opt=torch.rand(2, 3, 32, 32))}
    sar = {name for name, p in model.named_parameters() if reaches(model, p, sar=torch.rand(2, 3, 32, 32))}
    shared = opt & sar
    resnet = torchvision.models.resnet18()
    stages = [[resnet.conv1, resnet.bn1], [resnet.layer1], [resnet.layer2], [resnet.layer3], [resnet.layer4]]
    count = [sum(len(list(m.parameters())) for m in stage) for stage in stages]
    assert len(shared) == sum(count[specify_num:]) + 3, (
        "the later stages and the embedding (one weight, BatchNorm's two)"
    )
    assert len(opt - shared) == len(sar - shared) == sum(count[:specify_num])
    assert opt | sar == {name for name, _ in model.named_parameters()}


def reaches(model, parameter, **images):
    """Whether a parameter takes part in the forward pass of these images."""
    if not hasattr(model, "_used") or model._used[0] is not list(images)[0]:
        model.zero_grad()
        pool5, fc, _ = model(**images)
        (pool5.sum() + (fc * torch.randn_like(fc)).sum()).backward()
        model._used = (list(images)[0], {id(p) for p in model.parameters() if p.grad is not None})
    return id(parameter) in model._used[1]


@pytest.mark.parametrize("arch, channels", [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_layer4_keeps_its_resolution(arch, channels):
    model = PseudoSiamese(arch).eval()
    sizes = []
    for stage in model.shared_stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        pool5, fc, _ = model(torch.rand(1, 3, 64, 64))
    assert [s[1] for s in sizes] == [16, 16, 8, 4, 4]
    assert sizes[-1][0] == channels and pool5.shape == (1, channels) and fc.shape == (1, 512)


def test_pool5_is_the_normalised_global_maximum():
    model = PseudoSiamese("resnet18").eval()
    maps = []
    model.shared_stages[-1].register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        pool5, fc, _ = model(torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64))
        expected = torch.nn.functional.normalize(maps[0].flatten(2).max(2).values)
    assert torch.allclose(pool5, expected, atol=1e-6)
    assert torch.allclose(fc.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("arch, stages, channels, side", [("resnet18", 3, 128, 8), ("resnet18", 4, 256, 4),
                                                          ("resnet50", 3, 512, 8), ("resnet18", 1, 64, 16)])
def test_cells_embed_each_cell_of_the_last_stage_by_one_matrix(arch, stages, channels, side):
    torch.manual_seed(0)
    model = PseudoSiamese(arch, 1, pooling="cells", stages=stages).eval()
    assert len(model.stages_of("opt")) == len(model.stages_of("sar")) == stages
    with torch.no_grad():
        pool5, fc, maps = model(torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64), with_maps=True)
        assert len(maps) == stages and maps[-1].shape == (3, channels, side, side)
        assert fc.shape == (3, CELL_DIM * side * side) == (3, embedding_width(model, 64))
        assert pool5.shape == (3, model.pool5_dim) == (3, 9 * channels)
        matrix, norm = model.embedding[0].weight[:, :, 0, 0], model.embedding[1]
        by_hand = torch.empty(3, CELL_DIM, side, side)
        for row in range(side):
            for column in range(side):
                by_hand[:, :, row, column] = maps[-1][:, :, row, column] @ matrix.T
        by_hand = by_hand / (norm.running_var.view(1, -1, 1, 1) + norm.eps).sqrt()      # new: mean 0, weight 1
        assert torch.allclose(fc, torch.nn.functional.normalize(by_hand.flatten(1)), atol=1e-4)


def test_cells_know_where_things_are():
    torch.manual_seed(0)
    maps = torch.randn(2, 128, 8, 8)
    model = PseudoSiamese("resnet18", pooling="cells", stages=3).eval()
    with torch.no_grad():
        one, moved = model.embedding(maps).flatten(1), model.embedding(maps.roll(1, 3)).flatten(1)
    assert not torch.allclose(one, moved, atol=1e-2)
    assert torch.allclose(one.view(2, CELL_DIM, 8, 8).roll(1, 3), moved.view(2, CELL_DIM, 8, 8), atol=1e-5)


def test_stages_that_do_not_exist_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="choose 0 to 3"):
        PseudoSiamese("resnet18", 4, stages=3)
    with pytest.raises(ValueError, match="choose 1 to 5"):
        PseudoSiamese("resnet18", stages=6)
    finished(tmp_path / "run", stages=3, specify_num=1)
    with pytest.raises(InputError, match="has 3 stages: give --stages 3"):
        initialize(PseudoSiamese("resnet18", 1), str(tmp_path / "run"))
    shorter = PseudoSiamese("resnet18", 1, stages=2)
    initialize(shorter, str(tmp_path / "run"))
    assert len(shorter.stages_of("sar")) == 2
    args = options.training("").parse_args(["--data_path", "x", "--stages", "2", "--specify_num", "3"])
    with pytest.raises(InputError, match="--specify_num 3: there are 2 stages"):
        build_model(args, torch.device("cpu"))


def test_both_copies_start_alike_and_learn_apart():
    model = PseudoSiamese("resnet18", 3).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(opt=images).fc, model(sar=images).fc)
    pool5, fc, _ = model(images, images)
    assert torch.allclose(fc[:2], model(opt=images).fc, atol=1e-6), "together or apart, the optical rows first"
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(opt=images).fc[:, 0].sum().backward()
    optimizer.step()
    model.eval()
    assert not torch.allclose(model(opt=images).fc, model(sar=images).fc)


def test_normalisation_is_imagenets_or_none():
    images = torch.rand(2, 3, 32, 32)
    with_it, without = PseudoSiamese("resnet18").eval(), PseudoSiamese("resnet18", normalize=False).eval()
    without.load_state_dict(with_it.state_dict())
    by_hand = torchvision.transforms.functional.normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(with_it(images)[0], without(by_hand)[0], atol=1e-5)
    assert not torch.allclose(with_it(images)[0], without(images)[0], atol=1e-3)


def test_init_from_a_state_dict_fills_both_copies(tmp_path):
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "r18.pth")
    model = PseudoSiamese("resnet18", 2)
    initialize(model, tmp_path / "r18.pth")
    assert torch.equal(model.opt_stages[0][0].weight, resnet.conv1.weight)
    assert torch.equal(model.sar_stages[0][0].weight, resnet.conv1.weight)
    assert torch.equal(model.opt_stages[1][1].conv2.weight, resnet.layer1[1].conv2.weight)
    assert torch.equal(model.shared_stages[-1][0].downsample[0].weight, resnet.layer4[0].downsample[0].weight)


@functools.cache
def official(arch="resnet18"):
    """What torchvision's official files hold: every weight, fc.* included, and no num_batches_tracked."""
    torch.manual_seed(3)
    state = getattr(torchvision.models, arch)().state_dict()
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def is_filled(model, state):
    first, last = model.opt_stages[0][0].weight, model.shared_stages[-1][-1].bn2.running_var
    return torch.equal(first, state["conv1.weight"]) and torch.equal(last, state["layer4.1.bn2.running_var"])


def test_init_imagenet_takes_the_official_files(monkeypatch, tmp_path, capsys):
    state = {**official(), "layer4.1.bn2.running_var": torch.rand(512)}
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **how: dict(state))
    model = PseudoSiamese("resnet18", 2)
    initialize(model, "imagenet")
    assert is_filled(model, state)
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    model = PseudoSiamese("resnet18", 2)
    initialize(model, tmp_path / "resnet18-f37072fd.pth")
    assert is_filled(model, state) and capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def resnet34():
    return PseudoSiamese("resnet34")


@pytest.mark.parametrize("wrappers, prefix, said", [
    ([], "module.", "under the prefix 'module.'"),
    ([], "_orig_mod.", "under the prefix '_orig_mod.'"),
    ([], "backbone.", "under the prefix 'backbone.'"),
    ([], "encoder.", "under the prefix 'encoder.'"),
    ([], "module._orig_mod.backbone.", "under the prefix 'module._orig_mod.backbone.'"),
    (["state_dict"], "", "inside 'state_dict'"),
    (["model"], "", "inside 'model'"),
    (["model", "state_dict"], "module.encoder.", "inside 'state_dict', inside 'model', under the prefix 'module.enc"),
])
def test_init_unwraps_a_checkpoint_and_says_so(tmp_path, capsys, resnet34, wrappers, prefix, said):
    state = official()
    file = {f"{prefix}{name}": value for name, value in state.items()}
    file["head.projector.weight"] = torch.ones(2, 2)
    for name in wrappers:
        file = {name: file, "epoch": 3, "optimizer": {0: torch.ones(1)}}
    torch.save(file, tmp_path / "checkpoint.pth")
    model = PseudoSiamese("resnet18", 2)
    initialize(model, tmp_path / "checkpoint.pth")
    out = capsys.readouterr().out
    assert is_filled(model, state) and said in out and out.count("\n") == 1
    with pytest.raises(InputError, match="does not hold the weights of a torchvision resnet34: give the --arch"):
        initialize(resnet34, tmp_path / "checkpoint.pth")


@pytest.mark.parametrize("theirs, ours", [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("resnet50", "resnet34")])
def test_init_from_another_architecture_is_one_sentence(tmp_path, theirs, ours):
    torch.save(official(theirs), tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"does not hold the weights of a torchvision {ours}: give the --arch"):
        initialize(PseudoSiamese(ours), tmp_path / "weights.pth")


def test_init_from_two_networks_in_one_file_is_refused(tmp_path):
    both = {f"{name}.{key}": value for name in ("student", "teacher") for key, value in official().items()}
    torch.save(both, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="several networks .'student.', 'teacher.'.: give a file with one"):
        initialize(PseudoSiamese("resnet18"), tmp_path / "weights.pth")


def test_a_run_is_loaded_in_evaluation_mode(tmp_path):
    finished(tmp_path / "run")
    model, img_size = load_model(tmp_path / "run", torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(opt=torch.rand(1, 3, img_size, img_size))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_is_loaded_without_drawing_random_weights(tmp_path):
    """But not where training goes on from it: the same seed gives the same weights as ever."""
    finished(tmp_path / "run", stages=2)
    model = PseudoSiamese("resnet18", stages=2)
    drawn = {}
    for name, load in (("nothing", lambda: None), ("--run", lambda: load_model(tmp_path / "run", torch.device("cpu"))),
                       ("--init", lambda: initialize(model, tmp_path / "run"))):
        torch.manual_seed(5)
        load()
        drawn[name] = torch.rand(1).item()
    assert drawn["--run"] == drawn["nothing"] != drawn["--init"]


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    finished(tmp_path / "run")
    state = torch.load(tmp_path / "run/weights.pt", weights_only=True)
    state["model"]["embedding.0.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "run/weights.pt")
    with pytest.raises(InputError, match="weights that are not numbers"):
        load_model(tmp_path / "run", torch.device("cpu"))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(InputError, match="cannot be read as tensors: it is damaged"):
        load_model(tmp_path / "text.pt", torch.device("cpu"))


def test_the_notebook_of_the_documents_embeds_two_images(tmp_path, monkeypatch):
    block, = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.S)
    (tmp_path / "notebook.py").write_text(block)
    (tmp_path / "results").mkdir()
    model = finished(tmp_path / "results/NAME", specify_num=2).eval()
    array = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for name, image in zip(("opt", "sar"), array):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("notebook.py")
    opt, sar = torch.from_numpy(array).permute(0, 3, 1, 2).float().div(255).split(1)
    with torch.no_grad():
        expected = model(opt=opt).fc @ model(sar=sar).fc.T
    assert names["score"] == pytest.approx(expected.item(), abs=1e-5) and -1 <= names["score"] < 0.999


@pytest.mark.parametrize("arch, specify_num", [("resnet18", 0), ("resnet18", 2), ("resnet34", 5), ("resnet50", 1)])
def test_maps_are_those_of_the_five_stages(arch, specify_num):
    torch.manual_seed(0)
    model = PseudoSiamese(arch, specify_num, layer4_stride=2).eval()
    opt, sar = torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        pool5, fc, maps = model(opt, sar, with_maps=True)
        expected, x = [], {"opt": (opt - model.mean) / model.std, "sar": (sar - model.mean) / model.std}
        for number in range(5):
            x = {modality: model.stages_of(modality)[number](images) for modality, images in x.items()}
            expected.append(torch.cat([x["opt"], x["sar"]]))
        alone = model(opt, sar)
    assert [m.shape[2] for m in maps] == [16, 16, 8, 4, 2] and all(len(m) == 3 for m in maps)
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * max(1, theirs.abs().max()))
    assert torch.allclose(pool5, torch.nn.functional.normalize(maps[-1].amax((2, 3))), atol=1e-6)
    assert torch.equal(alone[0], pool5) and torch.equal(alone[1], fc)


def finished(folder, **settings):
    """A finished run with random weights; returns its model."""
    model = PseudoSiamese("resnet18", **settings)
    for buffer in model.buffers():
        if buffer.ndim == 1:
            buffer.uniform_(0.5, 1.5)                     # the statistics of BatchNorm, which belong to the backbone
    for sar, opt in zip(model.sar_stages.parameters(), model.opt_stages.parameters()):
        sar.data.add_(0.1 + 0 * opt.data)                 # the two copies have learned apart
    folder.mkdir()
    write_tensors(folder / "weights.pt", {**model.settings, "img_size": 32, "model": model.state_dict()})
    return model


@pytest.mark.parametrize("theirs, ours", [(0, 0), (0, 2), (2, 2), (2, 4), (1, 5)])
def test_init_from_a_run_takes_exactly_its_backbone(tmp_path, theirs, ours):
    source = finished(tmp_path / "run", specify_num=theirs, pooling="grid")
    model = PseudoSiamese("resnet18", ours, pooling="avg")
    embedding = {name: value.clone() for name, value in model.embedding.state_dict().items()}
    initialize(model, str(tmp_path / "run"))
    for modality in ("opt", "sar"):
        for stage, other in zip(model.stages_of(modality), source.stages_of(modality), strict=True):
            state, expected = stage.state_dict(), other.state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert all(torch.equal(embedding[name], value) for name, value in model.embedding.state_dict().items())


def test_init_from_a_run_says_what_is_wrong(tmp_path):
    finished(tmp_path / "run", specify_num=2)
    with pytest.raises(InputError, match="give --specify_num 2 or more"):
        initialize(PseudoSiamese("resnet18", 1), tmp_path / "run")
    with pytest.raises(InputError, match="give --arch resnet18"):
        initialize(PseudoSiamese("resnet34", 2), tmp_path / "run")
    (tmp_path / "begun").mkdir()
    with pytest.raises(InputError, match="--init .*begun holds no run"):
        initialize(PseudoSiamese("resnet18"), tmp_path / "begun")
    (tmp_path / "begun/args.json").write_text("{}")
    with pytest.raises(InputError, match="an unfinished run: the command that began it goes on"):
        initialize(PseudoSiamese("resnet18"), tmp_path / "begun")
    with pytest.raises(InputError, match="is a run's weights.pt: give the folder of the run"):
        initialize(PseudoSiamese("resnet18"), tmp_path / "run/weights.pt")


def test_init_says_what_is_wrong(tmp_path, monkeypatch):
    model = PseudoSiamese("resnet18")
    with pytest.raises(InputError, match="nothing.pth: there is no such file or folder; give one, .*lite0"):
        initialize(model, tmp_path / "nothing.pth")
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    with pytest.raises(InputError, match="resnet18"):
        initialize(model, tmp_path / "r34.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "r34.pth").read_bytes()[:1000])
    with pytest.raises(InputError, match="half.pth"):
        initialize(model, tmp_path / "half.pth")
    torch.save(print, tmp_path / "code.pth")
    with pytest.raises(InputError, match="code.pth"):
        initialize(model, tmp_path / "code.pth")

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="--init none.*--init FILE"):
        initialize(model, "imagenet")
