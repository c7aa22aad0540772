"""Aligned pairs of optical and SAR images: found, checked, decoded once, drawn as batches.

Layout: DATA/{train,test}/{opt,sar}/NAME.png|jpg|tif, one optical image for each place, and at least one
SAR image of the same file name (or NAME__STRIP, where several strips saw the place). An optional
DATA/pairs.csv (split, id, region, tile, x_m, y_m) tells where each place is.
"""
import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from shared.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass
class Pairs:
    """One split in memory. P places, M >= P - distractors SAR images.

    names: P place names. opt: (P, S, S, 3) uint8, RGB. sar: (M, S, S, 3) uint8. sar_place: (M) int64, the
    place of each SAR image. tiles: P names of the tile that each place was cut from.
    """
    names: list
    opt: torch.Tensor
    sar_names: list
    sar: torch.Tensor
    sar_place: torch.Tensor
    tiles: list

    def __len__(self):
        return len(self.names)

    @property
    def distractors(self):
        """Places without a SAR image: part of the gallery, never the truth."""
        return len(self) - len(self.sar_place.unique())

    def subset(self, places):
        """The same split with these places only. places: sorted (Q) int64."""
        kept = torch.isin(self.sar_place, places)
        rows = kept.nonzero().flatten()
        return replace(self, names=[self.names[i] for i in places], tiles=[self.tiles[i] for i in places],
                       opt=self.opt[places], sar=self.sar[rows], sar_names=[self.sar_names[i] for i in rows],
                       sar_place=torch.searchsorted(places, self.sar_place[rows]))


def load_data(data_path, img_size, workers, validate=0.0):
    """Read a data set: the training pairs and those to evaluate on.

    validate: 0 evaluates on the test split. Above 0, that share of the training split's tiles is held
    out and evaluated on instead, and the test split is not read: this is where choices are made.
    Raises InputError that names every bad file of both splits.
    """
    root = find_data(data_path)
    problems, splits = [], {}
    for split in ("train",) if validate else ("train", "test"):
        splits[split] = _read_split(root, split, img_size, workers, problems)
    if problems:
        raise InputError("\n  ".join([f"the data set {root} has {len(problems)} problem(s); mend or remove these files:"] + problems))
    if not validate:
        return splits["train"], splits["test"]
    return hold_out(splits["train"], validate)


def load_test(data_path, img_size, workers):
    """The test split alone."""
    root = find_data(data_path)
    problems = []
    pairs = _read_split(root, "test", img_size, workers, problems)
    if problems:
        raise InputError("\n  ".join([f"the data set {root} has {len(problems)} problem(s); mend or remove these files:"] + problems))
    return pairs


def find_data(data_path):
    """The data set's folder: as given, else under the home directory. InputError where there is none."""
    for root in (Path(data_path).expanduser(), Path.home() / data_path):
        if root.is_dir():
            return root
    raise InputError(f"--data_path {data_path}: there is no such folder here or under the home directory; "
                     "python data/demo/prepare.py makes pairs to try with")


def hold_out(pairs, share):
    """Split training pairs by tile: (kept, held out), always the same tiles for the same share.

    Tiles are spread evenly over their sorted names, so that regions named in order are all represented.
    """
    tiles = sorted(set(pairs.tiles))
    count = round(share * len(tiles))
    if not 0 < count < len(tiles):
        raise InputError(f"--validate {share}: {len(tiles)} tiles cannot be split so; choose a share between 0 and 1")
    held = {tiles[int((i + 0.5) * len(tiles) / count)] for i in range(count)}
    mask = torch.tensor([tile in held for tile in pairs.tiles])
    return pairs.subset((~mask).nonzero().flatten()), pairs.subset(mask.nonzero().flatten())


def steps_per_epoch(pairs, batch_size):
    """Whole batches only: a batch-hard loss on a small rest is another loss."""
    if batch_size < 2 or batch_size > len(pairs):
        raise InputError(f"--batch_size {batch_size}: choose 2 to {len(pairs)}, the number of training places")
    return len(pairs) // batch_size


