"""The optimiser and the learning rate's schedule."""
import math

import torch


def build_optimizer(model, optim, lr, lr_head, loss=None):
    """SGD (Nesterov momentum 0.9) or AdamW, weight decay 5e-4 or 0.05; the embedding has its own learning rate.

    loss: a loss with parameters of its own, trained at the embedding's rate. Weight decay spares them, and with AdamW, whose
    decay is strong, also the model's biases and BatchNorm's parameters.
    """
    groups = [{"params": model.backbone_parameters(), "lr": lr}, {"params": list(model.embedding.parameters()), "lr": lr_head}]
    if loss is not None:
        groups.append({"params": list(loss.parameters()), "lr": lr_head, "weight_decay": 0.0})
    if optim == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    matrices = [{**group, "params": [p for p in group["params"] if p.ndim > 1]} for group in groups]
    vectors = [{**group, "params": [p for p in group["params"] if p.ndim <= 1], "weight_decay": 0.0} for group in groups]
    return torch.optim.AdamW([group for group in matrices + vectors if group["params"]], weight_decay=0.05)


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
