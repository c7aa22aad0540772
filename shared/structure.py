"""Structure: oriented gradients of the grey image, of unit length in each pixel. Nothing of it is learned.

What an edge looks like differs between the modalities, and which way it runs does not: the channels tell the direction
of what is there, and neither its colour nor its contrast.
"""
import math

import torch
import torch.nn.functional as F

from shared.guided_filter import check_images

ORIENTATIONS = 9
SIGMA_GREY, SIGMA_CHANNELS = 1.2, 1.5                   # px, of the image and of the channels
GREY = (0.2989, 0.5870, 0.1140)                         # ITU-R BT.601's luma
EPSILON = 1e-4                                          # keeps flat ground from becoming noise of unit length
GAIN = 3.0                                              # brings the channels to about unit variance


def structure(images):
    """The oriented gradients of images (B, 3, H, W), float in [0, 1]: (B, ORIENTATIONS, H, W) float32.

    Channel k holds the strength of gradients along k * 180 / ORIENTATIONS degrees from the x axis, whichever way they
    point, so that dark on bright and bright on dark are the same. Each pixel's vector has unit length before the mean
    of each channel over the image is taken away. Borders mirror without the edge pixel.
    Raises ValueError where the images are of another shape.
    Source: Ye et al., "Fast and Robust Matching for Multimodal Remote Sensing Image Registration", TGRS 2019, section
    III (channel features of orientated gradients).
    """
    check_images("structure", images)
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    grey = (images.float() * weights).sum(1, keepdim=True)            # B x 1 x H x W
    along_x, along_y = _sobel(_blur(grey, SIGMA_GREY))
    angles = torch.arange(ORIENTATIONS, device=images.device) * math.pi / ORIENTATIONS
    cos, sin = (part(angles).view(1, -1, 1, 1) for part in (torch.cos, torch.sin))
    channels = _blur((cos * along_x + sin * along_y).abs(), SIGMA_CHANNELS)               # B x 9 x H x W
    channels = channels.roll(1, 1) + 2 * channels + channels.roll(-1, 1)
    channels = channels / (channels.norm(dim=1, keepdim=True) + EPSILON)
    return GAIN * (channels - channels.mean((2, 3), keepdim=True))


def _blur(planes, sigma):
    """A Gaussian blur of each plane (B, C, H, W), one direction after the other."""
    radius = round(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=planes.device, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * sigma ** 2))
    return _separable(planes, kernel / kernel.sum(), kernel / kernel.sum())


def _sobel(planes):
    """The derivatives (along x, along y) of (B, C, H, W), by Sobel's masks."""
    smooth, difference = planes.new_tensor([1.0, 2.0, 1.0]), planes.new_tensor([-1.0, 0.0, 1.0])
    return _separable(planes, difference, smooth), _separable(planes, smooth, difference)


def _separable(planes, across, down):
    """Each plane (B, C, H, W) convolved by `across` in its rows and `down` in its columns, both odd in length."""
    height, width = planes.shape[-2:]
    single = planes.flatten(0, 1)[:, None]                            # BC x 1 x H x W
    padded = F.pad(single, (len(across) // 2,) * 2 + (len(down) // 2,) * 2, mode="reflect")
    rows = F.conv2d(padded, across.view(1, 1, 1, -1))
    return F.conv2d(rows, down.view(1, 1, -1, 1)).view(*planes.shape[:2], height, width)
