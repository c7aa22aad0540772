"""Finer cells of a network that stays as it is: all its stages' maps, brought to the resolution of the first.

finer.pt of a run holds what code_Match/finer.py learned: {"decoders": a state dict, "network": the identity of the
network that it was learned on}. Search tells the best places apart by it (shared/mapping/localization.py).
"""
import copy
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from shared.model import CELL_DIM
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors, state_on_cpu
from shared.plumbing.packed import has_file, unpack

FINER = "finer.pt"
WIDTH = 64                                              # channels inside a decoder


class Decoder(nn.Module):
    """Maps of the stages (B, channels[i], h_i, w_i), the finest first, to cells (B, CELL_DIM, h_0, w_0).

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3: one convolution of 1 x 1
    for each level, and their sum; here followed by BatchNorm and two more convolutions. factors: by which the maps are
    coarser than the first; what has no whole number of the coarsest cells has to lie on the finest as all else does.
    """

    def __init__(self, channels, factors):
        super().__init__()
        self.factors = factors
        self.across = nn.ModuleList(nn.Conv2d(width, WIDTH, 1, bias=False) for width in channels)
        self.out = nn.Sequential(nn.BatchNorm2d(WIDTH), nn.ReLU(),
                                 nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(),
                                 nn.Conv2d(WIDTH, CELL_DIM, 1, bias=False), nn.BatchNorm2d(CELL_DIM))

    def forward(self, maps):
        height, width = maps[0].shape[-2:]
        levels = [F.interpolate(across(level), scale_factor=factor, mode="bilinear")[..., :height, :width]
                  for across, level, factor in zip(self.across, maps, self.factors)]
        return self.out(sum(levels))


class FinerCells(nn.Module):
    """A PseudoSiamese and a Decoder for each modality, which start alike. Only the decoders are trained: pairs are
    retrieved by the network as they were.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        with torch.no_grad():
            maps = model(opt=torch.zeros(1, 3, 64, 64, device=next(model.parameters()).device), with_maps=True).maps
        finest = maps[0].shape[-1]
        opt = Decoder([level.shape[1] for level in maps], [float(finest // level.shape[-1]) for level in maps])
        self.decoders = nn.ModuleDict({"opt": opt, "sar": copy.deepcopy(opt)})

    def train(self, mode=True):
        """Of the network itself neither weights nor BatchNorm's statistics change."""
        super().train(mode)
        self.model.eval()
        return self

    def cells(self, opt=None, sar=None):
        """As PseudoSiamese.cells, at the resolution of the first stage's maps: of ResNets a cell is 4 px."""
        cells = []
        for modality, images in (("opt", opt), ("sar", sar)):
            if images is not None:
                with torch.no_grad():
                    maps = self.model(**{modality: images}, with_maps=True).maps
                cells.append(self.decoders[modality](maps).float())
        return torch.cat(cells)

    def saved(self):
        """What finer.pt holds."""
        return {"decoders": state_on_cpu(self.decoders), "network": identity_of(self.model)}


def identity_of(module):
    """A name for what a network has learned, the same where tools/pack.py has kept it in float16."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        numbers = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(name.encode() + numbers.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_finer(folder, model):
    """The FinerCells of a run, a folder or a packed file, on its model; None where it has no finer.pt.

    InputError where that cannot be used, or belongs to another network.
    """
    if not has_file(folder, FINER):
        return None
    file, remedy = Path(folder) / FINER, "remove it, and python code_Match/finer.py --run makes it anew"
    saved = unpack(folder)[FINER] if Path(folder).is_file() else load_tensors(file, "--run")
    finer = FinerCells(model)
    try:
        finer.decoders.load_state_dict(saved["decoders"])
        network = saved["network"]
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise InputError(f"{file} holds no decoder of this network: {remedy}")
    if network != identity_of(model):
        raise InputError(f"{file} was learned on another network than the one beside it: {remedy}")
    return finer.to(next(model.parameters()).device).eval()
