# For filters.py and structure.py.
"""The guided filter with a colour guide, on batches of float tensors, differentiable and on any device.

Source: He, Sun, Tang, "Guided Image Filtering", TPAMI 2013. In every window the output is an affine function of the
guide's colour I: q = a . I + b, as near to the image p as the regularisation eps lets it; then each pixel takes the
mean over all windows that hold it.
"""
from typing import NamedTuple

import cv2
import numpy as np
import torch

CACHED_PIXELS = 80_000                                  # pixels of a portion: two images of 200 x 200


def guided_filter(guide, images, radius=4, eps=0.36):
    """Filter a batch by its guide.

    guide, images: (B, 3, H, W) float32 in [0, 1]; `guide is images` is the self-guided filter.
    radius: of the square window, in pixels. eps: regularisation, in squared units of the guide.
    Returns (B, 3, H, W) float32. Borders mirror with the edge pixel repeated, as OpenCV's do.
    Raises ValueError where the shapes differ or the radius is larger than the image.
    Source: as above, equations 19 to 21.
    """
    check_images("guided_filter", guide)
    check_images("guided_filter", images)
    if guide.shape != images.shape:
        raise ValueError(f"guided_filter: guide {tuple(guide.shape)} and images {tuple(images.shape)} differ in shape")
    if not 1 <= radius <= min(images.shape[-2:]):
        raise ValueError(f"guided_filter: radius {radius} does not fit images of {tuple(images.shape[-2:])} px")
    # A portion at a time on a CPU, so that the dozens of maps between input and output stay in the cache: 3.5 times
    # faster.
    portion = max(1, CACHED_PIXELS // guide[0, 0].numel()) if guide.device.type == "cpu" else len(guide)
    if guide is images:
        return torch.cat([_self_guided(part.float(), radius, eps) for part in images.split(portion)])
    parts = zip(guide.split(portion), images.split(portion))
    return torch.cat([_guided(part.float(), image.float(), radius, eps) for part, image in parts])


class Symmetric(NamedTuple):
    """A symmetric 3 x 3 matrix at every pixel, each entry (B, H, W)."""
    xx: torch.Tensor
    xy: torch.Tensor
    xz: torch.Tensor
    yy: torch.Tensor
    yz: torch.Tensor
    zz: torch.Tensor

    def rows(self):
        return (self.xx, self.xy, self.xz), (self.xy, self.yy, self.yz), (self.xz, self.yz, self.zz)

    def times(self, vector):
        """The matrix times a vector of three maps."""
        return [row[0] * vector[0] + row[1] * vector[1] + row[2] * vector[2] for row in self.rows()]


def _guided(guide, images, radius, eps):
    area = (2 * radius + 1) ** 2
    colours = guide.unbind(1)                                         # r, g, b: B x H x W each
    mean_colours, inverse = _window_statistics(colours, radius, eps)
    filtered = []
    for image in images.unbind(1):
        products = [image] + [colour * image for colour in colours]
        mean, *mean_products = box_sum(torch.stack(products, 1), radius).mul_(1 / area).unbind(1)
        covariances = [less_dot(product, [mean_colour], [mean])
                       for product, mean_colour in zip(mean_products, mean_colours)]
        slope = inverse.times(covariances)                            # eq. 19: a = (Sigma + eps U)^-1 cov(I, p)
        offset = less_dot(mean, slope, mean_colours)                  # eq. 20: b = mean(p) - a . mean(I)
        x, y, z, b = box_sum(torch.stack([*slope, offset], 1), radius).mul_(1 / area).unbind(1)
        red, green, blue = colours
        filtered.append(x * red + y * green + z * blue + b)           # eq. 21: q = mean(a) . I + mean(b)
    return torch.stack(filtered, 1)


def _self_guided(guide, radius, eps):
    """The same where the guide is the image: it needs 9 sums instead of 21.

    Eq. 19 with p = I: cov(I, I) = Sigma = (Sigma + eps U) - eps U, so the slopes are U - eps (Sigma + eps U)^-1, and
    the filter is the image less a correction, which loses no digits where the slopes are nearly 0 or 1.
    """
    area = (2 * radius + 1) ** 2
    colours = guide.unbind(1)
    mean_colours, inverse = _window_statistics(colours, radius, eps)
    # Eq. 20 and 21: q = I + eps mean(inverse . mean(I) - inverse . I), a sum over the windows of each pixel.
    sums = box_sum(torch.stack([*inverse, *inverse.times(mean_colours)], 1), radius).unbind(1)
    sum_of_inverses, sums_of_products = Symmetric(*sums[:6]), sums[6:]
    corrections = [less_dot(product, row, colours) for product, row in zip(sums_of_products, sum_of_inverses.rows())]
    return torch.add(guide, torch.stack(corrections, 1), alpha=eps / area)


def _window_statistics(colours, radius, eps):
    """Of the guide in every window: mean(I), three maps (B, H, W), and (Sigma + eps U)^-1, Symmetric."""
    r, g, b = colours
    area = (2 * radius + 1) ** 2
    products = [r, g, b, r * r, r * g, r * b, g * g, g * b, b * b]
    mr, mg, mb, rr, rg, rb, gg, gb, bb = box_sum(torch.stack(products, 1), radius).mul_(1 / area).unbind(1)
    # Sigma = mean(I I^T) - mean(I) mean(I)^T
    sigma = Symmetric(less_dot(rr, [mr], [mr]) + eps, less_dot(rg, [mr], [mg]), less_dot(rb, [mr], [mb]),
                      less_dot(gg, [mg], [mg]) + eps, less_dot(gb, [mg], [mb]), less_dot(bb, [mb], [mb]) + eps)
    return (mr, mg, mb), _inverse(sigma)


def _inverse(matrix):
    """By L D L^T, written out: cofactors lose twice the digits, a batched solver is many times slower."""
    xx, xy, xz, yy, yz, zz = matrix
    # L = [1 0 0; ly 1 0; lz lyz 1], D = diag(1 / ix, 1 / iy, 1 / iz)
    ix = 1 / xx
    ly, lz = xy * ix, xz * ix
    iy = 1 / less_dot(yy, [ly], [xy])
    rest = less_dot(yz, [lz], [xy])
    lyz = rest * iy
    iz = 1 / less_dot(zz, [lz, lyz], [xz, rest])
    # L^-1 = [1 0 0; -ly 1 0; corner -lyz 1]; the inverse is L^-T D^-1 L^-1
    corner = less_dot(-lz, [-ly], [lyz])
    ixz, iyz = corner * iz, -lyz * iz
    ixx = torch.addcmul(torch.addcmul(ix, ly * ly, iy), corner, ixz)
    ixy = less_dot(corner * iyz, [ly], [iy])
    iyy = less_dot(iy, [lyz], [iyz])
    return Symmetric(ixx, ixy, ixz, iyy, iyz, iz)


def less_dot(x, vector, other):
    """x - vector . other, one pass over the pixels for each of their maps."""
    for v, o in zip(vector, other):
        x = torch.addcmul(x, v, o, value=-1)
    return x


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


def box_sum(images, radius):
    """Sum over the (2 radius + 1)^2 window, borders mirrored with the edge pixel repeated. (..., H, W) -> the same."""
    for dim in (-2, -1):
        size = images.shape[dim]
        before = images.narrow(dim, 0, radius).flip(dim)
        after = images.narrow(dim, size - radius, radius).flip(dim)
        images = _sliding_sum(torch.cat([before, images, after], dim), dim, 2 * radius + 1)
    return images


def _sliding_sum(images, dim, window):
    """Sums of `window` neighbours along a dimension, by doubling: sums of 2, 4, 8 ... give any window quickly."""
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


def check_images(name, images):
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
