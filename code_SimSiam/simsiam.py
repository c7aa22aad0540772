"""SimSiam: two views of an image predict each other. No negatives, no momentum encoder.

Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
"""
import torch
import torch.nn.functional as F
from torch import nn


class SimSiam(nn.Module):
    """A backbone with the projector and the predictor on top (section 3, "Baseline settings").

    backbone: a PseudoSiamese; its pooled maps of layer4 have `width` channels (2048 for resnet50, 512 for resnet18 and
    resnet34). As wide are the projector's three layers and the predictor's ends, as in the paper; the predictor's
    bottleneck is a quarter of that, 512 for resnet50.
    """

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        backbone.embedding.requires_grad_(False)                      # the retrieval's, and no part of this
        width = backbone.pool5_dim
        self.projector = nn.Sequential(
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, affine=False))
        self.predictor = nn.Sequential(
            nn.Linear(width, width // 4, bias=False), nn.BatchNorm1d(width // 4), nn.ReLU(inplace=True),
            nn.Linear(width // 4, width))

    def forward(self, opt, sar):
        """Projections and predictions of images, batch after batch with statistics of its own.

        opt, sar: lists of batches (B, 3, S, S) in [0, 1]. Returns z and p: (K, B, width) float32, K = len(opt) +
        len(sar), the optical batches first.
        """
        kinds = len(opt) + len(sar)
        maps = self.backbone(torch.cat(opt), torch.cat(sar), with_maps=True)[2][-1]       # KB x c x h x w
        features = self.backbone.pool(maps).chunk(kinds)                                  # K of B x width
        z = [self.projector(x) for x in features]
        p = [self.predictor(x) for x in z]
        return torch.stack(z).float(), torch.stack(p).float()


def simsiam_loss(z, p, views, stop_gradient=True):
    """Equation 4: the mean over pairs of views of D(p1, z2) / 2 + D(p2, z1) / 2, in [-1, 1].

    z, p: (K, B, D). views: pairs of rows of the K that are two views of the same images. D is the negative cosine
    (equation 1), with z as a constant (equation 3) but for `stop_gradient=False`, with which it collapses (figure 2).
    """
    target = z.detach() if stop_gradient else z
    terms = []
    for first, second in views:
        terms.append(-F.cosine_similarity(p[first], target[second], dim=1).mean() / 2)
        terms.append(-F.cosine_similarity(p[second], target[first], dim=1).mean() / 2)
    return sum(terms) / len(views)


@torch.no_grad()
def output_std(z):
    """How the normalised outputs scatter, times sqrt(D): about 1 where they are spread evenly, 0 where they collapsed.

    z: (K, B, D). The mean over the channels of the standard deviation over a batch (section 4.1, figure 2, middle).
    """
    normalized = F.normalize(z.float(), dim=2)
    return normalized.std(1).mean() * z.shape[2] ** 0.5
