"""The optimiser and the learning rate's schedule."""
import math

import torch


def build_optimizer(model, optim, lr, lr_head):
    """SGD (Nesterov momentum 0.9) or AdamW, weight decay 5e-4 or 0.05; the embedding has its own learning rate."""
    groups = [{"params": model.backbone_parameters(), "lr": lr}, {"params": model.embedding.parameters(), "lr": lr_head}]
    if optim == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.AdamW(groups, weight_decay=0.05)


def build_schedule(optimizer, schedule, epochs, steps_per_epoch):
    """A factor on both learning rates at every step: step (a tenth every 20 epochs) or cosine with warm-up."""
    total = epochs * steps_per_epoch
    warmup = max(1, total // 10)

    def step_decay(step):
        return 0.1 ** (step // steps_per_epoch // 20)

    def cosine_decay(step):
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, step_decay if schedule == "step" else cosine_decay)
