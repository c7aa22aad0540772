"""How like the true images drawn ones are, in figures and in a picture."""
import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from shared.plumbing.files import write_figure


def likeness(drawn, true):
    """{"psnr" in dB, "ssim" in [-1, 1]}: means over images, (N, S, S, 3) uint8 both.

    SSIM is OpenCV's (Wang et al., "Image Quality Assessment", 2004), the mean over the channels.
    """
    squared = (drawn.float() - true.float()).square().mean((1, 2, 3)).clamp(min=1e-12)
    ssim = [np.mean(cv2.quality.QualitySSIM_compute(a, b)[0][:3]) for a, b in zip(drawn.numpy(), true.numpy())]
    return {"psnr": (10 * torch.log10(255 ** 2 / squared)).mean().item(), "ssim": float(np.mean(ssim))}


def show_strip(rows, file):
    """A PNG with a row for each of {title: (N, S, S, 3) uint8 RGB}."""
    count = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.3 * count, 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), squeeze=False).flat
    for axis, (title, images) in zip(axes, rows.items()):             # one for a row: axes take longer than images
        gap = 1 + images.shape[2] // 40
        axis.imshow(np.hstack([np.pad(image, ((0, 0), (gap, gap), (0, 0)), constant_values=255) for image in images]))
        axis.set(xticks=(), yticks=(), frame_on=False)
        axis.set_ylabel(title, fontsize=8)
    write_figure(file, figure)
