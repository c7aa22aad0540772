"""The losses to choose from in contrastive learning: batch-hard triplet, InfoNCE, and a library's."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from shared.losses import cross_modal_triplet
from shared.plumbing.errors import InputError, installation


class InfoNCE(nn.Module):
    """Symmetric InfoNCE: each embedding picks its own place among all of the batch's, from SAR to optical and back.

    temperature: what the scores are divided by at the start; it is learned, not below 0.01.
    label_smoothing: the share of the target that is spread over all places of the batch.
    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, equation 4;
    both directions and the learned temperature: Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021, figure 3.
    """

    def __init__(self, temperature=0.05, label_smoothing=0.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.label_smoothing = label_smoothing

    def temperature(self):
        return (-self.log_scale).exp().clamp(min=0.01)

    def forward(self, fc):
        """fc: (2B, D) L2-normalised, optical then SAR, B different places. Returns the mean of both directions.

        Raises ValueError where there are fewer than two places.
        """
        places = len(fc) // 2
        if places < 2 or 2 * places != len(fc):
            raise ValueError(f"InfoNCE: {len(fc)} embeddings are not 2 kinds of at least 2 places")
        opt, sar = fc.float().chunk(2)
        with torch.autocast(fc.device.type, enabled=False):
            scores = opt @ sar.T / self.temperature()                                         # B x B
        truth = torch.arange(places, device=fc.device)
        return (F.cross_entropy(scores, truth, label_smoothing=self.label_smoothing)
                + F.cross_entropy(scores.T, truth, label_smoothing=self.label_smoothing)) / 2


class BatchHardTriplet(nn.Module):
    """cross_modal_triplet as a module, to stand beside the others."""

    def __init__(self, margin=0.5):
        super().__init__()
        self.margin = margin

    def forward(self, fc):
        """fc: (2B, D) L2-normalised, optical then SAR, B different places. Returns the sum of both directions."""
        return cross_modal_triplet(fc, margin=self.margin)


class LibraryLoss(nn.Module):
    """A loss of pytorch-metric-learning, from optical to SAR and back, with the library's own settings.

    loss: of the library's losses. miner: of its miners of triplets, or None for the loss's own choice of pairs; an
    anchor for which it finds no negative takes any other place, so that its positive is still pulled (as the code of
    Wu et al., ICCV 2017, does).
    """

    def __init__(self, loss, miner=None):
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, fc):
        """fc: (2B, D) L2-normalised, optical then SAR, B different places. Returns the mean of both directions."""
        opt, sar = fc.float().chunk(2)
        return (self._one_way(opt, sar) + self._one_way(sar, opt)) / 2

    def _one_way(self, anchors, others):
        places = torch.arange(len(anchors), device=anchors.device)
        same = places.clone()                             # one tensor for both would mean one set: no positives across
        chosen = self._triplets(anchors, places, others, same) if self.miner else None
        return self.loss(anchors, places, chosen, others, same)

    def _triplets(self, anchors, places, others, same):
        mined = self.miner(anchors, places, others, same)
        left = places[~torch.isin(places, mined[0])]
        other = (left + torch.randint(1, len(places), left.shape, device=left.device)) % len(places)
        return tuple(torch.cat(both) for both in zip(mined, (left, left, other)))


class AfterInfoNCE(nn.Module):
    """InfoNCE in the first epochs, and from then on another loss.

    Batch-hard triplets from scratch may stand for long where all embeddings are alike, and on small parts for good;
    InfoNCE, whose gradient comes from all negatives, has passed there each time.
    """

    def __init__(self, loss, infonce, epochs):
        super().__init__()
        self.loss, self.infonce, self.epochs = loss, infonce, epochs
        self.epoch = 0

    def start_epoch(self, epoch):
        self.epoch = epoch

    def forward(self, fc):
        """fc: (2B, D) L2-normalised, optical then SAR, B different places."""
        return self.infonce(fc) if self.epoch < self.epochs else self.loss(fc)


CONTRASTIVE = ("triplet", "infonce", "multi-similarity", "angular", "distance-weighted")


def build_contrastive(name, margin=0.5, temperature=0.05, label_smoothing=0.0):
    """One of CONTRASTIVE; margin is the triplet loss's, temperature and label_smoothing InfoNCE's.

    Raises InputError where it takes a library that is not there.
    """
    if name == "infonce":
        return InfoNCE(temperature, label_smoothing)
    if name == "triplet":
        return BatchHardTriplet(margin)
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        raise InputError(f"--loss {name} is a loss of pytorch-metric-learning: {installation()}")
    if name == "multi-similarity":
        return LibraryLoss(losses.MultiSimilarityLoss())
    if name == "angular":
        return LibraryLoss(losses.AngularLoss())
    # Sampling and loss belong together (Wu et al., "Sampling Matters", ICCV 2017): with the triplet loss the embeddings
    # collapsed.
    return LibraryLoss(losses.MarginLoss(), miners.DistanceWeightedMiner())


def collapsed_value(loss, places, dim=512):
    """What a loss is where the embeddings of a batch are all alike."""
    with torch.no_grad():
        return loss(F.normalize(torch.ones(2 * places, dim))).item()
