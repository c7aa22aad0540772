"""The dense search of cells: in which whole image a window lies, and where in it, by the cosine at every position.

A network with --pooling cells makes some numbers for each cell of an image, and so does StructureCells, with nothing
learned. A window's cells are laid on an image's cells at every position, by FFT. Positions are (x, y) in px, counted as
in shared/mapping/localization.py; a cell is some px of the images as the network sees them.
"""
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import nn

from shared.dataset import to_float
from shared.mapping.finer_cells import identity_of, load_finer
from shared.mapping.turned import cut_turned
from shared.model import GRID, Embedded, load_model
from shared.plumbing.errors import InputError
from shared.structure import structure

SPACING = 8                                             # px to a cell of StructureCells
ROTATIONS, ZOOMS = (-8, -4, 0, 4, 8), (0.93, 1.0, 1.07)               # degrees, and factors, that may be tried besides
MAPS_AT_ONCE = 64
LEAST_ENERGY = 1e-3                                     # of what a map has at large; what has less is as good as empty


class StructureCells(nn.Module):
    """The structure of images in cells, where a PseudoSiamese with pooling `cells` stands. Nothing of it is learned.

    spacing: px to a cell, whose numbers are the means of structure()'s channels there.
    """

    def __init__(self, spacing=SPACING):
        super().__init__()
        self.spacing = spacing

    def forward(self, opt=None, sar=None):
        """An Embedded as PseudoSiamese gives it: averages in a grid, and all cells one after the other."""
        cells = self.cells(opt, sar)                                  # B x 9 x h x w
        pool5 = F.adaptive_avg_pool2d(cells, GRID).flatten(1)
        return Embedded(F.normalize(pool5), F.normalize(cells.flatten(1)), [])

    def cells(self, opt=None, sar=None):
        """opt: (B, 3, H, W), sar: (C, 3, H, W), float32 in [0, 1]; either may be left out. Returns (B + C,
        ORIENTATIONS, H / spacing, W / spacing), rounded up, float32, the optical rows first."""
        images = [kind for kind in (opt, sar) if kind is not None]
        with torch.autocast(images[0].device.type, enabled=False):
            maps = torch.cat([structure(kind) for kind in images])
        return F.avg_pool2d(maps, self.spacing, ceil_mode=True, count_include_pad=False)


@torch.no_grad()
def cell_side(model):
    """Px to a cell of what a model's cells() gives."""
    device = next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    return 64 // model.eval().cells(opt=torch.zeros(1, 3, 64, 64, device=device)).shape[-1]


@torch.no_grad()
def embed_cells(model, images, modality, device, autocast, batch_size=64):
    """The cells (N, C, h, w) of images (N, S, S, 3) uint8 of one modality, `opt` or `sar`: float32, on the device."""
    model.eval()
    cells = []
    for portion in images.split(batch_size):
        with autocast():
            cells.append(model.cells(**{modality: to_float(portion, device)}).float())
    return torch.cat(cells)


def cell_mask(masks, cell):
    """(K, H, W) bool -> (K, 1, H / cell, W / cell) float32, rounded up: 1 where all pixels of a cell are shown."""
    return -F.max_pool2d(-torch.from_numpy(masks).float()[:, None], cell, ceil_mode=True)


@dataclass
class CellNetwork:
    """A network that gives cells, and how it is asked. cell: px to a cell. autocast: a context for its passes. finer:
    the CellNetwork of its finer cells, where a run has them."""
    model: nn.Module
    cell: int
    device: torch.device
    autocast: Callable
    finer: "CellNetwork" = None

    @property
    def finer_identity(self):
        """By which a calibration knows the finer cells; None without."""
        return identity_of(self.finer.model.decoders) if self.finer else None

    def cells(self, images, modality):
        """The cells (N, C, h, w) of images (N, H, W, 3) uint8 of one modality, `opt` or `sar`, on the device."""
        return embed_cells(self.model, torch.from_numpy(images), modality, self.device, self.autocast)


