"""Images cut out and turned. Positions and rotations are counted as in shared/mapping/localization.py."""
import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt


def turn(image, rotations, side=None, zoom=1.0, shown=None):
    """A query as it would lie on a map that has north up: at each rotation, in the middle of a square.

    image: (h, w, 3) uint8. rotations: (K) degrees clockwise. side: of the square in px (default: what holds all views);
    made a multiple of STRIDE. zoom: map px to a px of the image. shown: (h, w) bool, where the image shows something
    (default: all of it). Returns views (K, S, S, 3) uint8, where the query ends its edge goes on, and masks (K, S, S)
    bool, where the query shows something.
    """
    height, width = image.shape[:2]
    angles = np.deg2rad(rotations)
    side = side or side_of_views(image, rotations, zoom)
    views = np.zeros((len(angles), side, side, 3), np.uint8)
    masks = np.zeros((len(angles), side, side), bool)
    whole = np.full((height, width), 255, np.uint8) if shown is None else shown.astype(np.uint8) * 255
    for view, mask, angle in zip(views, masks, angles):
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        # A px of the view, from its middle, to one of the image: pixel centres lie at halves.
        turned = np.array([[cos, sin], [-sin, cos]])
        offset = np.array([width, height]) / 2 - 0.5 - turned @ np.full(2, side / 2 - 0.5)
        matrix = np.column_stack([turned, offset])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        view[:] = cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        mask[:] = cv2.warpAffine(whole, matrix, (side, side), flags=flags) > 254
    return views, masks


def side_of_views(image, rotations, zoom=1.0):
    """Px of the square that holds an image at all these rotations, at `zoom` px to one of its own."""
    height, width = image.shape[:2]
    cos, sin = np.abs(np.cos(np.deg2rad(rotations))), np.abs(np.sin(np.deg2rad(rotations)))
    return int(np.ceil(zoom * max((cos * width + sin * height).max(), (cos * height + sin * width).max()) - 1e-6))


def cut_turned(image, x, y, side, rotation, zoom=1.0):
    """The square of `side` px about (x, y), turned by `rotation` degrees clockwise, at `zoom` px of the image to a px.

    image: (H, W, 3) uint8, or (H, W). Returns (side, side, 3), or (side, side); beyond the image its edge goes on.
    """
    angle = np.deg2rad(rotation)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    turned = np.array([[cos, -sin], [sin, cos]])
    offset = np.array([x, y]) - 0.5 - turned @ np.full(2, side / 2 - 0.5)
    matrix = np.column_stack([turned, offset])
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)


def filled(image, shown):
    """(H, W, 3) uint8 whose pixels that show nothing are the nearest that do, so that no false edge is seen there.

    shown: (H, W) bool. Nothing is filled where nothing is shown.
    """
    if shown.all() or not shown.any():
        return image
    rows, columns = distance_transform_edt(~shown, return_distances=False, return_indices=True)
    return image[rows, columns]


def difference_of_angles(a, b):
    """a - b in degrees, in [-180, 180)."""
    return (np.asarray(a) - b + 180) % 360 - 180
