"""Pairs made of one image: a target image, and the same ground in random tones, which stand for the other modality.

What is where stays, what it looks like does not, as between the modalities; and the pair is true.
"""
import torch

from restyle import restyle
from shared.filters import channel_exchange
from shared.views import random_tones


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
