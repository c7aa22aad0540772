"""Camera invariance and domain connectedness in one triplet loss; a camera is here a modality.

Source: Zhong et al., "Generalizing a Person Retrieval Model Hetero- and Homogeneously", ECCV 2018, section 3.
"""
import torch
import torch.nn.functional as F

from shared.losses import squared_distances


def hhl_triplet(anchors, translations, others, source, margin=0.3):
    """Each target image close to its own translation into the other modality, and further from all else there.

    anchors: (T, D), of target images of one modality. translations: (T, D), of each one drawn in the other modality.
    others: (N, D), target images of that other modality, of other places. source: (B, D), the source's images of it.
    Negatives are the other anchors' translations, the others, and the source's images; the nearest counts.
    Squared L2 distances, a mean over the anchors (equation 5, batch-hard).
    """
    distance = squared_distances(anchors, translations)
    positive = distance.diagonal()
    own = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    negatives = [distance.masked_fill(own, float("inf")), squared_distances(anchors, others),
                 squared_distances(anchors, source)]
    return F.relu(margin + positive - torch.cat(negatives, 1).amin(1)).mean()
