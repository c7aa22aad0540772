"""The target's mutual nearest neighbours across the modalities, taken as if they were pairs."""
import torch

from shared.dataset import to_float
from shared.evaluate import embed, first_answers
from shared.losses import cross_modal_triplet
from shared.reading.windows import apply_symmetry
from whitening import whitening


class PseudoPairs:
    """Pairs (optical row, SAR row) of Unpaired images that are each other's nearest by the network's embedding.

    Each modality's embeddings are whitened first: in a new region they share a direction or two, in which a few images
    are everybody's nearest. Some pairs are false, and where no place is shown in both modalities all are: then they
    are places that look alike.
    """

    def __init__(self, target):
        self.target = target
        self.rows = torch.empty((0, 2), dtype=torch.int64)

    def __len__(self):
        return len(self.rows)

    def renew(self, model, device, autocast):
        """Find them by the network as it is."""
        opt = embed(model, self.target.opt, "opt", device, autocast)["FC"]
        sar = embed(model, self.target.sar, "sar", device, autocast)["FC"]
        self.rows = mutual_neighbours(whitening(opt)(opt), whitening(sar)(sar))

    def replace(self, opt, sar, generator):
        """Put drawn pairs in the first places of a batch, both images at the same of the eight symmetries.

        opt, sar: (B, 3, S, S) float32. How many are put there is kept for `loss`.
        """
        rows = self.rows[torch.randperm(len(self.rows), generator=generator)[:len(opt)]]
        self.drawn = len(rows)
        symmetry = torch.randint(8, (len(rows),), generator=generator)
        pairs = (self.target.opt[rows[:, 0]], self.target.sar[rows[:, 1]])
        images = [to_float(apply_symmetry(each, symmetry), opt.device) for each in pairs]
        return torch.cat([images[0], opt[self.drawn:]]), torch.cat([images[1], sar[self.drawn:]])

    def loss(self, fc_opt, fc_sar, margin):
        """The triplet loss of the pairs that were drawn; 0 of fewer than two. fc_opt, fc_sar: (B, D)."""
        if self.drawn < 2:
            return 0 * fc_opt.sum()
        return cross_modal_triplet(torch.cat([fc_opt[:self.drawn], fc_sar[:self.drawn]]), margin=margin)

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]


def mutual_neighbours(opt, sar):
    """(K, 2) int64: the rows i, j of (P, D) and (M, D) L2-normalised embeddings that are each other's nearest."""
    nearest_sar = first_answers(opt, sar, 1)[1].flatten()             # P
    nearest_opt = first_answers(sar, opt, 1)[1].flatten()             # M
    rows = torch.arange(len(opt))
    mutual = nearest_opt[nearest_sar] == rows
    return torch.stack([rows[mutual], nearest_sar[mutual]], 1)
