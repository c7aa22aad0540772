# For every train.py that learns by triplets; code_Adv and code_Adapt the plainer ones.
"""The cross-modal triplet loss, in squared L2 distances, and plainer losses to stand beside it."""
import torch
import torch.nn.functional as F


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
    (among_opt, across), (_, among_sar) = (rows.chunk(2, 1) for rows in kernel.chunk(2))
    return among_opt.mean() + among_sar.mean() - 2 * across.mean()


def modal_coral(opt, sar):
    """Squared Frobenius distance of the covariances of two sets of embeddings (B, D).

    The source's factor 1 / (4 D^2) is left out: the covariance of L2-normalised embeddings has a trace of at most
    B / (B - 1).
    Source: Sun and Saenko, "Deep CORAL", 2016, equations 1 to 3.
    """
    with torch.autocast(opt.device.type, enabled=False):
        return (torch.cov(opt.float().T) - torch.cov(sar.float().T)).square().sum()


MODAL_LOSSES = {"mse": modal_mse, "mmd": modal_mmd, "coral": modal_coral}
