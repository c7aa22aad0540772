"""Windows drawn anywhere in whole training tiles: as many places as one likes from the same ground.

DATA/train_tiles/{opt,sar}/TILE.png|jpg|tif (or TILE__PART) hold the tiles that the training crops were cut from, whole and aligned.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from shared.errors import InputError, several
from shared.layouts import list_images, read_any_image

TRIES = 200                                             # portions of windows drawn before a batch is given up


@dataclass
class Windows:
    """The training tiles in memory, at the scale at which crops are trained on. Stands where Pairs stands in training.

    opt, sar: (T, H, W, 3) uint8, tiles of less than the largest size padded. sizes: (T, 2) int64, the height and width of each.
    window: side of a window, the --img_size. places: how many windows make an epoch.
    """
    opt: torch.Tensor
    sar: torch.Tensor
    sizes: torch.Tensor
    window: int
    places: int
    left_out: int = 0

    def __len__(self):
        return self.places

    def draw(self, count, generator):
        """(opt, sar), each (count, S, S, 3) uint8: windows of which no two overlap, at any of the eight symmetries of the square."""
        tile, top, left = self.positions(count, generator)
        offsets = torch.arange(self.window)
        rows, columns = (top[:, None] + offsets)[:, :, None], (left[:, None] + offsets)[:, None, :]
        symmetry = torch.randint(8, (count,), generator=generator)
        return tuple(apply_symmetry(tiles[tile[:, None, None], rows, columns], symmetry) for tiles in (self.opt, self.sar))

    def positions(self, count, generator):
        """(tile, top, left) of `count` windows, each (count) int64, uniform over all positions but for those that would overlap an earlier one."""
        room = self.sizes - self.window + 1                           # T x 2 positions
        weights = room.prod(1).double()
        kept = torch.empty((0, 3), dtype=torch.int64)
        for _ in range(TRIES):
            tile = torch.multinomial(weights, count, replacement=True, generator=generator)
            drawn = torch.cat([tile[:, None], (torch.rand((count, 2), generator=generator) * room[tile]).long()], 1)
            everything = torch.cat([kept, drawn])
            near = (everything[:, None, 1:] - everything[None, :, 1:]).abs().amax(2) < self.window
            overlaps = (near & (everything[:, None, 0] == everything[None, :, 0])).numpy()
            chosen = list(range(len(kept)))
            for i in range(len(kept), len(everything)):
                if not overlaps[i, chosen].any():
                    chosen.append(i)
            kept = everything[chosen][:count]
            if len(kept) == count:
                return kept.unbind(1)
        raise InputError(f"--windows: {count} windows of {self.window} px that do not overlap were not found in {len(self.sizes)} tiles: "
                         "give a smaller --batch_size, or more tiles")


def apply_symmetry(images, symmetry):
    """Each of (B, S, S, 3) under its own symmetry of the square, (B) int64 in 0 to 7: bits for left-right, up-down and the diagonal."""
    bit = [(symmetry >> k & 1).bool().view(-1, 1, 1, 1) for k in range(3)]
    images = torch.where(bit[0], images.flip(2), images)
    images = torch.where(bit[1], images.flip(1), images)
    return torch.where(bit[2], images.transpose(1, 2), images)


def load_windows(root, pairs, crop, img_size, workers, batch_size):
    """Windows over the tiles of DATA/train_tiles that the training pairs come from.

    crop: the side of a training crop, in px of the tile: a window of img_size then shows as much ground as a crop does.
    Raises InputError that names every bad file.
    """
    if not (root / "train_tiles").is_dir():
        raise InputError(f"{root / 'train_tiles'}: there is no such folder, and --windows draws from the training tiles there: "
                         "prepare the data with --keep_tiles, or give --symmetries instead")
    problems = []
    files = {modality: list_images(root / "train_tiles" / modality, problems) for modality in ("opt", "sar")}
    for name in sorted(files["opt"].keys() ^ files["sar"].keys()):
        there = "opt" if name in files["opt"] else "sar"
        problems.append(f"{files[there][name]}: there is no such tile in the other modality")
    names = sorted(files["opt"].keys() & files["sar"].keys())
    if pairs.tiles != pairs.names:                      # pairs.csv knows the tiles: those held out for validation are not drawn from
        names = [name for name in names if name.split("__")[0] in set(pairs.tiles)]
    scale = img_size / crop

    def read(job):
        try:
            image = read_any_image(job)
        except InputError as error:
            return str(error)
        height, width = (round(side * scale) for side in image.shape[:2])
        if min(height, width) < img_size:
            return f"{job}: {image.shape[1]} x {image.shape[0]} px, smaller than a crop of {crop}"
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)

    with ThreadPoolExecutor(workers) as pool:
        tiles = {modality: list(pool.map(read, [files[modality][name] for name in names])) for modality in files}
    problems += [tile for modality in tiles for tile in tiles[modality] if isinstance(tile, str)]
    problems += [f"{files['sar'][name]}: not the size of {files['opt'][name]}" for name, opt, sar in zip(names, tiles["opt"], tiles["sar"])
                 if not isinstance(opt, str) and not isinstance(sar, str) and opt.shape != sar.shape]
    if not names and not problems:
        problems.append(f"{root / 'train_tiles'}: no tile has a name that pairs.csv gives to a training place")
    if problems:
        raise several(f"--windows: {root / 'train_tiles'} has {len(problems)} problem(s):", problems)
    sizes = torch.tensor([tile.shape[:2] for tile in tiles["opt"]])
    height, width = sizes.amax(0).tolist()
    stacked = {modality: torch.from_numpy(np.stack([np.pad(tile, ((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0))) for tile in tiles[modality]]))
               for modality in tiles}
    windows = Windows(stacked["opt"], stacked["sar"], sizes, img_size, len(pairs), pairs.left_out)
    windows.positions(batch_size, torch.Generator().manual_seed(0))   # raises now, not in the middle of training, where they do not fit
    return windows
