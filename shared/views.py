"""Test-time averaging: an image is embedded as several views of itself."""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from shared.filters import EXCHANGES, fill_channels, pseudo_modal
from shared.windows import apply_symmetry


@dataclass(frozen=True)
class Views:
    """views: functions of images (B, 3, S, S) in [0, 1]; the first gives the image itself. combine: makes one vector of
    their embeddings, a list of (B, D)."""
    views: tuple
    combine: object


def _itself(images):
    return images


def under_symmetry(images, symmetry):
    """Each of (B, 3, S, S) under its own symmetry of the square: apply_symmetry for images as a network takes them."""
    return apply_symmetry(images.permute(0, 2, 3, 1), symmetry).permute(0, 3, 1, 2)


def _symmetry(images, number):
    """One of the eight symmetries of the square."""
    return under_symmetry(images, torch.full((len(images),), number, device=images.device))


def _exchange(images, number):
    return fill_channels(images, EXCHANGES[number].to(images).expand(len(images), 3))


def _filtered(images, name):
    return pseudo_modal(images, exchange=False, filter_name=name)


def _join(parts):
    """One vector after the other: the inner product is the mean of the views' own, so that a view meets the same view
    of the other image."""
    return torch.cat(parts, 1) / len(parts) ** 0.5


def _average(parts):
    """The mean vector: every view meets every view of the other image."""
    return F.normalize(torch.stack(parts).mean(0))


_symmetries = tuple(partial(_symmetry, number=number) for number in range(8))
_exchanges = tuple(partial(_exchange, number=number) for number in range(len(EXCHANGES)))

# --tta. Turned or mirrored, both images of a pair are so together; a pseudo-modal image stands for its own modality
# alone.
VIEWS = {
    "none": Views((_itself,), _join),
    "flip": Views(_symmetries[:2], _join),
    "symmetries": Views(_symmetries, _join),
    "exchange": Views((_itself, *_exchanges), _average),
    "guided": Views((_itself, partial(_filtered, name="guided")), _average),
    "structure": Views((_itself, partial(_filtered, name="structure")), _average),
}
