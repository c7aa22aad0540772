"""Embeddings whitened by a region's own, each modality for itself.

Sources: Jégou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening",
ECCV 2012, section 2; Sun, Feng and Saenko, "Return of Frustratingly Easy Domain Adaptation", AAAI 2016.
"""
import torch
import torch.nn.functional as F

SHRINK = 0.1                                            # of the mean variance, added to each: few images, many numbers


def whitening(sample):
    """A function that whitens embeddings (N, D) as those of a sample (M, D) are, and L2-normalises them.

    What varies in the sample counts alike in all directions, and its mean is taken off. Directions in which the sample
    does not vary are left out. The axes stay (ZCA), so that the vectors of two samples compare.
    """
    mean = sample.mean(0)
    _, singular, directions = torch.linalg.svd(sample - mean, full_matrices=False)   # min(M, D), min(M, D) x D
    variance = singular.square() / len(sample)
    there = variance > 1e-6 * variance.max()
    directions, variance = directions[there], variance[there]
    scale = (variance + SHRINK * variance.mean()).rsqrt()

    def whiten(vectors):
        return F.normalize((vectors - mean) @ directions.T * scale @ directions)
    return whiten
