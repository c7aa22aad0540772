"""A generator between the modalities that learns from images without pairs, and what it plays against.

Source: Choi et al., "StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image Translation",
CVPR 2018, section 3 and table 4. A domain is here a modality: 0 optical, 1 SAR.
"""
import torch
import torch.nn.functional as F
from torch import nn

MODALITIES = ("opt", "sar")


class Generator(nn.Module):
    """Two convolutions down, six residual blocks, two up; told which modality to draw by two more input channels.

    width: channels of the first layer, 64 in the paper.
    """

    def __init__(self, width=64, blocks=6):
        super().__init__()
        self.settings = {"width": width, "blocks": blocks}
        layers = [*_layer(nn.Conv2d(3 + len(MODALITIES), width, 7, padding=3, bias=False))]
        for channels in (width, 2 * width):
            layers += _layer(nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False))
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            layers += _layer(nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False))
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 7, padding=3, bias=False), nn.Tanh())

    def forward(self, images, modality):
        """Draw images of a modality. images: (B, 3, S, S) in [0, 1], S a multiple of 4; modality: (B) int64.

        Returns (B, 3, S, S) float32 in [0, 1].
        """
        code = F.one_hot(modality, len(MODALITIES)).to(images).view(len(images), -1, 1, 1)
        told = code.expand(-1, -1, *images.shape[2:])
        return (self.layers(torch.cat([2 * images - 1, told], 1)).float() + 1) / 2


class ResidualBlock(nn.Module):
    """Two convolutions and what came in; as many channels, and the same size."""

    def __init__(self, channels):
        super().__init__()
        self.main = nn.Sequential(*_layer(nn.Conv2d(channels, channels, 3, padding=1, bias=False)),
                                  nn.Conv2d(channels, channels, 3, padding=1, bias=False), _norm(channels))

    def forward(self, x):
        return x + self.main(x)


class Discriminator(nn.Module):
    """Five convolutions down (as many as leave 2 px), then a score for each patch, and which modality it is."""

    def __init__(self, img_size, width=64):
        super().__init__()
        layers, channels = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.01)], width
        side = img_size // 2
        while side >= 4 and len(layers) < 10:
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1), nn.LeakyReLU(0.01)]
            channels, side = 2 * channels, side // 2
        self.layers = nn.Sequential(*layers)
        self.score = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
        self.modality = nn.Conv2d(channels, len(MODALITIES), side, bias=False)

    def forward(self, images):
        """(B, 3, S, S) in [0, 1] -> patches' scores (B, h, w), high where they look true, and (B, 2) logits."""
        x = self.layers(2 * images - 1)
        return self.score(x).squeeze(1).float(), self.modality(x).mean((2, 3)).float()


def gradient_penalty(discriminator, true, drawn, generator):
    """Mean squared distance from 1 of the gradient's norm between true and drawn images, (B, 3, S, S) both (eq. 1).

    generator: a torch.Generator on the CPU, of where in between.
    """
    share = torch.rand(len(true), 1, 1, 1, generator=generator).to(true)
    between = (share * true + (1 - share) * drawn).detach().requires_grad_()
    scores, _ = discriminator(between)
    gradient, = torch.autograd.grad(scores.sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_terms(discriminator, images, modality, drawn, generator, weights):
    """What the discriminator lowers: {"score", "modality", "penalty"}, weighted (equations 1, 2 and 5).

    images: true ones (B, 3, S, S) of `modality` (B). drawn: from them, in the other. weights: {"modality", "penalty"}.
    """
    true_scores, logits = discriminator(images)
    drawn_scores, _ = discriminator(drawn)
    return {"score": drawn_scores.mean() - true_scores.mean(),
            "modality": weights["modality"] * F.cross_entropy(logits, modality),
            "penalty": weights["penalty"] * gradient_penalty(discriminator, images, drawn, generator)}


def generator_terms(network, discriminator, images, modality, weights):
    """What the generator lowers: {"score", "modality", "cycle"}, weighted (equations 1, 3, 4 and 6), for true images.

    What is drawn in the other modality should score high, be of that modality, and lead back to the true image (L1).
    """
    wanted = 1 - modality
    drawn = network(images, wanted)
    scores, logits = discriminator(drawn)
    back = network(drawn, modality)
    return {"score": -scores.mean(),
            "modality": weights["modality"] * F.cross_entropy(logits, wanted),
            "cycle": weights["cycle"] * F.l1_loss(back, images)}


def _norm(channels):
    return nn.InstanceNorm2d(channels, affine=True)


def _layer(convolution):
    return convolution, _norm(convolution.out_channels), nn.ReLU(inplace=True)
