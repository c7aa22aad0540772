"""Parts of the training images: a network of cells learns as well from a part, and sees more of them in the time."""
import torch


def side_of_part(part, img_size):
    """Side in px of what is cut of images of img_size: `part` (--part), or all where that is None or more."""
    return min(part or img_size, img_size)


def random_part(images, part, generator):
    """The same square of all images, at one random place for the whole batch.

    images: a sequence of (B, C, S, S), one for each kind of image. part: side of the square, as side_of_part reads it.
    generator: a torch.Generator on the CPU.
    Returns as many (B, C, part, part), or the images as they came.
    """
    side = side_of_part(part, images[0].shape[-1])
    room = images[0].shape[-1] - side
    if room == 0:
        return images
    top, left = torch.randint(room + 1, (2,), generator=generator).tolist()
    return [kind[:, :, top:top + side, left:left + side] for kind in images]
