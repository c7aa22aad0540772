"""What a backbone has learned, asked without training anything: whose nearest neighbour is the same place?"""
import torch
import torch.nn.functional as F

from shared.dataset import to_bytes, to_float
from shared.evaluate import embed, retrieval_metrics

LEFT = 0.7                                              # of an image's side, in the view that looks for it


def probe(model, pairs, device, autocast):
    """{"across", "within_opt", "within_sar"}: top-1 in percent by the pooled maps of layer4, each place once.

    across: SAR finds the optical image of its place. within: a turned and enlarged cut-out finds the image, of the same
    modality, that it is cut from. Chance is 100 / len(pairs) in all three.
    """
    whole, views = {}, {}
    for modality, images in pairs.images.items():
        whole[modality] = embed(model, images, modality, device, autocast)["POOL5"]
        views[modality] = embed(model, cut_out(images), modality, device, autocast)["POOL5"]
    figures = {"across": top1(whole["sar"], whole["opt"])}
    figures.update({f"within_{modality}": top1(views[modality], whole[modality]) for modality in whole})
    return figures


def cut_out(images):
    """The middle of (N, S, S, 3) uint8 images, enlarged to their size and turned by a right angle."""
    size = images.shape[1]
    edge = round(size * (1 - LEFT) / 2)
    middle = to_float(images[:, edge:size - edge, edge:size - edge], images.device)
    return to_bytes(F.interpolate(middle, size=(size, size), mode="bilinear", align_corners=False).rot90(1, (2, 3)))


def top1(query, gallery):
    """Top-1 in percent where row i is the answer to query i. query, gallery: (N, D)."""
    rows = torch.arange(len(query))
    return retrieval_metrics(query, gallery, rows, rows)["top1"]
