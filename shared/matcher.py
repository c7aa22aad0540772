"""The dense matcher: maps of unit vectors, one network for each modality, and the score of every position at once.

Sources: Sarlin et al., "OrienterNet", CVPR 2023, section 3 (exhaustive matching of a template with a map's features, in
the Fourier domain, as a probability over position and rotation); Zhang et al., "Optical and SAR Image Matching Using
Pixelwise Deep Dense Features", 2021 (two branches without shared weights, pixelwise features).
"""
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from shared.backbones import IMAGENET_MEAN, IMAGENET_STD
from shared.model import require_run
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors

STRIDE = 2                                              # px of the images to a cell of the maps
GRAIN = 16                                              # px to a cell of the coarsest maps inside
HALO = 96                                               # px beyond which nothing has a say in a cell; see test_matcher
FIRST_SCALE = 50.0                                      # of the mean cosine, before it is learned


class Branch(nn.Module):
    """Down to a sixteenth and up again, with skips: (B, 3, H, W) to (B, C, H / 2, W / 2), H and W multiples of GRAIN.

    widths: channels at a half, a quarter, an eighth and a sixteenth of the resolution.
    """

    def __init__(self, widths, channels):
        super().__init__()
        self.stem = nn.Sequential(_convolve(3, widths[0], stride=2), _convolve(widths[0], widths[0]))
        steps = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(nn.Sequential(_convolve(a, b, stride=2), _convolve(b, b)) for a, b in steps)
        self.across = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(_convolve(a, a) for a, _ in steps)
        self.out = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images):
        maps = [self.stem(images)]                                    # B x 32 x H/2 x W/2
        for down in self.down:
            maps.append(down(maps[-1]))                               # ... B x 128 x H/16 x W/16
        x = maps.pop()
        for across, up in zip(reversed(self.across), reversed(self.up)):
            x = F.interpolate(across(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = up(x + maps.pop())
        return self.out(x)


class Matcher(nn.Module):
    """Two branches, optical and SAR, and the scale that makes logits of mean cosines.

    channels: of the unit vectors. widths: of the branches, see Branch.
    """

    def __init__(self, channels=16, widths=(32, 64, 96, 128)):
        super().__init__()
        self.settings = {"channels": channels, "widths": list(widths)}
        self.opt_branch, self.sar_branch = Branch(widths, channels), Branch(widths, channels)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, opt=None, sar=None):
        """Features of optical images, of SAR images, or of both.

        opt: (B, 3, H, W), sar: (Q, 3, h, w), float32 in [0, 1]; sizes are filled up to multiples of GRAIN with the
        mean. Returns (B, C, H / 2, W / 2) and (Q, C, h / 2, w / 2), rounded up, float32, L2-normalised over the
        channels; None for what was left out.
        """
        return self._features(opt, self.opt_branch), self._features(sar, self.sar_branch)

    def _features(self, images, branch):
        if images is None:
            return None
        height, width = images.shape[-2:]
        filled = F.pad((images - self.mean) / self.std, (0, -width % GRAIN, 0, -height % GRAIN))
        features = branch(filled.contiguous(memory_format=torch.channels_last))
        return F.normalize(features[..., :-(-height // STRIDE), :-(-width // STRIDE)].float(), dim=1)

    def logits(self, scores):
        """Scores (mean cosines) times the learned scale: logits over positions."""
        return scores * self.log_scale.exp()


def correlate(query, query_mask, maps, map_mask=None, least=0.5):
    """The mean cosine of each query with each map at every position where the query lies within the map.

    query: (Q, C, h, w) and its mask (Q, 1, h, w), 1 where the query shows something, else 0. maps: (M, C, H, W) and
    their mask (M, 1, H, W), or None where all of it is map. Returns (Q, M, H - h + 1, W - w + 1) float32: at [q, m, y,
    x] the mean of the cosines at the cells that both show when the query's first cell lies on cell (y, x); -1 where
    fewer than `least` of the query's cells lie on map. By FFT: nothing wraps around within these positions.
    """
    cells = query_mask.sum((2, 3)).view(-1, 1, 1, 1).clamp(min=1)
    if map_mask is None:
        return _sums(query * query_mask, maps) / cells
    sums = _sums(query * query_mask, maps * map_mask)
    both = _sums(query_mask, map_mask).round()
    return torch.where(both >= least * cells, sums / both.clamp(min=1), -1.0)


def _sums(query, maps):
    return sums_at_shifts(query, torch.fft.rfft2(maps.float()), maps.shape[-2:])


def sums_at_shifts(query, spectra, size):
    """Sums of the products of cells at each shift that keeps a query within a map.

    query: (Q, C, h, w). spectra: (M, C, ...), rfft2 of maps (M, C, *size). Returns (Q, M, H - h + 1, W - w + 1).
    """
    height, width = (of_map - of_query + 1 for of_map, of_query in zip(size, query.shape[-2:]))
    if height < 1 or width < 1:
        raise ValueError(f"a query of {tuple(query.shape[-2:])} cells on a map of {tuple(size)}")
    query = torch.fft.rfft2(query.float(), s=size)
    # A product of matrices (Q x C) (C x M) at each frequency.
    products = torch.bmm(query.conj().flatten(2).permute(2, 0, 1), spectra.flatten(2).permute(2, 1, 0))
    products = products.permute(1, 2, 0).reshape(len(query), len(spectra), *query.shape[-2:])
    return torch.fft.irfft2(products, s=size)[..., :height, :width]


def load_matcher(folder, device):
    """The matcher of a finished run. InputError where the folder holds none."""
    file = require_run(Path(folder), "--run")
    saved = load_tensors(file, "--run")
    try:
        state = saved.pop("model")
        model = Matcher(saved["channels"], saved["widths"])
        model.load_state_dict(state)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        raise InputError(f"{file} holds no matcher: give the folder of a run of code_Match/train.py")
    return model.to(device, memory_format=torch.channels_last).eval()


def _convolve(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU(inplace=True))
