# For every train.py and test.py.
"""The pseudo-siamese network: the first stages of a backbone once for each modality, the rest shared."""
import copy
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from shared.backbones import PACKAGES, TIMM, build_backbone, keep_resolution, published_weights
from shared.plumbing import distributed
from shared.plumbing.depthwise import use_float32_depthwise
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors
from shared.plumbing.packed import WEIGHTS, is_packed, require_run, unpack
from shared.plumbing.small_maps import use_small_map_convolutions
from shared.plumbing.unfilled import Unfilled
from shared.structure import ORIENTATIONS, structure

# --input: which channels of the first convolution see what.
INPUTS = {
    "rgb": {"image": slice(0, 3)},
    "structure": {"structure": slice(0, ORIENTATIONS)},
    "both": {"structure": slice(0, ORIENTATIONS), "image": slice(ORIENTATIONS, ORIENTATIONS + 3)},
}
POOLINGS = ("max", "avg", "grid", "cells")
GRID = 3
CELL_DIM = 16
WRAPPERS = ("state_dict", "model")                      # of a checkpoint: what a state dict lies under


class Embedded(NamedTuple):
    """What a network makes of N images.

    pool5: (N, pool5_dim: 2048 for resnet50, else 512; ten times as many with the grid), float32, L2-normalised.
    fc: (N, 512; with cells CELL_DIM x h x w of the last maps), float32, L2-normalised.
    maps: of the stages, each (N, c, h, w) in the precision of the forward pass, where they were asked for, else none. A
    resnet18 of 96 px gives 64 x 24 x 24, 64 x 24 x 24, 128 x 12 x 12, 256 x 6 x 6 and, at layer4_stride 1, 512 x 6 x 6.
    """
    pool5: torch.Tensor
    fc: torch.Tensor
    maps: list[torch.Tensor]


