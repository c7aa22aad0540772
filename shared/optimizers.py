# For every train.py.
"""The optimiser and the learning rate's schedule."""
import math

import torch


def build_optimizer(model, optim, lr, lr_head, extra=None):
    """SGD (Nesterov momentum 0.9) or AdamW, weight decay 5e-4 or 0.05; the embedding has its own learning rate.

    extra: a module that is trained along (a loss with parameters, a decoder), at the embedding's rate. Weight decay
    spares its vectors and scalars, and with AdamW, whose decay is strong, also the model's biases and BatchNorm's
    parameters.
    """
    groups = [{"params": model.backbone_parameters(), "lr": lr},
              {"params": list(model.embedding.parameters()), "lr": lr_head}]
    extra_groups = [] if extra is None else [{"params": list(extra.parameters()), "lr": lr_head}]
    if optim == "sgd":
        groups += _without_decay_of_vectors(extra_groups)
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.AdamW(_without_decay_of_vectors(groups + extra_groups), weight_decay=0.05, fused=True)


def _without_decay_of_vectors(groups):
    """Each group's matrices, then each group's vectors and scalars with no weight decay; empty ones are left out."""
    matrices = [{**group, "params": [p for p in group["params"] if p.ndim > 1]} for group in groups]
    vectors = [{**group, "params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0}
               for group in groups]
    return [group for group in matrices + vectors if group["params"]]


def build_schedule(optimizer, schedule, epochs, steps_per_epoch):
    """A factor on all learning rates at every step: step (a tenth every 20 epochs) or cosine with warm-up."""
    total = epochs * steps_per_epoch
    warmup = max(1, total // 10)

    def step_decay(step):
        return 0.1 ** (step // steps_per_epoch // 20)

    def cosine_decay(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, step_decay if schedule == "step" else cosine_decay)
