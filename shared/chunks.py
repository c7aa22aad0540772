"""Batches larger than the memory: gradient caching."""
import torch
from torch.utils.checkpoint import checkpoint

from shared.distributed import world_size
from shared.errors import InputError


def in_chunks(network, opt, sar, chunk):
    """Embed a batch `chunk` pairs at a time, keeping the embeddings and no activations; backward() computes those again.

    network(opt, sar) returns (pool5, fc), optical rows first; so does this. The loss then sees the whole batch, and the
    gradient is that of the whole batch, in the memory of one chunk and for one more forward pass. BatchNorm's statistics are the chunk's.
    Raises InputError in several processes.
    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, section 3.
    """
    if chunk >= len(opt):
        return network(opt, sar)
    if world_size() > 1:
        raise InputError("--chunk works in a single process: several devices share the batch already, each holds its part")
    parts = [checkpoint(network, o, s, use_reentrant=False) for o, s in zip(opt.split(chunk), sar.split(chunk))]
    halves = [[feature.chunk(2) for feature in part] for part in parts]          # chunks x (pool5, fc) x (optical, SAR)
    return tuple(torch.cat([half[feature][modality] for modality in (0, 1) for half in halves]) for feature in (0, 1))
