"""The cross-modal triplet loss, the contrastive loss, losses between the modalities, and the two critics of adversarial learning."""
import math

import torch
import torch.nn.functional as F
from torch import nn

from shared.errors import InputError


def squared_distances(a, b):
    """Squared L2 distances of all rows: (N, D), (M, D) -> (N, M), float32, not below 0."""
    a, b = a.float(), b.float()
    with torch.autocast(a.device.type, enabled=False):
        return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def cross_modal_triplet(fc, kinds=2, margin=0.5):
    """Batch-hard triplet loss, summed over all ordered pairs of the kinds of image.

    fc: (kinds x B, D), the embeddings of B different places, kind after kind (optical, SAR; or optical,
    pseudo-optical, SAR, pseudo-SAR). For an anchor of one kind, the positive is its own place in the
    other kind and the hard negative the nearest other place in the other kind.
    Distances are squared L2. Returns the sum of kinds x (kinds - 1) terms, each a mean over B anchors.
    Raises ValueError where there are fewer than two places.
    Source: Hermans et al., "In Defense of the Triplet Loss", 2017, equation 5, across the modalities.
    """
    places = len(fc) // kinds
    if places < 2 or places * kinds != len(fc):
        raise ValueError(f"cross_modal_triplet: {len(fc)} embeddings are not {kinds} kinds of at least 2 places")
    distance = squared_distances(fc, fc).view(kinds, places, kinds, places).transpose(1, 2)   # kinds x kinds x B x B
    same = torch.eye(places, dtype=torch.bool, device=fc.device)
    positive = distance.diagonal(dim1=2, dim2=3)                                              # kinds x kinds x B
    negative = distance.masked_fill(same, float("inf")).amin(3)                               # kinds x kinds x B
    terms = F.relu(margin + positive - negative).mean(2)                                      # kinds x kinds
    return terms.sum() - terms.diagonal().sum()


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

    loss: of the library's losses. miner: of its miners of triplets, or None for the loss's own choice of pairs; an anchor for which it
    finds no negative takes any other place, so that its positive is still pulled (as the code of Wu et al., ICCV 2017, does).
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
        same = places.clone()                                         # one tensor for both would mean one set: no positives across
        chosen = self._triplets(anchors, places, others, same) if self.miner else None
        return self.loss(anchors, places, chosen, others, same)

    def _triplets(self, anchors, places, others, same):
        mined = self.miner(anchors, places, others, same)
        left = places[~torch.isin(places, mined[0])]
        other = (left + torch.randint(1, len(places), left.shape, device=left.device)) % len(places)
        return tuple(torch.cat(both) for both in zip(mined, (left, left, other)))


CONTRASTIVE = ("triplet", "infonce", "multi-similarity", "angular", "distance-weighted")


def build_contrastive(name, margin=0.5, temperature=0.05, label_smoothing=0.0):
    """One of CONTRASTIVE; margin is the triplet loss's, the other two InfoNCE's. InputError where it takes a library that is not there."""
    if name == "infonce":
        return InfoNCE(temperature, label_smoothing)
    if name == "triplet":
        return BatchHardTriplet(margin)
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        raise InputError(f"--loss {name} is a loss of pytorch-metric-learning: pip install -r requirements-losses.txt")
    if name == "multi-similarity":
        return LibraryLoss(losses.MultiSimilarityLoss())
    if name == "angular":
        return LibraryLoss(losses.AngularLoss())
    # Sampling and loss belong together (Wu et al., "Sampling Matters", ICCV 2017): with the triplet loss the embeddings collapsed.
    return LibraryLoss(losses.MarginLoss(), miners.DistanceWeightedMiner())


def collapsed_value(loss, places, dim=512):
    """What a loss is where the embeddings of a batch are all alike."""
    with torch.no_grad():
        return loss(F.normalize(torch.ones(2 * places, dim))).item()


def modal_mse(opt, sar):
    """Mean squared L2 distance of the two embeddings of a place: (B, D), (B, D), row by row."""
    return (opt.float() - sar.float()).square().sum(1).mean()


