"""Pseudo-modal images: channel exchange and the guided filter, on batches of float tensors.

A pseudo-modal image keeps the place and loses some of what tells its modality: channel exchange
takes the colour away, the guided filter the texture.
"""
import cv2
import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur

from shared.dataset import to_bytes, to_float

# Rows: what fills the three channels. Columns: the weights of R, G and B. Grey is ITU-R BT.601's luma.
EXCHANGES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2989, 0.5870, 0.1140]])

CACHED_PIXELS = 80_000                                  # pixels of a portion: two images of 200 x 200


def channel_exchange(images, generator=None):
    """Fill all three channels with R, G, B or grey, drawn uniformly and for each image on its own.

    images: (B, 3, H, W) float, any range (the grey of [0, 1] values stays in [0, 1]).
    generator: a torch.Generator on the CPU, so that the draws are the same on every device.
    Returns (B, 3, H, W), the same type and device.
    Source: Ye et al., "Channel Augmented Joint Learning for Visible-Infrared Recognition", ICCV 2021,
    section 3.2 (random channel exchange), with grey as a fourth choice.
    """
    _check_images("channel_exchange", images)
    drawn = torch.randint(len(EXCHANGES), (len(images),), generator=generator)
    weights = EXCHANGES[drawn].to(images)                             # B x 3
    return fill_channels(images, weights)


def fill_channels(images, weights):
    """All three channels of each image become the same weighted sum of them. images: (B, 3, H, W), weights: (B, 3)."""
    return torch.einsum("bc,bchw->bhw", weights, images).unsqueeze(1).expand_as(images)


