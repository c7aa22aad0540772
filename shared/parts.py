"""Parts of the training images: a network of cells learns as well from a part, and sees more of them in the time."""
import torch


def random_part(images, side, generator):
    """The same square of all images, at one random place for the whole batch.

    images: a sequence of (B, C, S, S), one for each kind of image. side: of the square in px; None, or S and more,
    takes all of the images. generator: a torch.Generator on the CPU.
    Returns as many (B, C, side, side), or the images as they came.
    """
    room = 0 if side is None else images[0].shape[-1] - side
    if room <= 0:
        return images
    top, left = torch.randint(room + 1, (2,), generator=generator).tolist()
    return [kind[:, :, top:top + side, left:left + side] for kind in images]
