# For code_Con in training (and others that learn from parts), --tta at test.
"""How an image is shown to a network: in training as a part of it, in random tones or not at all; at test as several
views of itself, whose embeddings are averaged."""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from shared.filters import EXCHANGES, fill_channels, pseudo_modal
from shared.plumbing.run_files import side_of_part
from shared.reading.windows import apply_symmetry

KNOTS = 5                                               # of a curve of tones, at equal distances


# In training ---------------------------------------------------------------------------------------------------------

def random_part(images, part, generator):
    """The same square of all images, at one random place for the whole batch.

    images: a sequence of (B, C, S, S), one for each kind of image. part: side of the square, as side_of_part reads it.
    generator: a torch.Generator on the CPU.
    Returns as many (B, C, part, part), or the images as they came.
    """
    side = side_of_part(part, images[0].shape[-1])
    room = images[0].shape[-1] - side
    if room == 0:
        return images
    top, left = torch.randint(room + 1, (2,), generator=generator).tolist()
    return [kind[:, :, top:top + side, left:left + side] for kind in images]


def random_tones(images, generator):
    """Send the values of each channel of each image through a random curve.

    images: (B, C, S, S) float. The curve goes in straight lines through heights drawn from [0, 1] at KNOTS places
    between the channel's smallest and its largest value. Returns the same shape, in [0, 1].
    Source: Zhou et al., "Models Genesis", Medical Image Analysis 2021 (non-linear transformation); there they are
    monotone Bezier curves, here they go up and down, since a bright roof and a dark lake may swap with what lies
    between.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    place = (images - low) / (high - low).clamp(min=1e-3) * (KNOTS - 1)
    left = place.long().clamp(max=KNOTS - 2)
    heights = torch.rand((*images.shape[:2], KNOTS), generator=generator).to(images)
    below, above = (heights.gather(2, (left + step).flatten(2)).view_as(images) for step in (0, 1))
    return below + (above - below) * (place - left)


def with_shown(images, blank, left_out, toned, generator):
    """Images and, after them, what is shown in their place: (B, 3, S, S) float in [0, 1] -> (B, 6, S, S).

    blank: the colour of an image that is left out, (1, 3, 1, 1): a network's mean, which normalises to zero. left_out,
    toned: shares of the images, each drawn by itself; the rest is shown as it is.
    generator: a torch.Generator on the CPU.
    """
    draw = torch.rand(len(images), generator=generator)
    absent = (draw < left_out).nonzero()[:, 0]
    in_tones = ((left_out <= draw) & (draw < left_out + toned)).nonzero()[:, 0]
    shown = images.clone()
    if len(in_tones):
        shown[in_tones] = random_tones(images[in_tones], generator)
    shown[absent] = blank
    return torch.cat([images, shown], 1)


# At test -------------------------------------------------------------------------------------------------------------

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
