"""BatchNorm statistics of another region.

Source: Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (AdaBN), 2017, algorithm 1.
"""
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from shared.dataset import to_float

AT_ONCE = 64                                            # images of each modality


@torch.no_grad()
def take_statistics(model, target, device, autocast):
    """Replace the running means and variances of all BatchNorm layers with those of Unpaired images.

    They are averaged over batches of both modalities together, as training sees them; nothing else changes.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None                                         # the plain mean of all batches
    model.train()
    for opt, sar in zip(target.opt.split(AT_ONCE), target.sar.split(AT_ONCE)):
        with autocast():
            model(to_float(opt, device), to_float(sar, device))
    for layer, value in zip(layers, momentum):
        layer.momentum = value
    model.eval()
