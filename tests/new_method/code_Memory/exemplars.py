"""The modules of a made-up method: a memory of all places, and a decoder on the maps of a stage."""
import torch
import torch.nn.functional as F
from torch import nn


class Memory(nn.Module):
    """A running mean of each place's embedding, (P, D). It learns by update(), not by gradients."""

    def __init__(self, places, dim=512):
        super().__init__()
        self.register_buffer("rows", torch.zeros(places, dim))

    def forward(self, fc, places):
        """Mean squared distance of embeddings (kinds x B, D), kind after kind, to the rows of their places (B)."""
        rows = self.rows[places].repeat(len(fc) // len(places), 1)
        return (fc - rows).square().sum(1).mean()

    @torch.no_grad()
    def update(self, fc, places):
        mean = fc.view(-1, len(places), fc.shape[1]).mean(0)
        self.rows[places] = F.normalize(0.5 * self.rows[places] + 0.5 * mean)


class Decoder(nn.Module):
    """Draws small images from the maps of a stage."""

    def __init__(self, channels):
        super().__init__()
        self.draw = nn.Conv2d(channels, 3, 1)

    def forward(self, maps, images):
        """L1 distance of what is drawn of maps (B, c, h, w) to images (B, 3, H, W), shrunk to h x w."""
        return F.l1_loss(self.draw(maps).float(), F.adaptive_avg_pool2d(images, maps.shape[-2:]))