def guided_filter(guide, images, radius=4, eps=0.36):
    """The guided filter with a colour guide, on a batch, differentiable and on any device.

    guide, images: (B, 3, H, W) float32 in [0, 1]; `guide is images` is the self-guided filter.
    radius: of the square window, in pixels. eps: regularisation, in squared units of the guide.
    Returns (B, 3, H, W) float32. Borders mirror with the edge pixel repeated, as OpenCV's do.
    Raises ValueError where the shapes differ or the radius is larger than the image.
    Source: He, Sun, Tang, "Guided Image Filtering", TPAMI 2013, equations 19 to 21.
    """
    _check_images("guided_filter", guide)
    _check_images("guided_filter", images)
    if guide.shape != images.shape:
        raise ValueError(f"guided_filter: guide {tuple(guide.shape)} and images {tuple(images.shape)} differ in shape")
    if not 1 <= radius <= min(images.shape[-2:]):
        raise ValueError(f"guided_filter: radius {radius} does not fit images of {tuple(images.shape[-2:])} px")
    if guide.device.type != "cpu":
        return _guided_filter(guide, images, radius, eps)
    # A portion at a time on a CPU, so that the dozens of maps between input and output stay in the cache: 3.5 times faster.
    portion = max(1, CACHED_PIXELS // guide[0, 0].numel())
    guides = guide.split(portion)
    parts = guides if guide is images else images.split(portion)
    return torch.cat([_guided_filter(g, i, radius, eps) for g, i in zip(guides, parts)])


def _guided_filter(guide, images, radius, eps):
    self_guided = guide is images
    guide, images = guide.float(), images.float()
    r, g, b = guide.unbind(1)                                         # B x H x W each
    area = (2 * radius + 1) ** 2
    means = _box_sum(torch.stack([r, g, b, r * r, r * g, r * b, g * g, g * b, b * b], 1), radius).mul_(1 / area)
    mr, mg, mb, rr, rg, rb, gg, gb, bb = means.unbind(1)
    inverse = _inverse((_minus(rr, mr, mr) + eps, _minus(rg, mr, mg), _minus(rb, mr, mb),
                        _minus(gg, mg, mg) + eps, _minus(gb, mg, mb), _minus(bb, mb, mb) + eps))
    if self_guided:
        # Eq. 19 with p = I: the slopes are I - eps (Sigma + eps I)^-1, so that the filter is the image less a correction.
        # It needs 9 sums instead of 21, and loses no digits where the slopes are nearly 0 or 1.
        sums = _box_sum(torch.stack([*inverse, *_times(inverse, (mr, mg, mb))], 1), radius).unbind(1)
        corrections = [_minus(_minus(_minus(q, x, r), y, g), z, b) for q, (x, y, z) in zip(sums[6:], _rows(sums))]
        return torch.add(guide, torch.stack(corrections, 1), alpha=eps / area)
    filtered = []
    for image in images.unbind(1):
        mean, cr, cg, cb = _box_sum(torch.stack([image, r * image, g * image, b * image], 1), radius).mul_(1 / area).unbind(1)
        slope = _times(inverse, (_minus(cr, mr, mean), _minus(cg, mg, mean), _minus(cb, mb, mean)))              # eq. 19
        offset = _minus(_minus(_minus(mean, slope[0], mr), slope[1], mg), slope[2], mb)                          # eq. 20
        x, y, z, rest = _box_sum(torch.stack([*slope, offset], 1), radius).mul_(1 / area).unbind(1)
        filtered.append(x * r + y * g + z * b + rest)                                                            # eq. 21
    return torch.stack(filtered, 1)


# A symmetric 3 x 3 matrix at every pixel is its six entries xx, xy, xz, yy, yz, zz.


def _rows(matrix):
    xx, xy, xz, yy, yz, zz = matrix[:6]
    return (xx, xy, xz), (xy, yy, yz), (xz, yz, zz)


def _times(matrix, vector):
    return [sum_of[0] * vector[0] + sum_of[1] * vector[1] + sum_of[2] * vector[2] for sum_of in _rows(matrix)]


def _inverse(matrix):
    """By L D L^T, written out: cofactors lose twice the digits, a batched solver is many times slower."""
    xx, xy, xz, yy, yz, zz = matrix
    ix = 1 / xx
    ly, lz = xy * ix, xz * ix
    iy = 1 / _minus(yy, ly, xy)
    rest = _minus(yz, lz, xy)
    lyz = rest * iy
    iz = 1 / _minus(_minus(zz, lz, xz), lyz, rest)
    m = _minus(-lz, -ly, lyz)                                         # the lower left entry of L^-1; the others are -ly and -lyz
    ixz, iyz = m * iz, -lyz * iz
    return (torch.addcmul(torch.addcmul(ix, ly * ly, iy), m, ixz), _minus(m * iyz, ly, iy), ixz, _minus(iy, lyz, iyz), iyz, iz)


def _minus(x, y, z):
    """x - y z in one pass."""
    return torch.addcmul(x, y, z, value=-1)


def guided_filter_opencv(guide, image, radius=4, eps=0.36):
    """The same filter by cv2.ximgproc, for one image.

    guide, image: (H, W, 3) float in [0, 1]. Returns (H, W, 3) float32.
    Two traps, measured. On [0, 1] values OpenCV takes small covariances for singular below an eps of about
    0.01 and returns something else, so this runs on 0 to 255 values with eps x 255^2. And the covariance of a
    grey guide (three equal channels) has rank one, which OpenCV inverts with errors up to 3e-4 at radius 2 and
    eps 0.0004: one channel with a third of eps is the same filter, and exact.
    """
    guide, image = np.float32(guide) * 255, np.float32(image) * 255
    if (guide == guide[..., :1]).all():
        guide, eps = guide[..., 0], eps / 3
    return cv2.ximgproc.guidedFilter(guide, image, radius, eps * 255 ** 2) / 255


def lee_filter(images, radius=3, looks=4):
    """The field's own speckle filter: towards the window's mean, the more so the less the window varies beyond speckle.

    images: (B, 3, H, W) float32 in [0, 1]. looks: the equivalent number of looks, whose inverse is speckle's squared
    coefficient of variation. Borders mirror with the edge pixel repeated. Returns the same shape.
    Source: Lee, "Digital Image Enhancement and Noise Filtering by Use of Local Statistics", TPAMI 1980, section III, in
    the form of Lopes et al., "Adaptive Speckle Filters and Scene Heterogeneity", TGRS 1990, equations 5 and 6.
    """
    _check_images("lee_filter", images)
    images, area = images.float(), (2 * radius + 1) ** 2
    mean = _box_sum(images, radius) / area
    variance = (_box_sum(images.square(), radius) / area - mean.square()).clamp(min=0)
    weight = (1 - mean.square() / looks / variance.clamp(min=1e-12)).clamp(min=0)
    return mean + weight * (images - mean)


def gaussian_filter(images, sigma=2.0):
    """The control: a Gaussian blur, sigma in pixels. (B, 3, H, W) float32 -> the same."""
    _check_images("gaussian_filter", images)
    return gaussian_blur(images.float(), 2 * round(3 * sigma) + 1, sigma)


def anisotropic_diffusion(images, steps=10, rate=0.15, kappa=0.16):
    """Diffusion that stops at edges: steps of Perona and Malik's scheme, on four neighbours.

    images: (B, 3, H, W) float32 in [0, 1]. rate: of a step, at most 0.25. kappa: the colour difference of neighbours, as a root mean
    square over the channels, from which on it counts as an edge. Nothing flows over the border. Returns the same shape.
    Not OpenCV's ximgproc.anisotropicDiffusion, whose border pixels are uninitialised memory (opencv_contrib issue 1573; here it gave
    another result on each call).
    Source: Perona and Malik, "Scale-Space and Edge Detection Using Anisotropic Diffusion", TPAMI 1990, equations 7 to 9.
    """
    _check_images("anisotropic_diffusion", images)
    images = images.float().clone()
    for _ in range(steps):
        change = torch.zeros_like(images)
        for dim in (2, 3):
            length = images.shape[dim] - 1
            difference = images.narrow(dim, 1, length) - images.narrow(dim, 0, length)
            flow = difference * torch.exp(-difference.square().mean(1, keepdim=True) / kappa ** 2)
            change.narrow(dim, 0, length).add_(flow)
            change.narrow(dim, 1, length).sub_(flow)
        images += rate * change
    return images


def _each(filter_one):
    """A filter of OpenCV's, (H, W, 3) uint8 -> (H, W, 3), as one on batches of tensors; it runs on the CPU."""
    def filter_all(images, guide):
        return to_float(torch.from_numpy(np.stack([filter_one(image) for image in to_bytes(images).numpy()])), images.device)
    return filter_all


# Name -> filter(images, guide), both (B, 3, H, W) float32 in [0, 1]; `guide` is the place's image of the other modality.
FILTERS = {
    "none": lambda images, guide: images,
    "guided": lambda images, guide: guided_filter(images, images),
    "guided-by-other": lambda images, guide: guided_filter(guide, images, eps=0.01),      # with 0.36 a mere box mean
    "bilateral": _each(lambda image: cv2.bilateralFilter(image, 9, 40, 4)),
    "rolling-guidance": _each(lambda image: cv2.ximgproc.rollingGuidanceFilter(image, d=9, sigmaColor=40, sigmaSpace=4, numOfIter=4)),
    "domain-transform": _each(lambda image: cv2.ximgproc.dtFilter(image, image, 8, 60)),
    "anisotropic-diffusion": lambda images, guide: anisotropic_diffusion(images),
    "fast-global-smoother": _each(lambda image: cv2.ximgproc.fastGlobalSmootherFilter(image, image, 100, 30)),
    "lee": lambda images, guide: lee_filter(images),
    "gaussian": lambda images, guide: gaussian_filter(images),
}


def pseudo_modal(images, exchange, filter_name=None, generator=None, guide=None):
    """The pseudo-modal images of a batch: a filter, then channel exchange, each where asked for.

    images: (B, 3, H, W) float32 in [0, 1]. filter_name: one of FILTERS, or None. guide: the places' images of the other modality,
    which `guided-by-other` needs. Returns the same shape, in [0, 1].
    The filtered image is divided by each channel's maximum, as the author does, since the guided filter's large eps
    takes most of the contrast.
    """
    if filter_name:
        images = FILTERS[filter_name](images, guide)
        images = images / images.amax((2, 3), keepdim=True).clamp(min=1e-6)   # a black channel stays black
    if exchange:
        images = channel_exchange(images, generator)
    return images


def _box_sum(images, radius):
    """Sum over the (2 radius + 1)^2 window, borders mirrored with the edge pixel repeated. (..., H, W) -> the same."""
    for dim in (-2, -1):
        size = images.shape[dim]
        before, after = images.narrow(dim, 0, radius).flip(dim), images.narrow(dim, size - radius, radius).flip(dim)
        images = _sliding_sum(torch.cat([before, images, after], dim), dim, 2 * radius + 1)
    return images


def _sliding_sum(images, dim, window):
    """Sums of `window` neighbours along a dimension, by doubling: sums of 2, 4, 8 ... give any window in few additions."""
    size = images.shape[dim] - window + 1
    total, offset, width = None, 0, 1
    while True:
        if window & width:
            part = images.narrow(dim, offset, size)
            total = part if total is None else total + part
            offset += width
        if 2 * width > window:
            return total
        length = images.shape[dim] - width
        images = images.narrow(dim, 0, length) + images.narrow(dim, width, length)
        width *= 2


def _check_images(name, images):
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
