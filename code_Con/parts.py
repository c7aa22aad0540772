"""Parts of the training images: a network of cells learns as well from a part, and sees more of them in the time."""
import torch


def random_part(opt, sar, side, generator):
    """The same square of both images of each pair, at one random place for the whole batch.

    opt, sar: (B, C, S, S). side: of the square in px; None, or S and more, takes all of the image. generator: a
    torch.Generator on the CPU.
    Returns (opt, sar), each (B, C, side, side), or as they came.
    """
    room = 0 if side is None else opt.shape[-1] - side
    if room <= 0:
        return opt, sar
    top, left = torch.randint(room + 1, (2,), generator=generator).tolist()
    return tuple(images[:, :, top:top + side, left:left + side] for images in (opt, sar))
