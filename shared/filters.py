"""Pseudo-modal images: channel exchange and the guided filter, on batches of float tensors.

A pseudo-modal image keeps the place and loses some of what tells its modality: channel exchange
takes the colour away, the guided filter the texture.
"""
import cv2
import numpy as np
import torch
import torch.nn.functional as F

# Rows: what fills the three channels. Columns: the weights of R, G and B. Grey is ITU-R BT.601's luma.
EXCHANGES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2989, 0.5870, 0.1140]])


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
    filled = torch.einsum("bc,bchw->bhw", weights, images)            # B x H x W
    return filled.unsqueeze(1).expand_as(images)


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
    self_guided = guide is images
    guide = guide.float()
    images = images.float()
    mean_guide = _box_mean(guide, radius)                             # B x 3 x H x W
    mean_image = mean_guide if self_guided else _box_mean(images, radius)

    # Covariance of the guide: six entries of a symmetric 3 x 3 matrix at every pixel.
    rows, columns = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
    covariance = _box_mean(guide[:, rows] * guide[:, columns], radius) - mean_guide[:, rows] * mean_guide[:, columns]
    symmetric = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]                     # entry (i, j) among the six
    factors = _factorize(covariance, eps)

    filtered = []
    for channel in range(3):
        if self_guided:
            cross = covariance[:, symmetric[channel]]                 # B x 3 x H x W
        else:
            image = images[:, channel:channel + 1]
            cross = _box_mean(guide * image, radius) - mean_guide * mean_image[:, channel:channel + 1]
        slope = _solve(factors, cross)                                                             # eq. 19
        offset = mean_image[:, channel] - (slope * mean_guide).sum(1)                              # eq. 20
        mean = _box_mean(torch.cat([slope, offset.unsqueeze(1)], 1), radius)
        filtered.append((mean[:, :3] * guide).sum(1) + mean[:, 3])                                 # eq. 21
    return torch.stack(filtered, 1)


def _factorize(covariance, eps):
    """L D L^T of covariance + eps I at every pixel, written out: cofactors lose twice the digits, a batched solver is slow."""
    rr, rg, rb, gg, gb, bb = covariance.unbind(1)
    d0 = rr + eps
    l10, l20 = rg / d0, rb / d0
    d1 = gg + eps - l10 * rg
    rest = gb - l20 * rg
    l21 = rest / d1
    d2 = bb + eps - l20 * rb - l21 * rest
    return d0, d1, d2, l10, l20, l21


def _solve(factors, right):
    """Solve the factorized systems for right (B, 3, H, W)."""
    d0, d1, d2, l10, l20, l21 = factors
    y0, y1, y2 = right.unbind(1)
    y1 = y1 - l10 * y0
    y2 = y2 - l20 * y0 - l21 * y1
    x2 = y2 / d2
    x1 = y1 / d1 - l21 * x2
    x0 = y0 / d0 - l10 * x1 - l20 * x2
    return torch.stack([x0, x1, x2], 1)


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


def pseudo_modal(images, exchange, guided, generator=None):
    """The pseudo-modal images of a batch: guided filter, then channel exchange, each where asked for.

    images: (B, 3, H, W) float32 in [0, 1]. Returns the same shape, in [0, 1].
    The filtered image is divided by each channel's maximum, as the author does, since the large eps
    takes most of the contrast.
    """
    if guided:
        images = guided_filter(images, images)
        images = images / images.amax((2, 3), keepdim=True).clamp(min=1e-6)   # a black channel stays black
    if exchange:
        images = channel_exchange(images, generator)
    return images


def _box_mean(images, radius):
    """Mean over the (2 radius + 1)^2 window, borders mirrored with the edge pixel repeated."""
    for dim in (-1, -2):
        size = images.shape[dim]
        index = torch.arange(-radius, size + radius, device=images.device)
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index >= size, 2 * size - 1 - index, index)
        kernel = (1, 2 * radius + 1) if dim == -1 else (2 * radius + 1, 1)
        images = F.avg_pool2d(images.index_select(dim, index), kernel, stride=1)
    return images


def _check_images(name, images):
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
