# For --input structure and both, --filter structure, and code_Structure.
"""Structure: oriented gradients of the grey image, of unit length in each pixel. Nothing of it is learned.

What an edge looks like differs between the modalities, and which way it runs does not: the channels tell the direction
of what is there, and neither its colour nor its contrast.
"""
import functools
import math

import torch

from shared.guided_filter import CACHED_PIXELS, check_images

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
    return torch.cat([_centred(part) for part in _directions(images)])


def structure_of_any_size(images):
    """The same, of all images at once and with nothing kept from one size to the next: as tools/export.py needs it."""
    return _centred(_directions_of_portion(images, _Matrices))


def structure_image(images):
    """A pseudo-modal image of structure: three directions, 60 degrees apart, for red, green and blue.

    images: (B, 3, H, W) float in [0, 1]. Returns the same shape, float32 in [0, 1].
    """
    check_images("structure_image", images)
    return torch.cat([part[:, ::ORIENTATIONS // 3] for part in _directions(images)])


def _centred(channels):
    return GAIN * (channels - channels.mean((2, 3), keepdim=True))


def _directions(images):
    """Portion by portion of the images, their channels of unit length in each pixel, (b, ORIENTATIONS, H, W)."""
    # A portion at a time on a CPU, so that the maps between input and output stay in the cache: twice as fast.
    portion = max(1, CACHED_PIXELS // images[0, 0].numel()) if images.device.type == "cpu" else max(1, len(images))
    for part in images.split(portion):
        with torch.autocast(images.device.type, enabled=False):
            yield _directions_of_portion(part.float(), _matrices)


def _directions_of_portion(images, matrices):
    # A blur or a mask is a product with a banded matrix from the left (down the columns) and one from the right (along
    # the rows): many times faster on a CPU than a convolution of one channel.
    down, along = (matrices(side, images.device) for side in images.shape[-2:])
    weights = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    grey = (images * weights).sum(1, keepdim=True)                                        # B x 1 x H x W
    along_x = down.smooth @ (grey @ along.difference.T)
    along_y = down.difference @ (grey @ along.smooth.T)
    angles = torch.arange(ORIENTATIONS, device=images.device) * math.pi / ORIENTATIONS
    cos, sin = (part(angles).view(1, -1, 1, 1) for part in (torch.cos, torch.sin))
    channels = torch.addcmul(cos * along_x, sin, along_y).abs()                           # B x 9 x H x W
    channels = down.blur @ (channels @ along.blur.T)
    channels = channels.roll(1, 1) + 2 * channels + channels.roll(-1, 1)
    length = channels.square().sum(1, keepdim=True).sqrt()            # torch.norm over the second of four is slow
    return channels / (length + EPSILON)


class _Matrices:
    """What a row or column of `side` pixels is multiplied by, (side, side) each.

    smooth, difference: the grey image's blur, then the two halves of Sobel's masks. blur: of the channels.
    """

    def __init__(self, side, device):
        blur = _banded(side, _gaussian(SIGMA_GREY))
        self.smooth = (_banded(side, torch.tensor([1.0, 2.0, 1.0])) @ blur).to(device)
        self.difference = (_banded(side, torch.tensor([-1.0, 0.0, 1.0])) @ blur).to(device)
        self.blur = _banded(side, _gaussian(SIGMA_CHANNELS)).to(device)


_matrices = functools.lru_cache(maxsize=16)(_Matrices)


def _gaussian(sigma):
    radius = round(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * sigma ** 2))
    return kernel / kernel.sum()


def _banded(side, kernel):
    """The matrix (side, side) whose product with a column filters it by an odd kernel, its borders mirrored."""
    radius = len(kernel) // 2
    period = torch.full((), max(1, 2 * (side - 1)))     # a tensor: ONNX has no remainder by what a shape tells
    at = (torch.arange(side)[:, None] + torch.arange(-radius, radius + 1)) % period
    at = torch.where(at < side, at, period - at)
    return torch.zeros(side, side).scatter_add_(1, at, kernel.expand(side, -1))
