"""What draws an image of a place from an encoder's maps, and what it learns by.

Source: Jin et al., "Semantics-Aligned Representation Learning for Person Re-identification", AAAI 2020, section 3. The
aligned texture of a person is here the optical image of a place.
"""
import torch
import torch.nn.functional as F
from torch import nn

from shared.losses import cross_modal_triplet

NARROWER = (4, 8, 16, 32)                               # channels after each block: layer4's divided by these


class UpBlock(nn.Module):
    """Larger by bilinear interpolation, then a residual block of two 3 x 3 convolutions with reflection padding."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.main = nn.Sequential(_convolve(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True),
                                  _convolve(outputs, outputs), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, size):
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return F.relu(self.main(x) + self.shortcut(x))


class Decoder(nn.Module):
    """Four blocks from layer4's maps to the image, with skips from layer3, layer2 and layer1.

    channels: of layer1 to layer4.
    """

    def __init__(self, channels):
        super().__init__()
        self.settings = {"channels": list(channels)}
        widths = [channels[3], *(channels[3] // divisor for divisor in NARROWER)]
        self.blocks = nn.ModuleList(UpBlock(a, b) for a, b in zip(widths, widths[1:]))
        joined = zip(channels[2::-1], widths)                         # layer3 to layer4's width, layer2 to the first's
        self.skips = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) for a, b in joined)
        self.out = _convolve(widths[-1], 3)

    def forward(self, maps, size):
        """Draw from the maps of the five stages (as PseudoSiamese gives them) images of `size` (height, width).

        Returns (B, 3, *size) float32, near [0, 1] but not bounded, and the maps after each of the four blocks.
        """
        layer1, layer2, layer3, layer4 = maps[1:]
        x = F.interpolate(layer4, size=layer3.shape[-2:], mode="bilinear", align_corners=False)
        x = x + self.skips[0](layer3)
        half = [-(-side // 2) for side in size]
        sizes = (layer2.shape[-2:], layer1.shape[-2:], half, size)
        drawn = []
        for number, block in enumerate(self.blocks):
            x = block(x, sizes[number])
            if number < 2:
                x = x + self.skips[number + 1]((layer2, layer1)[number])
            drawn.append(x)
        return self.out(x).float(), drawn


def reconstruction_loss(drawn, opt, sar, what):
    """L1 between what was drawn (2B, 3, S, S), from optical then from SAR maps, and the images (B, 3, S, S) in [0, 1].

    what: `optical`, the optical image of the place from both, or `self`, each its own.
    """
    return F.l1_loss(drawn, torch.cat([opt, opt if what == "optical" else sar]))


def block_vectors(drawn):
    """The maps after each block, (2B, c, h, w) each, as vectors (2B, c): averaged over the image, L2-normalised."""
    return [F.normalize(maps.float().mean((2, 3))) for maps in drawn]


def decoder_triplet(vectors, margin):
    """Triplet constraints on the decoder: the cross-modal triplet loss of each block's vectors, summed.

    vectors: as block_vectors gives them, optical rows first. margin: 0.3 in the paper.
    """
    return sum(cross_modal_triplet(block, kinds=2, margin=margin) for block in vectors)


def gradient_shares(terms, maps):
    """{"share_NAME": float}: of the gradient norms of all terms at the maps, each term's share.

    terms: {name: scalar with a graph}, weighted as they are summed. A term whose share is near 0 says nothing to the
    encoder.
    """
    gradients = [torch.autograd.grad(term, maps, retain_graph=True)[0] for term in terms.values()]
    norms = [gradient.float().norm().item() for gradient in gradients]
    total = max(sum(norms), 1e-12)
    return {f"share_{name}": norm / total for name, norm in zip(terms, norms)}


def _convolve(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")
