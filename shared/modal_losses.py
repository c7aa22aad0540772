"""Plain losses between the embeddings of the two modalities, to stand beside the triplet loss."""
import torch

from shared.losses import squared_distances


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
