"""Small maps side by side give what nn.Conv2d gives: outputs, gradients, state dict."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.plumbing.small_maps import SmallMapConv2d, use_small_map_convolutions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height, width", [(3, 3), (6, 6), (5, 5), (4, 6), (2, 1), (7, 7)])
@pytest.mark.parametrize("batch, columns", [(2, 2), (6, 2), (16, 16), (16, 4)])
def test_side_by_side_is_the_same_convolution(batch, columns, height, width, stride):
    torch.manual_seed(0)
    conv = SmallMapConv2d(5, 7, 3, stride, padding=1, bias=False)
    x = torch.randn(batch, 5, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    out, expected = conv.side_by_side(x, columns), F.conv2d(x, conv.weight, stride=stride, padding=1)
    assert out.shape == expected.shape and torch.allclose(out, expected, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last), "else all that follows is slow"
    gradient = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(out, (x, conv.weight), gradient), torch.autograd.grad(expected, (x, conv.weight), gradient)
    ):
        assert torch.allclose(one, other, atol=1e-4)


def test_only_small_maps_in_bf16_are_joined(monkeypatch):
    seen = []
    plain = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: seen.append(tuple(x.shape)) or plain(self, x))
    conv = SmallMapConv2d(2, 2, 3, padding=1, bias=False)
    for shape in ((16, 2, 3, 3), (16, 2, 12, 12), (3, 2, 3, 3)):
        conv.bfloat16()(torch.randn(shape).bfloat16())
    assert seen == [(1, 2, 3, 64), (16, 2, 12, 12), (3, 2, 3, 3)]
    conv.float()(torch.randn(16, 2, 3, 3))
    assert seen[-1] == (16, 2, 3, 3), "float32 gains nothing"


def test_in_bf16_the_convolution_is_right_to_its_rounding():
    torch.manual_seed(0)
    conv = SmallMapConv2d(5, 7, 3, padding=1, bias=False)
    x = torch.randn(16, 5, 3, 3)
    expected = F.conv2d(x, conv.weight, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x.bfloat16())
    assert out.dtype == torch.bfloat16 and (out.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_exchange_keeps_parameters_and_leaves_other_convolutions():
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    use_small_map_convolutions(layer)
    assert isinstance(layer[0], SmallMapConv2d) and type(layer[1]) is nn.Conv2d
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items()) and len(before) == 2


def test_a_convolution_of_another_kind_is_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean(), padding=1)

    layer = nn.Sequential(Standardised(4, 4, 3, padding=1, bias=False))
    use_small_map_convolutions(layer)
    assert type(layer[0]) is Standardised
