"""The likelihood of a query's true position among all positions of all windows of a batch."""
import torch


def displaced_nll(logits, truth, cell, sigma):
    """Negative log-likelihood of the true position, where the truth itself is displaced.

    logits: (B, B, h, w) over windows and positions, `cell` px apart; query i lies in window i. truth: (B, 2) px, the
    row and column of its first pixel, anywhere between the positions. sigma: px. The images of a pair are displaced
    against each other by some px that nobody knows (terrain under a radar's slanted view), so a query truly lies at
    truth + d, d normal: the loss is -log of the sum over positions of p(position) normal(position - truth), the normal
    normalised over the positions. With a sigma far below a cell it is the cross-entropy of the nearest position.
    """
    rows = torch.arange(len(logits), device=logits.device)
    log_p = logits[rows, rows] - logits.flatten(1).logsumexp(1).view(-1, 1, 1)            # B x h x w
    down, across = (cell * torch.arange(size, device=logits.device) for size in log_p.shape[-2:])
    row, column = truth.to(logits.device).unsqueeze(-1).unbind(1)                         # B x 1 each
    distance = (down - row).square()[:, :, None] + (across - column).square()[:, None]
    weight = (-distance / (2 * sigma ** 2)).flatten(1).log_softmax(1)
    return -(log_p.flatten(1) + weight).logsumexp(1).mean()
