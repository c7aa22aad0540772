"""What a network must beat without learning anything: correlation of oriented gradients, or of gradient magnitudes, and
mutual information."""
from contextlib import nullcontext

import cv2
import numpy as np
import torch

from shared.mapping.cells import CellMaps, StructureCells, embed_cells, spectra_of, sums_at_shifts

BINS = 8


class StructureCorrelation:
    """Cosines of the oriented gradients of shared/structure.py, a cell for each pixel.

    Keeps what it made of the last image: queries come tile by tile.
    """

    def __init__(self):
        self.model = StructureCells(spacing=1)
        self.image = self.maps = None

    def __call__(self, query, image):
        """Images (h, w, 3) and (H, W, 3) uint8 -> (H - h + 1, W - w + 1)."""
        if image is not self.image:
            self.image, self.maps = image, CellMaps(self._cells(image, "opt"))
        return self.maps.cosines(self._cells(query, "sar"), torch.ones(1, 1, *query.shape[:2]))[0, 0].numpy()

    def _cells(self, image, modality):
        return embed_cells(self.model, torch.from_numpy(image)[None], modality, torch.device("cpu"), nullcontext)


def gradient_correlation(query, image):
    """Normalised cross-correlation of log gradient magnitudes, (H - h + 1, W - w + 1). Images (h, w, 3) uint8."""
    return cv2.matchTemplate(_gradient(image), _gradient(query), cv2.TM_CCOEFF_NORMED)


def mutual_information(query, image):
    """Mutual information of grey levels in BINS bins at every position, in nats, (H - h + 1, W - w + 1).

    Source: Viola and Wells, "Alignment by Maximization of Mutual Information", 1997. The joint histogram of every
    position comes from the correlations of the images that tell where each bin is.
    """
    query_bins, image_bins = _bins(query), _bins(image)
    # BINS x BINS x h x w
    joint = sums_at_shifts(query_bins[:, None], spectra_of(image_bins[:, None]), image.shape[:2]).clamp(min=0)
    joint = joint / joint.sum((0, 1), keepdim=True)
    of_image = joint.sum(0, keepdim=True)
    of_query = joint.sum(1, keepdim=True)
    return (joint * (joint.clamp(min=1e-9) / (of_image * of_query).clamp(min=1e-9)).log()).sum((0, 1)).numpy()


def best_position(scores):
    """(row, column) of the highest score."""
    return np.unravel_index(scores.argmax(), scores.shape)


def _gradient(image):
    smooth = cv2.GaussianBlur(image.mean(-1).astype(np.float32), (0, 0), 2.0)
    return np.log1p(np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)))


def _bins(image):
    """(BINS, H, W) float32, 1 where a pixel is in the bin; bins of equally many pixels."""
    grey = cv2.GaussianBlur(image.mean(-1).astype(np.float32), (0, 0), 1.0)
    bins = np.searchsorted(np.quantile(grey, np.linspace(0, 1, BINS + 1)[1:-1]), grey)
    return torch.from_numpy((bins == np.arange(BINS)[:, None, None]).astype(np.float32))


def displacement(opt, sar, blocks=4, reach=16, resamples=200):
    """How far the SAR image of a tile is displaced against the optical: (dx, dy) px, and the standard error of each.

    By gradient_correlation alone, nothing learned: its mean over blocks x blocks parts of the tile at shifts up to
    `reach` px has its peak there; the error is that of a bootstrap over the parts.
    """
    surfaces = []
    height, width = opt.shape[0] // blocks, opt.shape[1] // blocks
    for row in range(blocks):
        for column in range(blocks):
            part = np.s_[row * height:(row + 1) * height, column * width:(column + 1) * width]
            surfaces.append(gradient_correlation(sar[part][reach:-reach, reach:-reach], opt[part]))
    surfaces = np.nan_to_num(np.stack(surfaces))
    random = np.random.default_rng(0)

    def peak(chosen):
        row, column = best_position(surfaces[chosen].mean(0))
        return column - reach, row - reach

    drawn = [peak(random.integers(0, len(surfaces), len(surfaces))) for _ in range(resamples)]
    return np.array(peak(np.arange(len(surfaces))), float), np.std(drawn, axis=0)
