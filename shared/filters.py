# For code_Aux and code_Adv, and --tta.
"""Pseudo-modal images: channel exchange and filters, on batches of float tensors.

A pseudo-modal image keeps the place and loses some of what tells its modality: channel exchange
takes the colour away, the guided filter the texture, structure all but the directions of edges.
"""
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur

from shared.dataset import to_bytes, to_float
from shared.guided_filter import box_sum, check_images, guided_filter
from shared.structure import structure_image

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
    check_images("channel_exchange", images)
    drawn = torch.randint(len(EXCHANGES), (len(images),), generator=generator)
    weights = EXCHANGES[drawn].to(images)                             # B x 3
    return fill_channels(images, weights)


def fill_channels(images, weights):
    """All three channels of each image become the same weighted sum of them. images: (B, 3, H, W), weights: (B, 3)."""
    return torch.einsum("bc,bchw->bhw", weights, images).unsqueeze(1).expand_as(images)


def lee_filter(images, radius=3, looks=4):
    """The field's own speckle filter: towards the window's mean, the more so the less the window varies beyond speckle.

    images: (B, 3, H, W) float32 in [0, 1]. looks: the equivalent number of looks, whose inverse is speckle's squared
    coefficient of variation. Borders mirror with the edge pixel repeated. Returns the same shape.
    Source: Lee, "Digital Image Enhancement and Noise Filtering by Use of Local Statistics", TPAMI 1980, section III, in
    the form of Lopes et al., "Adaptive Speckle Filters and Scene Heterogeneity", TGRS 1990, equations 5 and 6.
    """
    check_images("lee_filter", images)
    images, area = images.float(), (2 * radius + 1) ** 2
    mean = box_sum(images, radius) / area
    variance = (box_sum(images.square(), radius) / area - mean.square()).clamp(min=0)
    weight = (1 - mean.square() / looks / variance.clamp(min=1e-12)).clamp(min=0)
    return mean + weight * (images - mean)


def gaussian_filter(images, sigma=2.0):
    """The control: a Gaussian blur, sigma in pixels. (B, 3, H, W) float32 -> the same."""
    check_images("gaussian_filter", images)
    return gaussian_blur(images.float(), 2 * round(3 * sigma) + 1, sigma)


def anisotropic_diffusion(images, steps=10, rate=0.15, kappa=0.16):
    """Diffusion that stops at edges: steps of Perona and Malik's scheme, on four neighbours.

    images: (B, 3, H, W) float32 in [0, 1]. rate: of a step, at most 0.25. kappa: the colour difference of neighbours,
    as a root mean square over the channels, from which on it counts as an edge. Nothing flows over the border. Returns
    the same shape.
    Not OpenCV's ximgproc.anisotropicDiffusion, whose border pixels are uninitialised memory (opencv_contrib issue
    1573; here it gave another result on each call).
    Source: Perona and Malik, "Scale-Space and Edge Detection Using Anisotropic Diffusion", TPAMI 1990, equations 7
    to 9.
    """
    check_images("anisotropic_diffusion", images)
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


@dataclass(frozen=True)
class Filter:
    """filter(images, other): both (B, 3, H, W) float32 in [0, 1], `other` the places' images of the other modality.

    apply: a function of the images, or of the images and the other ones where needs_other: a query at test time has
    none.
    """
    apply: object
    needs_other: bool = False

    def __call__(self, images, other=None):
        return self.apply(images, other) if self.needs_other else self.apply(images)


def unfiltered(images):
    """The images themselves: with `--filter none` the loss has its twelve terms, each image twice, and nothing new."""
    return images


def _guided_by_itself(images):
    return guided_filter(images, images)


def _guided_by_other(images, other):
    return guided_filter(other, images, eps=0.01)                     # with 0.36 a mere box mean


def _each(filter_image, *settings, **named):
    """A filter of OpenCV's, (H, W, 3) uint8 -> (H, W, 3), as a Filter of batches; it runs on the CPU."""
    def filter_all(images):
        filtered = [filter_image(image, *settings, **named) for image in to_bytes(images).numpy()]
        return to_float(torch.from_numpy(np.stack(filtered)), images.device)
    return Filter(filter_all)


def _domain_transform(image):
    return cv2.ximgproc.dtFilter(image, image, 8, 60)


def _fast_global_smoother(image):
    return cv2.ximgproc.fastGlobalSmootherFilter(image, image, 100, 30)


# --filter
FILTERS = {
    "none": Filter(unfiltered),
    "guided": Filter(_guided_by_itself),
    "guided-by-other": Filter(_guided_by_other, needs_other=True),
    "bilateral": _each(cv2.bilateralFilter, 9, 40, 4),
    "rolling-guidance": _each(cv2.ximgproc.rollingGuidanceFilter, d=9, sigmaColor=40, sigmaSpace=4, numOfIter=4),
    "domain-transform": _each(_domain_transform),
    "anisotropic-diffusion": Filter(anisotropic_diffusion),
    "fast-global-smoother": _each(_fast_global_smoother),
    "lee": Filter(lee_filter),
    "gaussian": Filter(gaussian_filter),
    "structure": Filter(structure_image),
}


def pseudo_modal(images, exchange, filter_name=None, generator=None, guide=None):
    """The pseudo-modal images of a batch: a filter, then channel exchange, each where asked for.

    images: (B, 3, H, W) float32 in [0, 1]. filter_name: one of FILTERS, or None. guide: the places' images of the
    other modality, which `guided-by-other` needs. Returns the same shape, in [0, 1].
    The filtered image is divided by each channel's maximum, as the author does, since the guided filter's large eps
    takes most of the contrast.
    """
    if filter_name:
        images = FILTERS[filter_name](images, guide)
        images = images / images.amax((2, 3), keepdim=True).clamp(min=1e-6)   # a black channel stays black
    if exchange:
        images = channel_exchange(images, generator)
    return images
