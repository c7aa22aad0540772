"""Scores that allow for hubs: gallery images that are near to every query.

Sources: Conneau et al., "Word translation without parallel data" (CSLS), ICLR 2018, section 2.3; Bogolin et al., "Cross
Modal Retrieval with Querybank Normalisation", CVPR 2022: a bank of other queries tells the hubs as well as the test's.
"""
import torch

from shared.evaluate import first_answers

NEIGHBOURS = 10                                         # of a gallery image in the bank, as in the first paper


def without_hubs(query, gallery, bank):
    """Embeddings whose inner product is that of query and gallery, less half of how near the gallery image is to its
    nearest in the bank.

    query: (N, D), gallery: (M, D), bank: (B, D) of the query's modality; L2-normalised.
    Returns (N, D + 1) and (M, D + 1), no longer of length one: the order of the inner products counts, not distances.
    """
    nearness = first_answers(gallery, bank, min(NEIGHBOURS, len(bank)))[0].mean(1, keepdim=True)      # M x 1
    return torch.cat([query, torch.ones(len(query), 1)], 1), torch.cat([gallery, -nearness / 2], 1)
