"""What the matcher learns by: queries cut out of the windows, and the likelihood of their true places."""
import math

import torch
import torch.nn.functional as F

from shared.matcher import STRIDE


def cut_queries(sar, side, rotations, generator):
    """Cut a query out of each SAR window, seen at the true and at other rotations.

    sar: (B, 3, S, S) in [0, 1]. side: of the queries in px, a multiple of STRIDE. rotations: (B, K) in degrees, by
    which each view is turned clockwise against the window. Half of the queries are whole, the others show only the
    square that is left of a query that came turned by any angle.
    Returns views (B, K, 3, side, side), masks (B, K, 1, side / 2, side / 2) and the cell (B, 2) int64, row and column,
    of the window on which each query's first cell lies.
    """
    batch, count, window = len(sar), rotations.shape[1], sar.shape[-1]
    room = (window - side) // STRIDE + 1
    cell = (torch.rand((batch, 2), generator=generator) * room).long()
    turned = torch.rand(batch, generator=generator) * 2 * math.pi
    turned = torch.where(torch.rand(batch, generator=generator) < 0.5, 0.0, turned)

    # Pixel centres of a query about its middle, in px: (side, side).
    middle = torch.arange(side) + 0.5 - side / 2
    down, across = torch.meshgrid(middle, middle, indexing="ij")
    angle = torch.deg2rad(rotations).view(batch, count, 1, 1)
    centre = (cell * STRIDE + side / 2).view(batch, 1, 1, 1, 2)
    x = across * angle.cos() - down * angle.sin() + centre[..., 1]
    y = across * angle.sin() + down * angle.cos() + centre[..., 0]
    grid = torch.stack([x, y], -1) * 2 / window - 1                   # B x K x side x side x 2, as grid_sample counts
    # Around its middle a query that came turned shows a square, the largest that fits: what is beyond is black.
    half = side / 2 / (turned.cos().abs() + turned.sin().abs())
    cos, sin = turned.cos().view(-1, 1, 1), turned.sin().view(-1, 1, 1)
    inside = torch.maximum((across * cos + down * sin).abs(), (down * cos - across * sin).abs()) <= half.view(-1, 1, 1)
    shown = inside[:, None] & (grid.abs() <= 1).all(-1)               # nothing is known beyond the window
    shown = shown.to(sar.device)
    views = F.grid_sample(sar, grid.flatten(1, 2).to(sar.device), align_corners=False)
    views = views.unflatten(2, (count, side)).transpose(1, 2) * shown[:, :, None]
    masks = -F.max_pool2d(-shown.float(), STRIDE)[:, :, None]         # a cell is shown where all its pixels are
    return views, masks, cell


def displaced_nll(logits, cell, sigma):
    """Negative log-likelihood of the true position, where the truth itself is displaced.

    logits: (B, K, M, h, w) over rotations, maps and positions; the truth of query i is at [i, 0, i, *cell[i]]. cell:
    (B, 2) int64. sigma: of the displacement, in cells. The pixels of a pair are displaced against each other by some
    px that nobody knows (terrain under a radar's slanted view), so a query truly lies at cell + d, d normal: the loss
    is -log of the sum of p(cell + d) normal(d). With sigma 0 it is the cross-entropy of `cell`.
    """
    batch = len(logits)
    log_p = logits - logits.flatten(1).logsumexp(1).view(-1, 1, 1, 1, 1)
    rows = torch.arange(batch, device=logits.device)
    log_p = log_p[rows, 0, rows]                                      # B x h x w
    reach = math.ceil(2.5 * sigma)
    offset = torch.arange(-reach, reach + 1, device=logits.device)
    line = torch.exp(-offset.float() ** 2 / (2 * max(sigma, 1e-6) ** 2))
    weight = line[:, None] * line
    weight = weight / weight.sum()
    padded = F.pad(log_p, (reach,) * 4, value=-1e4)                   # beyond the map there is nothing
    near = cell.to(logits.device)[:, :, None] + offset + reach        # B x 2 x D
    around = padded[rows[:, None, None], near[:, 0, :, None], near[:, 1, None, :]]
    return -(around + weight.log()).flatten(1).logsumexp(1).mean()


def draw_rotations(batch, count, most, generator):
    """(batch, count) degrees: the first within `most` of the truth, which is 0, the others anywhere beyond."""
    true = (torch.rand((batch, 1), generator=generator) * 2 - 1) * most
    other = 2 * most + torch.rand((batch, count - 1), generator=generator) * (360 - 4 * most)
    return torch.cat([true, other], 1)
