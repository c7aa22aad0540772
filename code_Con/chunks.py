"""Batches larger than the memory: gradient caching."""
import torch
from torch.utils.checkpoint import checkpoint

from shared.plumbing.distributed import world_size
from shared.plumbing.errors import InputError


def in_chunks(network, opt, sar, chunk):
    """Embed a batch `chunk` pairs at a time, keeping the embeddings and no activations: backward() makes those again.

    Returns the fc of network(opt, sar), optical rows first. The loss then sees the whole batch, and the gradient is
    that of the whole batch, in the memory of one chunk and for one more forward pass. BatchNorm's statistics are the
    chunk's.
    Raises InputError in several processes.
    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021,
    section 3.
    """
    if chunk >= len(opt):
        return network(opt, sar).fc
    if world_size() > 1:
        raise InputError("--chunk works in a single process: several devices share the batch already, "
                         "each holds its part")
    parts = [checkpoint(network, o, s, use_reentrant=False).fc for o, s in zip(opt.split(chunk), sar.split(chunk))]
    of_opt, of_sar = zip(*(part.chunk(2) for part in parts))
    return torch.cat([*of_opt, *of_sar])
