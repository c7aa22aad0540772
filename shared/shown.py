"""How an image is shown in training, so that the network does not lean on colours: as it is, in random tones, or not.

Of one of three images each, structure alone is left (--input both). At test every image is shown as it is.
"""
import torch

KNOTS = 5                                               # of a curve, at equal distances


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
