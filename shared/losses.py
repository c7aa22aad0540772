"""The cross-modal triplet loss, in squared L2 distances."""
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
