"""Depthwise convolutions in float32 while a network learns in bf16 on a CPU, where their gradients in bf16 are slow.

Each channel by itself is little arithmetic, and the gradient in bf16 takes several times as long as in float32; all
else gains by bf16. Without gradients bf16 is the faster one there, too. Grouped convolutions of several channels gain.
"""
import functools

import torch
from torch import nn


def use_float32_depthwise(module):
    """Let the depthwise convolutions of a module compute so. Their parameters and names stay."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and 1 < child.groups == child.in_channels:
            child.__class__ = _in_float32(type(child))                # nn.Conv2d, or timm's with a padding of its own


@functools.cache
def _in_float32(kind):
    class Float32(kind):
        def forward(self, x):
            is_slow = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
            if not is_slow:
                return super().forward(x)
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)

    Float32.__name__ = f"Float32{kind.__name__}"
    return Float32
