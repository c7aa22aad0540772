"""Test-time averaging: an image is embedded as several views of itself."""
import torch
import torch.nn.functional as F

from shared.filters import EXCHANGES, fill_channels, pseudo_modal
from shared.windows import apply_symmetry


def _symmetry(number):
    return lambda images: apply_symmetry(images.permute(0, 2, 3, 1), torch.full((len(images),), number, device=images.device)).permute(0, 3, 1, 2)


def _exchange(number):
    return lambda images: fill_channels(images, EXCHANGES[number].to(images).expand(len(images), 3))


def _join(parts):
    """One vector after the other: the inner product is the mean of the views' own, so that a view meets the same view of the other image."""
    return torch.cat(parts, 1) / len(parts) ** 0.5


def _average(parts):
    """The mean vector: every view meets every view of the other image."""
    return F.normalize(torch.stack(parts).mean(0))


# Name: (views of images (B, 3, S, S) in [0, 1], how their embeddings become one). The first view is the image itself.
# Turned or mirrored, both images of a pair are so together; a pseudo-modal image stands for its own modality alone.
TEST_TIME = {
    "none": ([lambda images: images], _join),
    "flip": ([_symmetry(0), _symmetry(1)], _join),
    "symmetries": ([_symmetry(number) for number in range(8)], _join),
    "exchange": ([lambda images: images] + [_exchange(number) for number in range(4)], _average),
    "guided": ([lambda images: images, lambda images: pseudo_modal(images, exchange=False, filter_name="guided")], _average),
}
