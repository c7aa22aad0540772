"""Windows drawn anywhere in whole training tiles: as many places as one likes from the same ground.

DATA/train_tiles/{opt,sar}/TILE.png|jpg|tif (or TILE__PART) hold the tiles that the training crops were cut from, whole
and aligned.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import torch

from shared.plumbing.errors import InputError, several
from shared.reading.layouts import list_images, read_any_image
from shared.reading.readers import READERS
from shared.reading.tones import measure_tones

TRIES = 200                                             # portions of windows drawn before a batch is given up


@dataclass
class Windows:
    """The training tiles in memory, at the scale at which crops are trained on. Stands where Pairs stands in training.

    opt, sar: (T, H, W, 3) uint8, tiles of less than the largest size padded. sizes: (T, 2) int64, the height and width
    of each. window: side of a window, the --img_size or less. places: how many windows make an epoch; each comes only
    once. readers: {"opt", "sar"}, by which the tiles were read.
    """
    opt: torch.Tensor
    sar: torch.Tensor
    sizes: torch.Tensor
    window: int
    places: int
    left_out: int = 0
    readers: dict = field(default_factory=lambda: dict(READERS))

    def __len__(self):
        return self.places

    def describe(self):
        return f"{len(self)} training places, windows of {len(self.sizes)} tiles"

    @property
    def tones(self):
        """{"opt", "sar"}: the Tones of the tiles."""
        return {name: measure_tones([tile[:height, :width] for tile, (height, width) in zip(tiles, self.sizes)])
                for name, tiles in (("opt", self.opt), ("sar", self.sar))}

    def order(self, generator):
        """(P) int64: the numbers of an epoch's windows. Nothing is drawn: each window is made when it is asked for."""
        return torch.arange(self.places)

    def draw(self, places, generator):
        """(opt, sar), each (B, S, S, 3) uint8: a window for each of the B numbers, at any of the eight symmetries.

        No two windows of a batch overlap.
        """
        count = len(places)
        tile, top, left = self.positions(count, generator)
        offsets = torch.arange(self.window)
        rows, columns = (top[:, None] + offsets)[:, :, None], (left[:, None] + offsets)[:, None, :]
        symmetry = torch.randint(8, (count,), generator=generator)
        opt, sar = (tiles[tile[:, None, None], rows, columns] for tiles in (self.opt, self.sar))
        return apply_symmetry(opt, symmetry), apply_symmetry(sar, symmetry)

    def positions(self, count, generator):
        """(tile, top, left) of `count` windows, each (count) int64.

        Uniform over all positions but for those that would overlap an earlier one.
        """
        room = self.sizes - self.window + 1                           # T x 2 positions
        weights = room.prod(1).double()
        kept = torch.empty((0, 3), dtype=torch.int64)
        for _ in range(TRIES):
            tile = torch.multinomial(weights, count, replacement=True, generator=generator)
            corners = (torch.rand((count, 2), generator=generator) * room[tile]).long()
            kept = self._without_overlaps(kept, torch.cat([tile[:, None], corners], 1))[:count]
            if len(kept) == count:
                return kept.unbind(1)
        raise InputError(f"--windows: {count} windows of {self.window} px that do not overlap were not found in "
                         f"{len(self.sizes)} tiles: give a smaller --batch_size, or more tiles")

    def _without_overlaps(self, kept, drawn):
        """Windows (K, 3) that are apart already, then of those drawn, (N, 3), each that overlaps none before it."""
        windows = torch.cat([kept, drawn])
        tile, corners = windows[:, 0], windows[:, 1:]
        near = (corners[:, None] - corners[None]).abs().amax(2) < self.window
        overlaps = (near & (tile[:, None] == tile[None])).numpy()
        chosen = list(range(len(kept)))
        for i in range(len(kept), len(windows)):
            if not overlaps[i, chosen].any():
                chosen.append(i)
        return windows[chosen]


