"""What is common to two regions and what is each one's own: private branches, a decoder, and the losses between them.

Source: Li et al., "Adaptation and Re-Identification Network: An Unsupervised Deep Transfer Learning Approach to Person
Re-Identification", CVPR Workshops 2018, section 3.
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from shared.losses import squared_distances

REGIONS = ("source", "target")


class Branches(nn.Module):
    """A private branch for each region, and the decoder. What is common is the network's own last stage.

    last_stage: the network's own, of which each private branch is a copy. outputs, inputs: channels of its maps
    and of those before it. private: without it the decoder has the common maps alone.
    """

    def __init__(self, last_stage, inputs, outputs, private=True):
        super().__init__()
        branches = {region: copy.deepcopy(last_stage) for region in REGIONS} if private else {}
        self.private = nn.ModuleDict(branches)
        self.decoder = nn.Sequential(
            nn.Conv2d(outputs * (2 if private else 1), outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True), nn.Conv2d(outputs, inputs, 3, padding=1))

    def forward(self, base, common, region):
        """What the private branch of a region makes of the maps before the last stage, and these maps drawn from both.

        base: (N, inputs, h, w), common: (N, outputs, h', w'). Returns (N, outputs, h', w'), or None without private
        branches, and (N, inputs, h, w).
        """
        private = self.private[region](base) if self.private else None
        both = common if private is None else torch.cat([common, private], 1)
        return private, F.interpolate(self.decoder(both), size=base.shape[-2:], mode="bilinear", align_corners=False)


def of_regions(x):
    """(source, target) of the rows of a batch: optical of source and of target, then SAR of source and of target."""
    opt, target_opt, sar, target_sar = x.chunk(4)
    return torch.cat([opt, sar]), torch.cat([target_opt, target_sar])


def reconstruction_loss(drawn, base):
    """Mean squared error (equation 3). The maps that are drawn are not moved towards the drawing: they would vanish."""
    return F.mse_loss(drawn.float(), base.detach().float())


def difference_loss(common, private):
    """How much the private maps repeat the common ones: mean over the channels' pairs of (Hc^T Hp)^2 (equation 4).

    Maps (N, c, h, w) become rows of Hc and Hp: averaged over the image, centred over the batch, L2-normalised.
    As Bousmalis et al., "Domain Separation Networks", NeurIPS 2016, do in their code, the mean stands for the sum of
    squares of the Frobenius norm: a weight does not depend on the width.
    """
    hc, hp = (maps.float().mean((2, 3)) for maps in (common, private))
    hc, hp = (F.normalize(h - h.mean(0)) for h in (hc, hp))
    with torch.autocast(hc.device.type, enabled=False):
        return (hc.T @ hp).square().mean()


def contrastive_loss(fc, margin=1.0):
    """Pairs of a place close, others at least a margin apart (equation 2), from optical to SAR.

    fc: (2B, D), optical then SAR rows of B places. Squared distances of pairs, and squared hinges max(0, margin - d) of
    the others, each averaged by itself, so that a large batch does not drown the pairs.
    """
    opt, sar = fc.chunk(2)
    squared = squared_distances(opt, sar)
    same = torch.eye(len(opt), dtype=torch.bool, device=fc.device)
    distance = squared.clamp(min=1e-12).sqrt()
    return squared[same].mean() + F.relu(margin - distance[~same]).square().mean()
