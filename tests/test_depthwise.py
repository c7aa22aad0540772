"""Depthwise convolutions learn in float32 on a CPU, and are otherwise what they were."""
import copy

import pytest
import timm
import torch
from torch import nn

from shared.plumbing.depthwise import use_float32_depthwise


@pytest.fixture
def seen(monkeypatch):
    """The types in which convolutions compute, by their groups."""
    kinds, conv2d = {}, nn.functional.conv2d

    def watched(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        out = conv2d(x, weight, bias, stride, padding, dilation, groups)
        kinds.setdefault(groups > 1, set()).add(out.dtype)
        return out

    monkeypatch.setattr(nn.functional, "conv2d", watched)
    return kinds


def test_they_are_in_float32_where_they_learn_in_bf16(seen):
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    use_float32_depthwise(network)
    images = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        network(images).sum().backward()
        assert seen == {False: {torch.bfloat16}, True: {torch.float32}}, "timm's own kind of convolution, too"
        seen.clear()
        with torch.no_grad():
            network(images)
    assert seen == {False: {torch.bfloat16}, True: {torch.bfloat16}}, "without gradients bf16 is faster"


def test_parameters_names_and_results_stay(seen):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1, groups=2))
    changed = copy.deepcopy(plain)
    use_float32_depthwise(changed)
    changed = copy.deepcopy(changed)
    assert [isinstance(module, nn.Conv2d) for module in changed] == [True] * 3
    assert [type(module) is nn.Conv2d for module in changed] == [False, True, True], "a group of two channels gains"
    assert list(changed.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(changed(x), plain(x)), "in float32"
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = changed(x), plain(x)
    assert out.dtype == torch.bfloat16 and (out - expected).abs().max() < 0.02