class PseudoSiamese(nn.Module):
    """A backbone in five stages, of which the first `specify_num` exist once for each modality.

    arch: as shared/backbones.py has them, a ResNet or one of timm's. specify_num: 0 (all shared) to `stages` (nothing
    but the embedding is shared). normalize: subtract the mean and divide by the standard deviation with which the
    backbone's published weights were trained, a ResNet's on ImageNet. Both copies of a stage start from the same
    weights. layer4_stride: of the last stage; 1 keeps its resolution, 2 is the network's. stages: how many there are, 1
    to 5.
    pooling: what makes the POOL5 vector of the last stage's maps, and what the embedding sees. max and avg: over the
    whole image. grid: the average in each cell of a 3 x 3 grid, one after the other, then the maximum of the whole, so
    that the vector knows where things are: both images of a pair show the same ground, and the layout is a part of what
    tells a place. cells: POOL5 is those averages, and the embedding CELL_DIM numbers of each cell of the maps, by one
    matrix for all cells, one after the other; it sees what is where and has little to learn by heart.
    input: what the first convolution sees, of INPUTS. rgb: the image. structure: oriented gradients of the grey image
    (shared/structure.py). both: these and then the image, 12 channels.
    """

    def __init__(self, arch="resnet50", specify_num=0, embedding_dim=512, normalize=True, pooling="max",
                 layer4_stride=1, stages=5, input="rgb"):
        super().__init__()
        if not 1 <= stages <= 5:
            raise ValueError(f"stages {stages}: choose 1 to 5")
        if not 0 <= specify_num <= stages:
            raise ValueError(f"specify_num {specify_num}: choose 0 to {stages}, the number of stages")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if input not in INPUTS:
            raise ValueError(f"input {input!r}: choose one of {', '.join(INPUTS)}")
        self.settings = {"arch": arch, "specify_num": specify_num, "embedding_dim": embedding_dim,
                         "normalize": normalize, "pooling": pooling, "layer4_stride": layer4_stride, "stages": stages,
                         "input": input}
        backbone = build_backbone(arch, max(kind.stop for kind in INPUTS[input].values()))
        if layer4_stride == 1 and stages == 5:
            keep_resolution(arch, backbone)
        kept, channels = backbone.stages[:stages], backbone.channels[stages - 1]
        self.opt_stages = nn.ModuleList(kept[:specify_num])
        self.sar_stages = copy.deepcopy(self.opt_stages)
        self.shared_stages = nn.ModuleList(kept[specify_num:])
        self.pool5_dim = channels * {"grid": GRID ** 2 + 1, "cells": GRID ** 2}.get(pooling, 1)
        if pooling == "cells":
            self.embedding = nn.Sequential(nn.Conv2d(channels, CELL_DIM, 1, bias=False), nn.BatchNorm2d(CELL_DIM))
        else:
            self.embedding = nn.Sequential(nn.Linear(self.pool5_dim, embedding_dim, bias=False),
                                           nn.BatchNorm1d(embedding_dim))
        mean, std = (backbone.mean, backbone.std) if normalize else ((0.0,) * 3, (1.0,) * 3)
        # timm's are kept with the weights: another version of it may have others.
        is_kept = arch.startswith(TIMM)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=is_kept)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=is_kept)

    def forward(self, opt=None, sar=None, with_maps=False):
        """Embed optical images, SAR images or both.

        opt: (B, 3, H, W), sar: (C, 3, H, W), float32 in [0, 1]; either may be left out. With six channels the last
        three are what is shown in the image's place (shared/views.py), and the first three are what structure is of.
        with_maps: give the maps of the stages, too. Returns an Embedded, the optical rows first.
        """
        inputs = (opt, self.opt_stages), (sar, self.sar_stages)
        own = [self._own_maps(images, stages) for images, stages in inputs if images is not None]
        if with_maps:
            maps = [torch.cat(both) for both in zip(*own)]            # (B + C) x c x h x w, the images themselves first
        else:
            maps = [torch.cat([maps[-1] for maps in own])]
        for stage in self.shared_stages:
            maps.append(stage(maps[-1]))
        pool5 = self.pool(maps[-1])                                   # (B + C) x 2048
        if self.settings["pooling"] == "cells":
            fc = self.embedding(maps[-1]).flatten(1)                  # (B + C) x 16hw
        else:
            fc = self.embedding(pool5)                                # (B + C) x 512
        return Embedded(F.normalize(pool5.float()), F.normalize(fc.float()), maps[1:] if with_maps else [])

    def cells(self, opt=None, sar=None):
        """What makes fc, where pooling is `cells`, before it is one vector: (B + C, CELL_DIM, h, w) float32.

        Arguments: forward's.
        """
        maps = self(opt, sar, with_maps=True).maps
        return self.embedding(maps[-1]).float()

    def _own_maps(self, images, stages):
        """The input that the images of one modality give, and what each of its own stages makes of it."""
        x = self._input(images)
        maps = [x.contiguous(memory_format=torch.channels_last)]
        for stage in stages:
            maps.append(stage(maps[-1]))
        return maps

    def _input(self, images):
        """What the first convolution sees of images (B, 3, H, W), or of (B, 6, H, W): shown otherwise than they are."""
        kinds, channels = INPUTS[self.settings["input"]], []
        if "structure" in kinds:
            channels.append(structure(images[:, :3]))
        if "image" in kinds:
            channels.append((images[:, -3:] - self.mean) / self.std)
        return torch.cat(channels, 1) if len(channels) > 1 else channels[0]

    def pool(self, x):
        """Maps (B, c, h, w) to vectors: (B, c), with the grid (B, 10c), with cells (B, 9c)."""
        if self.settings["pooling"] == "max":
            return x.amax((2, 3))
        if self.settings["pooling"] == "avg":
            return x.mean((2, 3))
        averages = F.adaptive_avg_pool2d(x, GRID).flatten(1)
        return averages if self.settings["pooling"] == "cells" else torch.cat([averages, x.amax((2, 3))], 1)

    def backbone_parameters(self):
        """All but the embedding's parameters."""
        return [p for name, p in self.named_parameters() if not name.startswith("embedding.")]

    def stages_of(self, modality):
        """The stages that `opt` or `sar` images go through."""
        return [*(self.opt_stages if modality == "opt" else self.sar_stages), *self.shared_stages]


def build_model(args, device):
    """The network that the arguments name, filled and on the device. InputError where they do not go together."""
    if args.specify_num > args.stages:
        raise InputError(f"--specify_num {args.specify_num}: there are {args.stages} stages (--stages)")
    model = PseudoSiamese(args.arch, args.specify_num, normalize=not args.no_normalize, pooling=args.pooling,
                          layer4_stride=args.layer4_stride, stages=args.stages, input=args.input)
    initialize(model, args.init)
    return _onto(model, device)