def load_cell_network(folder, device, autocast):
    """(CellNetwork, the images' size in training) of a finished run, with its finer.pt where it has one. InputError
    where it gives no cells."""
    model, img_size = load_model(folder, device)
    if model.settings["pooling"] != "cells":
        raise InputError(f"--run {folder} has --pooling {model.settings['pooling']}, and positions come of cells: give "
                         "a run of code_Con/train.py with --pooling cells")
    network, decoded = CellNetwork(model, cell_side(model), device, autocast), load_finer(folder, model)
    if decoded:
        network.finer = CellNetwork(decoded, cell_side(decoded), device, autocast)
    return network, img_size


# Correlation ---------------------------------------------------------------------------------------------------------

class CellMaps:
    """The cells of M whole images, (M, C, H, W) float32, ready to be correlated with.

    mask: (M, 1, H, W), 1 where the images show something, else 0 (default: all of them).
    """

    def __init__(self, cells, mask=None):
        self.size = tuple(cells.shape[-2:])
        cells = cells if mask is None else cells * mask
        self.spectra = spectra_of(cells)
        self.mask_spectra = None if mask is None else spectra_of(mask)
        energy = cells.square().sum(1, keepdim=True)                  # M x 1 x H x W
        self.energy_spectra = spectra_of(energy)
        self.least = LEAST_ENERGY * energy.mean((1, 2, 3)).clamp(min=1e-12)

    def __len__(self):
        return len(self.spectra)

    def cosines(self, query, mask, maps=slice(None), least=0.0):
        """The cosine of each query with what lies under it, at every position where it lies within a map.

        query: (Q, C, h, w), mask: (Q, 1, h, w), 1 at the cells that count, else 0. maps: a slice of the M. Returns
        (Q, M, H - h + 1, W - w + 1) float32: at [q, m, y, x] the inner product of the query's cells with the map's
        when its first one lies on (y, x), over the norms of both, each over the cells that count and lie where the map
        shows something; -1 where these are fewer than a share `least` of those that count. Raises ValueError where a
        query is larger than the maps.
        """
        query, count = query * mask, mask.sum((2, 3), keepdim=True)
        products = sums_at_shifts(query, self.spectra[maps], self.size)
        energy = sums_at_shifts(mask, self.energy_spectra[maps], self.size)
        own = query.square().sum(1, keepdim=True)                     # Q x 1 x h x w
        whole = own.sum((2, 3), keepdim=True).clamp(min=1e-12)
        # By FFT what is zero comes out as a little of either sign.
        if self.mask_spectra is None:
            energy = energy.maximum(self.least[maps].view(1, -1, 1, 1) * count)
            return products / (whole * energy).sqrt()
        both = sums_at_shifts(mask, self.mask_spectra[maps], self.size).round().clamp(min=0)
        energy = energy.maximum(self.least[maps].view(1, -1, 1, 1) * both.clamp(min=1))
        shown = sums_at_shifts(own, self.mask_spectra[maps], self.size).maximum(LEAST_ENERGY * whole)
        return torch.where(both >= (least * count).clamp(min=1), products / (shown * energy).sqrt(), -1.0)


def spectra_of(maps):
    """rfft2 of maps (..., H, W), filled up to a size that it is fast at: what sums_at_shifts takes."""
    return torch.fft.rfft2(maps.float(), s=_fast(maps.shape[-2:]))


def _fast(size):
    return tuple(next_fast_len(int(side), real=True) for side in size)