def modal_mmd(opt, sar):
    """Squared maximum mean discrepancy of two sets of embeddings (B, D), with three Gaussian kernels; not below 0.

    Widths: half, once and twice the mean squared distance of all embeddings. It knows sets, not pairs.
    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 5; several kernels: Long et al., "Learning
    Transferable Features with Deep Adaptation Networks", ICML 2015, section 3.
    """
    both = torch.cat([opt, sar])
    distance = squared_distances(both, both)
    width = distance.detach().mean().clamp(min=1e-12)
    kernel = sum(torch.exp(-distance / (scale * width)) for scale in (0.5, 1, 2)) / 3
    among_opt, across, _, among_sar = (part for rows in kernel.chunk(2) for part in rows.chunk(2, 1))
    return among_opt.mean() + among_sar.mean() - 2 * across.mean()


def modal_coral(opt, sar):
    """Squared Frobenius distance of the covariances of two sets of embeddings (B, D).

    The source's factor 1 / (4 D^2) is left out: the covariance of L2-normalised embeddings has a trace of at most B / (B - 1).
    Source: Sun and Saenko, "Deep CORAL", 2016, equations 1 to 3.
    """
    with torch.autocast(opt.device.type, enabled=False):
        return (torch.cov(opt.float().T) - torch.cov(sar.float().T)).square().sum()


MODAL = {"mse": modal_mse, "mmd": modal_mmd, "coral": modal_coral}


class WassersteinCritic(nn.Module):
    """A critic 512-512-512-1 whose mean difference estimates the distance between the modalities.

    Source: Arjovsky et al., "Wasserstein GAN", 2017, algorithm 1 (weights clipped to keep it Lipschitz).
    """

    betas = (0.9, 0.999)
    steps = 5

    def __init__(self, dim=512, clip=0.1):
        super().__init__()
        self.layers = _perceptron(dim, 1)
        self.clip = clip

    def distance(self, opt, sar):
        """Estimated Wasserstein distance (up to the Lipschitz constant) of (B, D) and (B, D) embeddings."""
        return self.layers(opt).mean() - self.layers(sar).mean()

    def critic_loss(self, opt, sar):
        """What the critic lowers: it looks for the largest difference."""
        return -self.distance(opt, sar)

    def model_loss(self, opt, sar):
        """What the model lowers: the distance that the critic finds."""
        return self.distance(opt, sar)

    @torch.no_grad()
    def constrain(self):
        for parameter in self.parameters():
            parameter.clamp_(-self.clip, self.clip)


class ModalityClassifier(nn.Module):
    """A critic that predicts the modality with cross-entropy; the model is trained on the reversed label.

    Source: Goodfellow et al., "Generative Adversarial Nets", 2014, section 3 (the non-saturating form).
    """

    betas = (0.5, 0.999)
    steps = 1

    def __init__(self, dim=512):
        super().__init__()
        self.layers = _perceptron(dim, 2)

    def critic_loss(self, opt, sar):
        return self._cross_entropy(opt, 0) + self._cross_entropy(sar, 1)

    def model_loss(self, opt, sar):
        return self._cross_entropy(opt, 1) + self._cross_entropy(sar, 0)

    def _cross_entropy(self, embeddings, modality):
        label = torch.full((len(embeddings),), modality, device=embeddings.device)
        return F.cross_entropy(self.layers(embeddings), label) / 2

    def constrain(self):
        """Nothing to keep within bounds."""


CRITICS = {"wasserstein": WassersteinCritic, "classifier": ModalityClassifier}


def critic_step(critic, optimizer, opt, sar):
    """One step of the critic on embeddings (B, D) of the two modalities; the model gets no gradient.

    Returns the critic's loss before the step.
    """
    loss = critic.critic_loss(opt.detach(), sar.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    critic.constrain()
    return loss.detach()


def _perceptron(dim, outputs):
    return nn.Sequential(nn.Linear(dim, 512), nn.LeakyReLU(0.2), nn.Linear(512, 512), nn.LeakyReLU(0.2), nn.Linear(512, outputs))