def load_model(folder, device):
    """The model of a finished run, a folder or a packed file, in evaluation mode, and its image size.

    InputError where there is none.
    """
    model, img_size = _read_run(Path(folder), "--run")
    return _onto(model, device).eval(), img_size


def _onto(model, device):
    use_small_map_convolutions(model)
    use_float32_depthwise(model)
    return model.to(device, memory_format=torch.channels_last)


@torch.no_grad()
def channels_of(model):
    """Channels of the maps of the stages."""
    images = torch.zeros(1, 3, 64, 64, device=next(model.parameters()).device)
    maps = model.eval()(opt=images, with_maps=True).maps
    return [stage.shape[1] for stage in maps]


@torch.no_grad()
def embedding_width(model, img_size):
    """Numbers of the embedding of an image of that size; with --pooling cells they depend on it."""
    image = torch.zeros(1, 3, img_size, img_size, device=next(model.parameters()).device)
    return model.eval()(opt=image)[1].shape[1]


def _read_run(folder, flag):
    file = require_run(folder, flag)
    saved = unpack(file, flag)[WEIGHTS] if file == folder else load_tensors(file, flag)
    if isinstance(saved, dict) and "widths" in saved:
        raise InputError(f"{file} is of a matcher for positions alone, as code_Match once trained them: positions come "
                         "of a run of code_Con/train.py now; give such a one")
    try:
        state, img_size = saved.pop("model"), saved.pop("img_size")
        # What trains on (--init, --start) draws the same random numbers as ever; a timm network is looked at by what it
        # makes of an image.
        needs_random = flag != "--run" or saved["arch"].startswith(TIMM)
        with nullcontext() if needs_random else Unfilled():
            model = PseudoSiamese(**saved)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is not what a run writes ({error!r}): give the folder of a run, or train it again")
    except InputError as error:
        raise InputError(f"{file}: {error}")
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError):
        raise InputError(f"{file} does not hold a {saved['arch']} with specify_num {saved['specify_num']}: it is "
                         "damaged, or of another version; train or pack it again")
    if not all(weights.isfinite().all() for weights in model.state_dict().values()):
        raise InputError(f"{file} holds weights that are not numbers: it is damaged, or the run has diverged; train it "
                         "again")
    return model, img_size


def initialize(model, init):
    """Fill the backbone: `imagenet`, a name of PACKAGES, `none`, a finished run, or the file of a state dict.

    imagenet: the weights that torchvision or timm publishes. PACKAGES (shared/backbones.py): those that pip brings.
    A run gives its stages, each modality's to the same modality, and not its embedding. A state dict, by torchvision's
    or timm's names, is read with weights_only=True, also from inside a checkpoint (WRAPPERS) and from under a prefix
    (module., _orig_mod., backbone., encoder. ...), which is said; what is not the backbone's (fc.*, a head) is left
    out, and both copies of a stage are filled alike. Of the first convolution the channels are filled that both inputs
    have (INPUTS); others, as structure's from ImageNet, start fresh.
    Raises InputError where the weights cannot be had or belong to another architecture.
    """
    if init == "none":
        return
    arch, is_published = model.settings["arch"], init == "imagenet" or init in PACKAGES
    if not is_published and not (init and Path(init).exists()):
        raise InputError(f"--init {init}: there is no such file or folder; give one, or one of none, imagenet, "
                         f"{', '.join(PACKAGES)}")
    if not is_published and Path(init).is_dir():
        _initialize_from_run(model, Path(init))
        return
    state = published_weights(arch, init) if is_published else load_tensors(init, "--init")
    if is_packed(state):
        _initialize_from_run(model, Path(init))
        return
    backbone = build_backbone(arch)
    try:
        backbone.network.load_state_dict(_backbone_of(state, backbone.network, init))
    except RuntimeError:
        maker = "" if arch.startswith(TIMM) else "a torchvision "
        raise InputError(f"--init {init} does not hold the weights of {maker}{arch}: "
                         "give the --arch it was made with")
    for modality in ("opt", "sar"):
        _copy_stages(backbone.stages, model.stages_of(modality), "rgb", model.settings["input"])