def sums_at_shifts(query, spectra, size):
    """Sums of the products of cells at each shift that keeps a query within a map.

    query: (Q, C, h, w). spectra: (M, C, ...), spectra_of maps (M, C, *size). Returns (Q, M, H - h + 1, W - w + 1). By
    FFT: nothing wraps around within these positions. ValueError where a query is larger than the maps.
    """
    height, width = (of_map - of_query + 1 for of_map, of_query in zip(size, query.shape[-2:]))
    if height < 1 or width < 1:
        raise ValueError(f"a query of {tuple(query.shape[-2:])} cells on a map of {tuple(size)}")
    query = torch.fft.rfft2(query.float(), s=_fast(size))
    # A product of matrices (Q x C) (C x M) at each frequency.
    products = torch.bmm(query.conj().flatten(2).permute(2, 0, 1), spectra.flatten(2).permute(2, 1, 0))
    products = products.permute(1, 2, 0).reshape(len(query), len(spectra), *query.shape[-2:])
    return torch.fft.irfft2(products, s=_fast(size))[..., :height, :width]


# A window, seen several times ----------------------------------------------------------------------------------------

@dataclass
class Found:
    """Where a window fits best in each of M images. scores: (M) cosines. x, y: (M) px, of the window's middle.
    rotations: (M) degrees clockwise, zooms: (M), how it came turned and scaled, as far as that was tried."""
    scores: np.ndarray
    x: np.ndarray
    y: np.ndarray
    rotations: np.ndarray
    zooms: np.ndarray


@torch.no_grad()
def find_window(model, window, maps, cell, device, autocast, rotations=(0.0,), zooms=(1.0,)):
    """Where a SAR window lies in whole optical images: the Found of its best view in each of them.

    window: (S, S, 3) uint8, at the images' resolution. maps: their CellMaps. cell: as cell_side tells. rotations,
    zooms: what is tried, all of one with all of the other.
    """
    views, masks, tries = query_views(window, cell, rotations, zooms)
    query = embed_cells(model, views, "sar", device, autocast)
    query_mask = cell_mask(masks.numpy(), cell).to(device)
    best = [_best_of(maps.cosines(query, query_mask, slice(i, i + MAPS_AT_ONCE)))
            for i in range(0, len(maps), MAPS_AT_ONCE)]
    scores, view, row, column = (torch.cat(part).cpu().numpy() for part in zip(*best))
    rotation, zoom, x, y = np.array(tries)[view].T
    return Found(scores, column * cell + x, row * cell + y, rotation, zoom)


def _best_of(cosines):
    """(scores, view, row, column), each (M), of the highest of (V, M, H, W) for each map."""
    views, _, height, width = cosines.shape
    scores, at = cosines.transpose(0, 1).flatten(1).max(1)
    return scores, at // (height * width), at // width % height, at % width


def query_views(window, cell, rotations=(0.0,), zooms=(1.0,)):
    """A window as it may lie on the cells of a map: turned back, scaled back, and shifted by half a cell.

    window: (S, S, 3) uint8. rotations: degrees clockwise, zooms: map px to a px of the window, by which it may have
    come turned and scaled. Returns views (V, S, S, 3) uint8, masks (V, S, S) bool, where a view shows the window, and
    tries, V tuples (rotation, zoom, x, y): the last two are the window's middle, in px of the view. Where a view shows
    nothing of the window its edge goes on, so that no other edge is seen there.
    """
    side, half = len(window), cell // 2
    # A border of what is not the window, for the mask to go on with.
    whole = np.pad(np.full((side, side), 255, np.uint8), 1)
    views, masks, tries = [], [], []
    for rotation, zoom in itertools.product(rotations, zooms):
        view = cut_turned(window, side / 2, side / 2, side, -rotation, 1 / zoom)
        mask = cut_turned(whole, side / 2 + 1, side / 2 + 1, side, -rotation, 1 / zoom) > 254
        for down, across in itertools.product((0, half), (0, half)):
            views.append(np.pad(view[down:, across:], ((0, down), (0, across), (0, 0)), mode="edge"))
            masks.append(np.pad(mask[down:, across:], ((0, down), (0, across))))
            tries.append((rotation, zoom, side / 2 - across, side / 2 - down))
    return torch.from_numpy(np.stack(views)), torch.from_numpy(np.stack(masks)), tries
