"""Pairs that are not quite aligned: of each, one image is turned and scaled about its middle."""
import math

import torch
import torch.nn.functional as F


def side_to_turn(part, degrees, scale, img_size):
    """Side in px of what has to be cut of an image so that a turned and scaled square of `part` px lies within.

    As even or odd as `part`, so that both have the same middle, and at most img_size: then borders mirror.
    """
    angle = math.radians(min(degrees, 45))
    needed = part * (math.cos(angle) + math.sin(angle)) * (1 + scale)
    edge = min(math.ceil((needed - part) / 2), (img_size - part) // 2)
    return part + 2 * edge


def misaligned(opt, sar, part, degrees, scale, generator):
    """The middle square of pairs, of one image of each pair turned by up to `degrees` and scaled by up to `scale`.

    opt, sar: (B, 3, S, S) float. part: side of the square, at most S. The angle is drawn evenly from -degrees to
    degrees, the logarithm of the factor from -log(1 + scale) to log(1 + scale), and which of the two images by a coin.
    generator: a torch.Generator on the CPU. Returns two (B, 3, part, part).
    """
    angle, factor, coin = torch.rand((3, len(opt)), generator=generator).to(opt)
    angle = math.radians(degrees) * (2 * angle - 1)
    factor = torch.exp(math.log1p(scale) * (2 * factor - 1)) * part / opt.shape[-1]
    cos, sin, zero = factor * angle.cos(), factor * angle.sin(), torch.zeros_like(angle)
    matrices = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    is_opt = (coin < 0.5).view(-1, 1, 1, 1)
    grid = F.affine_grid(matrices, [len(opt), 3, part, part], align_corners=False)
    moved = F.grid_sample(torch.where(is_opt, opt, sar), grid, padding_mode="reflection", align_corners=False)
    edge = (opt.shape[-1] - part) // 2
    opt, sar = (images[:, :, edge:edge + part, edge:edge + part] for images in (opt, sar))
    return torch.where(is_opt, moved, opt), torch.where(is_opt, sar, moved)