def _backbone_of(state, network, init):
    """Of what an --init file holds the entries that are the network's, by the network's own names.

    A new dictionary without a version: load_state_dict then fills in what older files lack, such as the
    num_batches_tracked that torchvision's official ones do not hold.
    """
    if isinstance(state, dict) and "img_size" in state:
        raise InputError(f"--init {init} is a run's weights.pt: give the folder of the run")
    wrappers = []
    while isinstance(state, dict) and (inside := [name for name in WRAPPERS if isinstance(state.get(name), dict)]):
        wrappers.append(inside[0])
        state = state[inside[0]]
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"--init {init} is neither a state dict (names to tensors) nor the folder of a run")
    state = {str(name): value for name, value in state.items()}
    weights = [name for name, _ in network.named_parameters()]
    prefixes = [name.removesuffix(weights[0]) for name in state if name.endswith(weights[0])]
    prefixes = [prefix for prefix in prefixes if all(prefix + name in state for name in weights)]
    if len(prefixes) > 1:
        raise InputError(f"--init {init} holds several networks ({', '.join(map(repr, prefixes))}): "
                         "give a file with one of them")
    prefix = prefixes[0] if prefixes else ""
    places = [f"inside {name!r}" for name in wrappers] + [f"under the prefix {prefix!r}"] * bool(prefix)
    if places and distributed.rank() == 0:
        print(f"--init {init}: the weights are {', '.join(places)}")
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    modules = {name.split(".")[0] for name in weights}
    return {name: value for name, value in own.items() if name.split(".")[0] in modules}


def _initialize_from_run(model, folder):
    source, _ = _read_run(folder, "--init")
    theirs, ours = source.settings, model.settings
    if theirs["arch"] != ours["arch"]:
        raise InputError(f"--init {folder} holds a {theirs['arch']}: give --arch {theirs['arch']}")
    if theirs["stages"] < ours["stages"]:
        raise InputError(f"--init {folder} has {theirs['stages']} stages: give --stages {theirs['stages']} or less")
    if theirs["specify_num"] > ours["specify_num"]:
        raise InputError(f"--init {folder} has {theirs['specify_num']} stages once for each modality, of which a "
                         f"shared one can take only one: give --specify_num {theirs['specify_num']} or more")
    for modality in ("opt", "sar"):
        _copy_stages(source.stages_of(modality), model.stages_of(modality), theirs["input"], ours["input"])


def start_from(model, folder):
    """Fill the whole network, its embedding, too, with a finished run's. InputError where that is another network."""
    source, _ = _read_run(Path(folder), "--start")
    differing = [f"{name} {source.settings[name]} there, {value} here" for name, value in model.settings.items()
                 if source.settings[name] != value]
    if differing:
        raise InputError(f"--start {folder} holds another network ({'; '.join(differing)}): give the flags of that run")
    model.load_state_dict(source.state_dict())


def _copy_stages(source, target, source_input, target_input):
    """Fill stages with others, which see source_input (of INPUTS) where these see target_input."""
    for number, (theirs, ours) in enumerate(zip(source, target)):
        state = theirs.state_dict()
        if number == 0 and source_input != target_input:
            name, first = _first_convolution(ours)
            state[name] = _between_inputs(state[name], first, source_input, target_input)
        ours.load_state_dict(state)


def _first_convolution(stem):
    """The name and the weights of what sees the image."""
    return next((name, weights) for name, weights in stem.named_parameters() if weights.ndim == 4)


def _between_inputs(source, target, source_input, target_input):
    """The weights of one first convolution, with another's where both see the same. Both (64, C, 7, 7) of a ResNet.

    InputError where it does not see the image's channels as they are, but rearranged."""
    for weights, input in ((source, source_input), (target, target_input)):
        if weights.shape[1] != max(kind.stop for kind in INPUTS[input].values()):
            raise InputError(f"--init: the first convolution of this --arch sees {weights.shape[1]} channels, made of "
                             f"the image's, so that no other --input can be filled: give --input {source_input}")
    weights = target.detach().clone()
    for kind in INPUTS[source_input].keys() & INPUTS[target_input].keys():
        weights[:, INPUTS[target_input][kind]] = source[:, INPUTS[source_input][kind]]
    return weights