def draw_batches(pairs, batch_size, seed, epoch, first_step, device, generator):
    """Yield an epoch's batches (opt, sar), each (B, 3, S, S) float32 in [0, 1] on the device.

    No place comes twice in an epoch. Of several SAR strips one is drawn. Both images of a pair are
    flipped left to right together, half of the time. Everything drawn depends on (seed, epoch, step)
    alone: `generator` (a CPU torch.Generator) is seeded with them before each step, and later draws of
    the step, such as the channel exchange's, continue it.
    """
    generator.manual_seed(_seed(seed, epoch))
    order = torch.randperm(len(pairs), generator=generator)
    by_place = torch.argsort(pairs.sar_place, stable=True)
    strips = torch.bincount(pairs.sar_place, minlength=len(pairs))
    first = strips.cumsum(0) - strips
    for step in range(first_step, steps_per_epoch(pairs, batch_size)):
        generator.manual_seed(_seed(seed, epoch, step))
        places = order[step * batch_size:(step + 1) * batch_size]
        strip = (torch.rand(batch_size, generator=generator) * strips[places]).long()
        flipped = (torch.rand(batch_size, generator=generator) < 0.5).view(-1, 1, 1, 1).to(device)
        images = [to_float(pairs.opt[places], device), to_float(pairs.sar[by_place[first[places] + strip]], device)]
        yield tuple(torch.where(flipped, x.flip(3), x) for x in images)


def to_float(images, device):
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 in [0, 1] on the device, in channels_last memory."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def _seed(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _read_split(root, split, img_size, workers, problems):
    """Decode one split; what is wrong with it is appended to `problems`, and then None is returned."""
    before = len(problems)
    opt_files, sar_files = _images(root / split / "opt", problems), _images(root / split / "sar", problems)
    names = sorted(opt_files)
    index = {name: i for i, name in enumerate(names)}
    places = {}
    for sar_name, file in sorted(sar_files.items()):
        place = sar_name if sar_name in index else sar_name.rpartition("__")[0]
        if place in index:
            places[sar_name] = index[place]
        elif opt_files:
            problems.append(f"{file}: there is no optical image of this name in {root / split / 'opt'}")
    if split == "train" and sar_files:
        seen = set(places.values())
        problems.extend(f"{opt_files[name]}: there is no SAR image of this name in {root / split / 'sar'}"
                        for name in names if index[name] not in seen)
    opt, opt_sizes = _decode([opt_files[name] for name in names], img_size, workers, problems)
    sar, sar_sizes = _decode([sar_files[name] for name in places], img_size, workers, problems)
    for (sar_name, place), size in zip(places.items(), sar_sizes):
        if size and opt_sizes[place] and size != opt_sizes[place]:
            problems.append(f"{sar_files[sar_name]}: {size[0]} x {size[1]} px, but its optical image has "
                            f"{opt_sizes[place][0]} x {opt_sizes[place][1]}")
    if len(problems) > before:
        return None
    tiles = _tiles(root, split)
    return Pairs(names, opt, list(places), sar, torch.tensor(list(places.values())), [tiles.get(name, name) for name in names])


def _images(folder, problems):
    """The images of a folder by name, without the suffix."""
    if not folder.is_dir():
        problems.append(f"{folder}: there is no such folder")
        return {}
    files = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES:
            if file.stem in files:
                problems.append(f"{file}: {files[file.stem].name} has the same name")
            files[file.stem] = file
    if not files:
        problems.append(f"{folder}: there is no image ({', '.join(SUFFIXES)}) in it")
    return files


def _decode(files, img_size, workers, problems):
    """Decode files in threads (the decoders release Python's lock) into (N, S, S, 3) uint8, and the sizes."""
    images = np.empty((len(files), img_size, img_size, 3), np.uint8)
    sizes = [None] * len(files)

    def decode(i):
        try:
            image = read_image(files[i])
        except InputError as error:
            return str(error)
        sizes[i] = image.shape[1::-1]
        images[i] = resize(image, img_size)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        problems.extend(problem for problem in pool.map(decode, range(len(files))) if problem)
    return torch.from_numpy(images), sizes


def read_image(file):
    """Decode one file to (H, W, 3) uint8 RGB; one channel is repeated. InputError where that fails."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "RGB", "RGBA", "P"):
                raise InputError(f"{file}: {image.mode} pixels; convert it to 8 bits in one or three channels")
            if image.width != image.height:
                raise InputError(f"{file}: {image.width} x {image.height} px; crop it to a square")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:          # what Pillow raises on damaged files
        raise InputError(f"{file}: cannot be decoded ({error})")


def resize(image, size):
    """(H, H, 3) uint8 -> (size, size, 3): by area when it shrinks, so that nothing aliases."""
    if image.shape[0] == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_LINEAR)


def _tiles(root, split):
    """The tile of each place of a split, from pairs.csv where there is one."""
    file = root / "pairs.csv"
    if not file.is_file():
        return {}
    with open(file, newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"split", "id"} <= set(rows.fieldnames or ()):
            raise InputError(f"{file}: the first line must name the columns split and id")
        return {row["id"]: row["tile"] for row in rows if row["split"] == split and row.get("tile")}
