"""Which pixels show nothing though no file says so: collars of a constant, and masks that are told by their values."""
import cv2
import numpy as np

CORNER = 16                                             # a corner of so small a share of the side tells a collar
SPECK = 64                                              # px: a smaller constant spot within an image is no collar


def is_all_or_nothing(alpha):
    """Whether an array is 0 or the largest value of its type, but for a hundredth."""
    largest = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
    return bool(((alpha == 0) | (alpha == largest)).mean() > 0.99)


def undeclared_nodata(bands):
    """The number, the same in all bands, that fills a corner or a whole border of (C, H, W); None where none does, or
    where it fills all."""
    low, high = bands.min(0), bands.max(0)
    same = low == high
    size = max(8, min(same.shape) // CORNER)
    edges = [np.s_[:size, :size], np.s_[:size, -size:], np.s_[-size:, :size], np.s_[-size:, -size:],
             np.s_[:1, :], np.s_[-1:, :], np.s_[:, :1], np.s_[:, -1:]]
    for edge in edges:
        value = low[edge].flat[0]
        if same[edge].all() and (low[edge] == value).all() and not (same & (low == value)).mean() > 0.99:
            return value.item()
    return None


def without_specks(hidden):
    """(H, W) bool: what is hidden in spots of SPECK pixels and more: a collar's value may be a true one elsewhere."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(hidden.astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= SPECK
    large[0] = False                                    # what is shown
    return large[labels]
