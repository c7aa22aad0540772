"""Batches of places that look alike, so that most of the negatives are hard."""
import torch

from shared.evaluate import embed_pairs, first_answers
from shared.plumbing.errors import InputError


class HardNegatives:
    """Puts training places in an order in which each stands beside the places that the model confuses it with.

    pairs: what is trained on. neighbours: how many similar places each brings along; 0: random order. every: epochs
    between two looks at the embeddings; until the first look the order is random.
    Raises InputError where there are fewer places.
    Source: Deuser et al., "Sample4Geo: Hard Negative Sampling For Cross-View Geo-Localisation", ICCV 2023, section 3.3.
    """

    def __init__(self, pairs, neighbours, every=4):
        if neighbours >= len(pairs):
            raise InputError(f"--hard_negatives {neighbours}: choose at most {len(pairs) - 1}, "
                             f"there are {len(pairs)} training places")
        self.pairs, self.neighbours, self.every = pairs, neighbours, every
        self.nearest = None

    def refresh(self, model, epoch, device, autocast):
        """Every so many epochs, find each place's most similar other places.

        SAR queries the optical images of the training split.
        """
        if not self.neighbours or epoch == 0 or epoch % self.every:
            return
        pairs = self.pairs
        query, gallery = embed_pairs(model, pairs, device, autocast)
        answers = first_answers(query["FC"][pairs.first_strips], gallery["FC"], self.neighbours + 1)[1]
        # The place itself is mostly among the answers, and is no negative.
        self.nearest = torch.stack([row[row != place][:self.neighbours] for place, row in enumerate(answers)])

    def order(self, generator):
        """(P) int64: the places in random order, each followed by its nearest that are still free."""
        shuffled = self.pairs.order(generator)
        if self.nearest is None:
            return shuffled
        nearest, is_free, order = self.nearest.tolist(), [True] * len(self.pairs), []
        for place in shuffled.tolist():
            if not is_free[place]:
                continue
            for candidate in (place, *nearest[place]):
                if is_free[candidate]:
                    is_free[candidate] = False
                    order.append(candidate)
        return torch.tensor(order)

    def state_dict(self):
        """A resumed run goes on with the same batches."""
        return {"nearest": self.nearest}

    def load_state_dict(self, state):
        self.nearest = state["nearest"]
