"""Views of an image: where a crop is cut, and what is done to it.

Source of the contrastive crops: Peng et al., "Crafting Better Contrastive Views for Siamese Representation Learning",
CVPR 2022.
"""
import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from shared.views import under_symmetry

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)               # of a crop: share of the area, and width to height
JITTER, GREY = 0.4, 0.2                                 # of brightness, contrast and saturation; share made grey
LOOKS = 16                                              # speckle is drawn as of so many looks
WHOLE = torch.tensor([0.0, 0.0, 1.0, 1.0])              # the box of all of an image: top, left, bottom, right


class Boxes(nn.Module):
    """Says where in an image something is: the box of a copy of the backbone's heat. The whole image, to begin with.

    threshold: k of the paper, in [0, 1). renewal: the copy is renewed after every such share of the training.
    """

    def __init__(self, backbone, threshold, renewal):
        super().__init__()
        self.copy = copy.deepcopy(backbone).requires_grad_(False)
        self.threshold, self.renewal = threshold, renewal
        self.register_buffer("is_ready", torch.tensor(False))

    def renew(self, backbone, epoch, epochs):
        """Copy the backbone at the beginning of an epoch (from 0) where it is due."""
        def renewals(done):
            return int(done / epochs / self.renewal + 1e-9)

        if epoch and renewals(epoch) > renewals(epoch - 1):
            self.copy.load_state_dict(backbone.state_dict())
            self.is_ready.fill_(True)

    @torch.no_grad()
    def forward(self, **images):
        """(B, 4): top, left, bottom, right in [0, 1]. images: opt=(B, 3, S, S) or sar=... in [0, 1]."""
        (batch,) = images.values()
        if not self.is_ready:
            return WHOLE.repeat(len(batch), 1)
        return boxes_of(look(self.copy.eval(), **images), self.threshold).cpu()


def look(backbone, **images):
    """(B, S, S) in [0, 1]: where a backbone's heat is. images: opt=(B, 3, S, S) or sar=... in [0, 1]."""
    (batch,) = images.values()
    return heat_of(backbone(**images, with_maps=True)[2][-1], batch.shape[-1])


def heat_of(maps, size):
    """(B, C, h, w) -> (B, size, size) in [0, 1]: the channels' sum, drawn large, from its least to its most.

    Source: ContrastiveCrop, section 3.2.
    """
    heat = F.interpolate(maps.float().sum(1, keepdim=True), size=(size, size), mode="bilinear", align_corners=False)
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    return ((heat - low) / (high - low).clamp(min=1e-12))[:, 0]


def boxes_of(heat, threshold):
    """(B, H, W) in [0, 1] -> (B, 4): the box about all that is above the threshold, top, left, bottom, right in [0, 1].

    Source: ContrastiveCrop, equation 3. The whole image where nothing is above it.
    """
    shown = heat > threshold
    edges = []
    for axis in (2, 1):                                               # rows with something, then columns
        has = shown.any(axis).float()                                 # B x H
        size = has.shape[1]
        first = has.argmax(1)
        last = size - has.flip(1).argmax(1)
        edges += [(first / size, last / size)]
    (top, bottom), (left, right) = edges
    boxes = torch.stack([top, left, bottom, right], 1)
    return torch.where(shown.flatten(1).any(1, keepdim=True), boxes, WHOLE.to(heat.device))


def draw_crops(boxes, alpha, random):
    """(B, 4) float32: top, left, height, width in [0, 1] of a random crop for each box (B, 4).

    Area and ratio are drawn as in a random resized crop. The crop's middle goes from one edge of the box to the other,
    as far as the crop stays in the image, by Beta(alpha, alpha): alpha 1 is even, below 1 the middle is avoided
    (ContrastiveCrop, section 3.3). With the whole image as box and alpha 1 it is the random resized crop.
    random: a numpy Generator.
    """
    count = len(boxes)
    area = random.uniform(*SCALE, count)
    ratio = np.exp(random.uniform(*np.log(RATIO), count))
    height, width = np.minimum(np.sqrt(area / ratio), 1), np.minimum(np.sqrt(area * ratio), 1)
    corners = []
    for size, low, high in ((height, boxes[:, 0], boxes[:, 2]), (width, boxes[:, 1], boxes[:, 3])):
        first, last = (np.clip(edge.numpy() - size / 2, 0, 1 - size) for edge in (low, high))
        corners.append(first + (last - first) * random.beta(alpha, alpha, count))
    return torch.from_numpy(np.stack([*corners, height, width], 1)).float()


def cut_crops(images, crops, size):
    """(B, 3, S, S) and crops (B, 4) as draw_crops gives them -> (B, 3, size, size)."""
    top, left, height, width = crops.to(images.device).T
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = F.affine_grid(theta, (len(images), 3, size, size), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def vary(images, is_sar, random):
    """What differs from view to view: (B, 3, S, S) in [0, 1] -> the same.

    Brightness and contrast; of optical images also saturation, and some are made grey; of SAR speckle, and no colour:
    its channels are one, or polarisations.
    """
    def factor(shape):
        drawn = random.uniform(1 - JITTER, 1 + JITTER, shape)
        return torch.from_numpy(drawn).float().to(images.device).view(-1, 1, 1, 1)

    count = len(images)
    if is_sar:
        speckle = random.gamma(LOOKS, 1 / LOOKS, (count, 1, *images.shape[2:]))
        # Pixels are amplitudes or their logarithm; the speckle of an amplitude is the root of an intensity's.
        images = images * torch.from_numpy(speckle).float().sqrt().to(images.device)
    else:
        grey = images.mean(1, keepdim=True)
        is_grey = torch.from_numpy(random.random(count) < GREY).to(images.device).view(-1, 1, 1, 1)
        images = torch.where(is_grey, grey, grey + (images - grey) * factor(count))
    middle = images.mean((1, 2, 3), keepdim=True)
    return (middle + (images - middle) * factor(count)).mul(factor(count)).clamp(0, 1)


def turn_at_random(images, random):
    """Each of (B, 3, S, S) at one of the eight symmetries of the square."""
    return under_symmetry(images, torch.from_numpy(random.integers(0, 8, len(images))).to(images.device))
