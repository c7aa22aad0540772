"""3 x 3 convolutions of small maps in bf16, several times faster on a CPU: a batch side by side in one wide map.

oneDNN's kernels fill their registers along a row. On rows of 3 or 6 pixels, as in the last stages of a ResNet
at 96 px, most of a register stays empty, above all in the weights' gradient. Zeros stand between neighbours
(they are the padding that each image has anyway), so the result is the same. In float32, whose registers hold
fewer pixels, the zeros cost as much as the full rows gain.
"""
import torch
import torch.nn.functional as F
from torch import nn

WIDEST = 6                                              # pixels of a row; wider ones gain nothing
SIDE_BY_SIDE = (16, 8, 4, 2)


class SmallMapConv2d(nn.Conv2d):
    """A 3 x 3 convolution with padding 1, any stride, no bias. Parameters, names and results are nn.Conv2d's."""

    def forward(self, x):
        if x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.shape[3] > WIDEST:
            return super().forward(x)
        columns = next((n for n in SIDE_BY_SIDE if len(x) % n == 0), 1)
        return self.side_by_side(x, columns) if columns > 1 else super().forward(x)

    def side_by_side(self, x, columns):
        """The same, `columns` images in each wide map; the batch is a multiple of that."""
        width, stride = x.shape[3], self.stride[0]
        spacing = stride * (width // stride + 1)                      # a column of zeros or more, one phase for all
        out = super().forward(_join(F.pad(x, (0, spacing - width)), columns))
        return _split(out, columns, width=-(-width // stride))


def _join(x, columns):
    """(B, C, H, W) -> (B / columns, C, H, columns x W), both in channels_last memory."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch // columns, columns, height, width, channels).transpose(1, 2)
    return rows.reshape(batch // columns, height, columns * width, channels).permute(0, 3, 1, 2)


def _split(x, columns, width):
    """The way back: of each of the joined maps the first `width` columns."""
    batch, channels, height, joined = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(batch, height, columns, joined // columns, channels).transpose(1, 2)
    return rows[:, :, :, :width].reshape(batch * columns, height, width, channels).contiguous().permute(0, 3, 1, 2)


def use_small_map_convolutions(module):
    """Put a SmallMapConv2d in the place of each convolution that it can stand for, with the same parameters."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _can_stand_for(child):
            setattr(module, name, _small_map(child))
        else:
            use_small_map_convolutions(child)


def _can_stand_for(conv):
    is_plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.bias is None
    return is_plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1)


def _small_map(conv):
    # On the meta device, so that nothing is drawn: the seed gives the same weights with and without.
    small = SmallMapConv2d(conv.in_channels, conv.out_channels, 3, conv.stride, padding=1, bias=False, device="meta")
    small.weight = conv.weight
    return small