def apply_symmetry(images, symmetry):
    """Each of (B, S, S, 3) under its own symmetry of the square.

    symmetry: (B) int64 in 0 to 7, bits for left-right, up-down and the diagonal.
    """
    bit = [(symmetry >> k & 1).bool().view(-1, 1, 1, 1) for k in range(3)]
    images = torch.where(bit[0], images.flip(2), images)
    images = torch.where(bit[1], images.flip(1), images)
    return torch.where(bit[2], images.transpose(1, 2), images)


def load_windows(root, pairs, img_size, workers, batch_size, window=None):
    """Windows over the tiles of DATA/train_tiles that the training pairs come from.

    A window of img_size shows as much ground as a crop of the pairs does. window: its side, where a step needs no more.
    Raises InputError that names every bad file, or where a batch of windows does not fit the tiles.
    """
    problems = []
    files = _list_tiles(root / "train_tiles", pairs, problems)
    with ThreadPoolExecutor(workers) as pool:
        reads = [partial(_read_tile, crop=pairs.crop, img_size=img_size, reader=pairs.readers[modality])
                 for modality in ("opt", "sar")]
        opt, sar = (list(pool.map(read, of_modality)) for read, of_modality in zip(reads, files))
    problems += [str(tile) for tile in [*opt, *sar] if isinstance(tile, InputError)]
    for opt_file, sar_file, opt_tile, sar_tile in zip(*files, opt, sar):
        are_whole = not isinstance(opt_tile, InputError) and not isinstance(sar_tile, InputError)
        if are_whole and opt_tile.shape != sar_tile.shape:
            problems.append(f"{sar_file}: not the size of {opt_file}")
    if problems:
        raise several(f"--windows: {root / 'train_tiles'} has {len(problems)} problem(s):", problems)
    sizes = torch.tensor([tile.shape[:2] for tile in opt])
    windows = Windows(stack_tiles(opt), stack_tiles(sar), sizes, window or img_size, len(pairs), pairs.left_out,
                      pairs.readers)
    # Raises now, not in the middle of training, where they do not fit.
    windows.positions(batch_size, torch.Generator().manual_seed(0))
    return windows


def _list_tiles(folder, pairs, problems):
    """The files of the training pairs' tiles, sorted by name: (optical, SAR), two lists."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder, and --windows draws from the training tiles there: "
                         "prepare the data with --keep_tiles, or give --symmetries instead")
    opt, sar = (list_images(folder / modality, problems) for modality in ("opt", "sar"))
    for name in sorted(opt.keys() ^ sar.keys()):
        problems.append(f"{opt.get(name) or sar.get(name)}: there is no such tile in the other modality")
    names = sorted(opt.keys() & sar.keys())
    if pairs.tiles != pairs.names:                      # pairs.csv knows the tiles: those held out are not drawn from
        known = set(pairs.tiles)
        names = [name for name in names if name.split("__")[0] in known]
    if not names and not problems:
        problems.append(f"{folder}: no tile has a name that pairs.csv gives to a training place")
    return [opt[name] for name in names], [sar[name] for name in names]


def _read_tile(file, crop, img_size, reader):
    """A tile at the scale at which a crop has img_size, (H, W, 3) uint8; the InputError where that cannot be."""
    try:
        image = read_any_image(file, reader)
    except InputError as error:
        return error
    scale = img_size / crop
    height, width = (round(side * scale) for side in image.shape[:2])
    if min(height, width) < img_size:
        return InputError(f"{file}: {image.shape[1]} x {image.shape[0]} px, smaller than a crop of {crop}")
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def stack_tiles(tiles):
    """(T, H, W, 3) uint8 of tiles (h, w, 3), each padded below and to the right to the largest size."""
    height, width = np.max([tile.shape[:2] for tile in tiles], axis=0)
    padding = [((0, height - tile.shape[0]), (0, width - tile.shape[1]), (0, 0)) for tile in tiles]
    return torch.from_numpy(np.stack([np.pad(tile, around) for tile, around in zip(tiles, padding)]))
