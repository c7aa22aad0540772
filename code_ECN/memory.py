"""A memory with a row for each target image, and the invariances that are learned from it.

Source: Zhong et al., "Invariance Matters: Exemplar Memory for Domain Adaptive Person Re-identification", CVPR 2019,
section 3; a camera is here a modality.
"""
import torch
import torch.nn.functional as F
from torch import nn


class ExemplarMemory(nn.Module):
    """The embeddings of N target images as they were last seen, (N, D), L2-normalised; 0 before."""

    def __init__(self, images, dim):
        super().__init__()
        self.register_buffer("rows", torch.zeros(images, dim))

    def logits(self, fc, temperature=0.05):
        """How alike embeddings (B, D) are to each row, (B, N), to be read by a softmax (equation 3)."""
        with torch.autocast(fc.device.type, enabled=False):
            return fc.float() @ self.rows.T / temperature

    @torch.no_grad()
    def update(self, fc, images, keep):
        """Move the rows of these images, (B) int64, each once, towards their embeddings (B, D) (equation 2).

        keep: the share of the old row that stays, alpha in the paper.
        """
        self.rows[images] = F.normalize(keep * self.rows[images] + (1 - keep) * fc.detach().float())


@torch.no_grad()
def neighbour_weights(logits, images, neighbours):
    """(B, N): how much each row of the memory counts for each image (equations 5 and 6).

    logits: (B, N). images: (B) int64, each one's own row, which counts 1; the nearest `neighbours` - 1 others each
    1 / neighbours. With 1, or 0, the row alone.
    """
    weights = torch.zeros_like(logits)
    others = logits.scatter(1, images[:, None], float("-inf"))
    count = min(neighbours, logits.shape[1]) - 1
    if count > 0:
        weights.scatter_(1, others.topk(count, 1).indices, 1 / neighbours)
    return weights.scatter_(1, images[:, None], 1.0)


def invariance_loss(logits, weights):
    """Weighted log-likelihood of the memory's rows (equation 7): -sum of w log p, a mean over the batch."""
    return -(weights * F.log_softmax(logits, 1)).sum(1).mean()
