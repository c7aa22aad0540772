"""The coarse step on a large map: retrieval embeddings of its patches, and which of them a query looks most like."""
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from shared.dataset import resize
from shared.evaluate import embed
from shared.layouts import find_data, list_split, read_image

FEATURE = "FC"
VIEW_STEP = 15.0                                        # degrees between the views of a query that came turned


@dataclass
class Patches:
    """P patches of maps. centres: (P, 2), x and y in px. map: (P) int, the number of each patch's map. embeddings:
    (P, D) float32, L2-normalised. side: of a patch in px."""
    centres: np.ndarray
    map: np.ndarray
    embeddings: torch.Tensor
    side: int


def corners_of_patches(height, width, side, step):
    """(P, 2) int, top and left: patches `step` px apart, the last ones at the edges. Empty where none fits."""
    if min(height, width) < side:
        return np.zeros((0, 2), int)
    rows, columns = (sorted({*range(0, size - side + 1, step), size - side}) for size in (height, width))
    return np.array([(row, column) for row in rows for column in columns])


def embed_images(model, images, modality, size, device, autocast):
    """(N, D) float32 of square images of any size, at `size` px."""
    stack = torch.from_numpy(np.stack([resize(image, size) for image in images]))
    return embed(model, stack, modality, device, autocast)[FEATURE]


def embed_maps(model, images, side, step, size, device, autocast):
    """The Patches of some maps. images: (H, W, 3) uint8 each. step: px from a patch to the next. size: px at which a
    patch is embedded."""
    centres, numbers, embeddings = [], [], []
    for number, image in enumerate(images):
        corners = corners_of_patches(*image.shape[:2], side, step)
        if not len(corners):
            continue
        patches = [image[top:top + side, left:left + side] for top, left in corners]
        embeddings.append(embed_images(model, patches, "opt", size, device, autocast))
        centres.append(corners[:, ::-1] + side / 2)
        numbers.append(np.full(len(corners), number))
    return Patches(np.concatenate(centres), np.concatenate(numbers), torch.cat(embeddings), side)


def views_of(image, within):
    """A square query turned back by what it may be turned, (V, S, S, 3) uint8 and (V) degrees.

    Corners are filled with the reflected image, so that a view looks like an image that was never turned.
    """
    rotations = np.zeros(1) if within == 0 else np.arange(-within, within + (within < 180), VIEW_STEP)
    side, views = len(image), []
    for rotation in rotations:
        # OpenCV turns counter-clockwise by a positive angle; what came turned clockwise by `rotation` is turned so.
        matrix = cv2.getRotationMatrix2D((side / 2 - 0.5, side / 2 - 0.5), -rotation, 1.0)
        views.append(cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR,
                                    borderMode=cv2.BORDER_REFLECT_101))
    return np.stack(views), rotations


def rank_patches(model, query, patches, within, size, device, autocast):
    """(scores, rotations, embedding): of each patch the best cosine over the query's views, the rotation of that view,
    both (P), and the embedding (D) of the best view of all."""
    views, rotations = views_of(query, within)
    embeddings = embed_images(model, views, "sar", size, device, autocast)
    scores, view = (embeddings @ patches.embeddings.T).max(0)
    best = embeddings[view[scores.argmax()]]
    return scores.numpy(), rotations[view.numpy()], best


def embedding_size(side, img_size, crop):
    """Px at which a patch of `side` px is embedded, so that the ground is as large as in training."""
    return max(32, round(img_size * side / crop))


def crop_of(data_path, split="train"):
    """Side in px of a data set's crops, as their files hold them."""
    listing = list_split(find_data(data_path), split, [])
    return len(read_image(next(iter(listing.opt.values()))))
