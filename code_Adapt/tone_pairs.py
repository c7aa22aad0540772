"""Pairs made of one image: a target image, and the same ground in random tones, which stand for the other modality.

What is where stays, what it looks like does not, as between the modalities; and the pair is true. Source of the random
curves: Zhou et al., "Models Genesis", Medical Image Analysis 2021 (non-linear transformation); there they are monotone
Bezier curves, here they go up and down, since a bright roof and a dark lake may swap with what lies between.
"""
import torch

from restyle import restyle
from shared.filters import channel_exchange

KNOTS = 5                                               # of a curve, at equal distances


def random_tones(images, generator):
    """Send the values of each channel of each image through a random curve.

    images: (B, C, S, S) float. The curve goes in straight lines through heights drawn from [0, 1] at KNOTS places
    between the channel's smallest and its largest value. Returns the same shape, in [0, 1].
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    place = (images - low) / (high - low).clamp(min=1e-3) * (KNOTS - 1)
    left = place.long().clamp(max=KNOTS - 2)
    heights = torch.rand((*images.shape[:2], KNOTS), generator=generator).to(images)
    below, above = (heights.gather(2, (left + step).flatten(2)).view_as(images) for step in (0, 1))
    return below + (above - below) * (place - left)


def pairs_of_tones(opt, sar, generator):
    """Pairs (opt, sar), true on one side: of one half of the optical images a SAR image is made, of the other half of
    the SAR images an optical one.

    opt, sar: (B, 3, S, S) float in [0, 1], not matched. What is made has the means and deviations of the images of its
    modality whose place it takes: SAR of one channel's tones or of grey, optical of three curves. Returns the same
    shapes.
    """
    half = len(opt) // 2
    one_channel = channel_exchange(opt[:half], generator)[:, :1]
    made_sar = restyle(random_tones(one_channel, generator).expand(-1, 3, -1, -1), sar[:half])
    made_opt = restyle(random_tones(sar[half:], generator), opt[half:])
    return torch.cat([opt[:half], made_opt]), torch.cat([made_sar, sar[half:]])
