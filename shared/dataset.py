# For every train.py and test.py.
"""Aligned pairs of optical and SAR images: checked, decoded once, drawn as batches. Where they lie: layouts.py."""
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import cv2
import numpy as np
import torch

from shared.plumbing import distributed
from shared.plumbing.errors import InputError, several
from shared.plumbing.image_store import keep_images
from shared.reading.layouts import check_ids, find_data, list_split, read_image, read_leave_out, read_pairs_csv
from shared.reading.readers import READERS, readers_of
from shared.reading.tones import evenly, measure_tones
from shared.reading.windows import apply_symmetry, load_windows


@dataclass
class Pairs:
    """One split in memory. P places, M >= P - distractors SAR images.

    names: P place names. opt: (P, S, S, 3) uint8, RGB. sar: (M, S, S, 3) uint8. sar_place: (M) int64, the place of each
    SAR image. tiles: P names of the tile that each place was cut from. positions: (P, 2) float64, x and y in metres,
    NaN where unknown, or None. left_out: how many names leave_out.csv left out. crop: side in px of an image as its
    file holds it. symmetries: draw pairs at any of the eight symmetries of the square, not only flipped. regions: P
    names of the region that each place lies in, "" where pairs.csv names none. readers: {"opt", "sar"}, by which the
    images were read.
    """
    names: list
    opt: torch.Tensor
    sar_names: list
    sar: torch.Tensor
    sar_place: torch.Tensor
    tiles: list
    positions: torch.Tensor = None
    left_out: int = 0
    crop: int = None
    symmetries: bool = False
    regions: list = ()
    readers: dict = field(default_factory=lambda: dict(READERS))

    def __len__(self):
        return len(self.names)

    def describe(self):
        return f"{len(self)} training places"

    @property
    def distractors(self):
        """Places without a SAR image: part of the gallery, never the truth."""
        return len(self) - len(self.sar_place.unique())

    @cached_property
    def _strips(self):
        """SAR rows sorted by place, how many each place has, and where they begin: sorted once, not at every step."""
        strips = torch.bincount(self.sar_place, minlength=len(self))
        return torch.argsort(self.sar_place, stable=True), strips, strips.cumsum(0) - strips

    @property
    def first_strips(self):
        """(P) int64: the SAR row of each place's first strip; of a distractor it is another place's."""
        by_place, _, first = self._strips
        return by_place[first.clamp(max=len(by_place) - 1)]

    @property
    def tones(self):
        """{"opt", "sar"}: the Tones of the images."""
        return {"opt": measure_tones(evenly(self.opt, 256)), "sar": measure_tones(evenly(self.sar, 256))}

    @property
    def images(self):
        """{"opt", "sar"}: of each place its optical image and its first strip, (P, S, S, 3) uint8 both."""
        return {"opt": self.opt, "sar": self.sar[self.first_strips]}

    def order(self, generator):
        """(P) int64: the places in random order, each once."""
        return torch.randperm(len(self), generator=generator)

    def draw(self, places, generator):
        """(opt, sar) of these places, each (B, S, S, 3) uint8.

        Of several strips one is drawn, and half of the pairs are flipped left to right; with symmetries, each pair is
        drawn at one of the eight instead.
        """
        by_place, strips, first = self._strips
        strip = (torch.rand(len(places), generator=generator) * strips[places]).long()
        opt, sar = self.opt[places], self.sar[by_place[first[places] + strip]]
        if self.symmetries:
            symmetry = torch.randint(8, (len(places),), generator=generator)
            return apply_symmetry(opt, symmetry), apply_symmetry(sar, symmetry)
        flipped = (torch.rand(len(places), generator=generator) < 0.5).view(-1, 1, 1, 1)
        return torch.where(flipped, opt.flip(2), opt), torch.where(flipped, sar.flip(2), sar)

    def subset(self, places):
        """The same split with these places only. places: sorted (Q) int64."""
        rows = torch.isin(self.sar_place, places).nonzero().flatten()
        return replace(self, names=[self.names[i] for i in places], tiles=[self.tiles[i] for i in places],
                       opt=self.opt[places], sar=self.sar[rows], sar_names=[self.sar_names[i] for i in rows],
                       sar_place=torch.searchsorted(places, self.sar_place[rows]),
                       positions=None if self.positions is None else self.positions[places],
                       regions=[self.regions[i] for i in places] if self.regions else self.regions)

    def of_regions(self, regions, flag):
        """The same split with the places of these regions only; all of it where `regions` is None.

        flag: the command line's name for `regions`. InputError where pairs.csv names no such region.
        """
        if regions is None:
            return self
        unknown = sorted(set(regions) - set(self.regions))
        if unknown:
            there = sorted(set(self.regions) - {""})
            raise InputError(f"{flag} {' '.join(unknown)}: pairs.csv has "
                             + (f"the regions {', '.join(there)}" if there else "no region in a column of that name"))
        inside = torch.tensor([region in regions for region in self.regions])
        return self.subset(inside.nonzero().flatten())


def load_data(args, window=None):
    """Read the data set that the arguments name: what to train on (Pairs or Windows), and the Pairs to evaluate on.

    --validate 0 evaluates on the test split. Above 0, that share of the training split's tiles is held out and
    evaluated on instead, and the test split is not read: this is where choices are made. --windows trains on windows
    of the training tiles instead of the crops, --symmetries on the crops at all eight symmetries. --region trains on
    (and holds out of) these regions alone; --target_path and --target_region say where the test split is. window: the
    side of windows in px where a step needs less of an image than its --img_size.
    Raises InputError that names every bad file of both splits.
    """
    if args.validate:
        train, evaluation = hold_out(_load_training(args), args.validate, args.other_half)
        return _as_drawn(train, args, window), evaluation
    if args.target_path:
        (train,), (evaluation,) = _load(args, args.data_path, "train"), _load(args, args.target_path, "test")
    else:
        train, evaluation = _load(args, args.data_path, "train", "test")
    train = train.of_regions(args.region, "--region")
    return _as_drawn(train, args, window), evaluation.of_regions(args.target_region, "--target_region")


def load_training_data(args):
    """The same without anything to evaluate on: for pretraining. With --validate, the tiles held out are left out."""
    train = _load_training(args)
    if args.validate:
        train, _ = hold_out(train, args.validate, args.other_half)
    return _as_drawn(train, args)


def _load_training(args):
    train, = _load(args, args.data_path, "train")
    return train.of_regions(args.region, "--region")


def _load(args, data_path, *splits):
    return load_splits(data_path, splits, args.img_size, args.workers, args.store, readers_of(args))


def _as_drawn(train, args, window=None):
    train = replace(train, symmetries=args.symmetries)
    if not args.windows:
        return train
    return load_windows(find_data(args.data_path), train, args.img_size, args.workers, args.batch_size, window)


def load_splits(data_path, splits, img_size, workers, store="auto", readers=READERS):
    """The named splits as Pairs, in order. Raises InputError that names every bad file of all of them.

    store: keep the decoded images in `memory`, on `disk` (a memory map in DATA/.decoded), or `auto`: in memory where
    they fit. readers: {"opt", "sar"}; where numbers have to be stretched, all splits are alike, by the first's.
    """
    root, problems, pairs = find_data(data_path), [], []
    for split in splits:
        pairs.append(_read_split(root, split, img_size, workers, store, readers, problems))
        readers = pairs[-1].readers if pairs[-1] else readers
    if problems:
        raise several(f"the data set {root} has {len(problems)} problem(s); mend or remove these files:", problems)
    return pairs


def hold_out(pairs, share, other_half=False):
    """Split training pairs by tile: (kept, held out), always the same tiles for the same share.

    Tiles and other_half as in held_out_tiles.
    """
    held = held_out_tiles(pairs.tiles, share, other_half)
    mask = torch.tensor([tile in held for tile in pairs.tiles])
    return pairs.subset((~mask).nonzero().flatten()), replace(pairs.subset(mask.nonzero().flatten()), left_out=0)


def held_out_tiles(tiles, share, other_half=False):
    """The names that are held out of all those in `tiles`. InputError where nothing would be kept or held out.

    Tiles are spread evenly over their sorted names, so that regions named in order are all represented. other_half: the
    other way round, what would be kept is held out.
    """
    tiles = sorted(set(tiles))
    count = round(share * len(tiles))
    if not 0 < count < len(tiles):
        raise InputError(f"--validate {share}: {len(tiles)} tiles cannot be split so; choose a share between 0 and 1")
    held = {tiles[int((i + 0.5) * len(tiles) / count)] for i in range(count)}
    return set(tiles) - held if other_half else held


def describe(pairs, evaluation):
    """One line for the log: what is trained and evaluated on."""
    left_out = pairs.left_out + evaluation.left_out
    note = f"; leave_out.csv leaves out {left_out}" if left_out else ""
    return f"{pairs.describe()}; {describe_gallery(evaluation)}{note}"


def describe_gallery(pairs):
    return (f"{len(pairs.sar)} queries, {len(pairs)} places in the gallery, "
            f"{pairs.distractors} of them distractors")


def steps_per_epoch(pairs, batch_size):
    """Whole batches only: a batch-hard loss on a small rest is another loss."""
    if batch_size < 2 or batch_size > len(pairs):
        raise InputError(f"--batch_size {batch_size}: choose 2 to {len(pairs)}, the number of training places")
    if batch_size % distributed.world_size():
        raise InputError(f"--batch_size {batch_size}: choose a multiple of {distributed.world_size()}, "
                         "the number of processes that share it")
    return len(pairs) // batch_size


def draw_batches(pairs, batch_size, seed, epoch, first_step, device, generator, order=None):
    """Yield an epoch's batches (opt, sar, places) on the device.

    opt, sar: (B, 3, S, S) float32 in [0, 1]. places: (B) int64, the number of each place: its row in Pairs; of Windows,
    whose places come only once, its number in the epoch. No place comes twice in an epoch.
    Everything drawn depends on (seed, epoch, step) alone: `generator` (a CPU torch.Generator) is seeded with them
    before each step, and later draws of the step, such as the channel exchange's, continue it. Of several processes
    each gets its share of the same batch, and its own later draws.
    order: what puts the places in order, a function of the generator (default: pairs.order).
    """
    generator.manual_seed(_seed(seed, epoch))
    in_order = (order or pairs.order)(generator)
    mine = distributed.share(batch_size)
    for step in range(first_step, steps_per_epoch(pairs, batch_size)):
        generator.manual_seed(_seed(seed, epoch, step))
        places = in_order[step * batch_size:(step + 1) * batch_size]
        opt, sar = pairs.draw(places, generator)
        if distributed.rank() > 0:
            generator.manual_seed(_seed(seed, epoch, step, distributed.rank()))
        yield to_float(opt[mine], device), to_float(sar[mine], device), places[mine].to(device)


def to_float(images, device):
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 in [0, 1] on the device, in channels_last memory."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255


def to_bytes(images):
    """The way back, rounded: (B, 3, S, S) float in [0, 1] -> (B, S, S, 3) uint8 on the CPU."""
    rounded = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous().cpu()


def map_images(function, images):
    """Apply a function of (B, 3, S, S) floats in [0, 1] to (N, S, S, 3) uint8 images, a portion at a time."""
    cpu = torch.device("cpu")
    return torch.cat([to_bytes(function(to_float(portion, cpu))) for portion in images.split(64)])


def _seed(*numbers):
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _read_split(root, split, img_size, workers, store, readers, problems):
    """Decode one split; what is wrong with it is appended to `problems`, and then None is returned."""
    before = len(problems)
    left_out = read_leave_out(root, split)
    listing = list_split(root, split, problems)
    notes = check_ids(root, split, listing, problems)
    if notes and distributed.rank() == 0:
        print("\n".join(notes))
    listing = listing.without(left_out)
    rows = {name: {"x_m": x, "y_m": y} for name, (x, y) in listing.positions.items()}
    rows.update(read_pairs_csv(root, split))
    opt, sar = _with_partners(listing, split, problems)
    if left_out and not sar:
        problems.append(f"{root / split}: no pair is left of what leave_out.csv leaves out")
    names, sar_names = sorted(opt), sorted(sar)

    def decode(modality, images):
        file = root / ".decoded" / f"{split}_{modality}_{img_size}.uint8"
        sizes = [None] * len(images)                                  # stay None where a memory map is there already
        reader = readers[modality]
        fill = partial(_decode, images, sizes=sizes, workers=workers, problems=problems, reader=reader)
        return torch.from_numpy(keep_images(images, img_size, store, file, fill, repr(reader))), sizes

    opt_files, sar_files = [opt[name] for name in names], [sar[name][1] for name in sar_names]
    readers = {"opt": readers["opt"].measured_on(opt_files), "sar": readers["sar"].measured_on(sar_files)}
    opt_images, opt_sizes = decode("opt", opt_files)
    sar_images, sar_sizes = decode("sar", sar_files)
    size_of_place = dict(zip(names, opt_sizes))
    for name, size in zip(sar_names, sar_sizes):
        place, image = sar[name]
        wanted = size_of_place[place]
        if size and wanted and size != wanted:
            problems.append(f"{image}: {size} x {size} px, but its optical image has {wanted} x {wanted}")
    if len(problems) > before:
        return None

    index = {name: i for i, name in enumerate(names)}
    sar_place = torch.tensor([index[sar[name][0]] for name in sar_names])
    tiles = [rows.get(name, {}).get("tile") or name for name in names]
    regions = [rows.get(name, {}).get("region") or "" for name in names]
    return Pairs(names, opt_images, sar_names, sar_images, sar_place, tiles, _positions(names, rows),
                 left_out=len(left_out), crop=opt_sizes[0] or len(read_image(opt_files[0])), regions=regions,
                 readers=readers)


def _with_partners(listing, split, problems):
    """(opt, sar) of a Listing, as there; SAR images without a place, and training places without a SAR image, are
    problems."""
    opt, sar = listing.opt, listing.sar
    if opt:
        orphans = [image for place, image in sar.values() if place not in opt]
        problems.extend(f"{image}: there is no optical image of this place" for image in orphans)
    sar = {name: (place, image) for name, (place, image) in sar.items() if place in opt}
    if split == "train" and sar:
        seen = {place for place, _ in sar.values()}
        unseen = [image for place, image in opt.items() if place not in seen]
        problems.extend(f"{image}: there is no SAR image of this place" for image in unseen)
    return opt, sar


def _positions(names, rows):
    """(P, 2) float64 in metres, NaN where a place has none; None where no place has one."""
    positions = torch.full((len(names), 2), math.nan, dtype=torch.float64)
    for i, name in enumerate(names):
        row = rows.get(name, {})
        if "x_m" in row and "y_m" in row:
            positions[i] = torch.tensor([row["x_m"], row["y_m"]], dtype=torch.float64)
    return None if positions.isnan().all() else positions


def _decode(files, images, sizes, workers, problems, reader):
    """Decode files in threads (the decoders release Python's lock) into images (N, S, S, 3), and note their sizes.

    Returns whether all went well; what did not is appended to `problems`.
    """
    before, img_size = len(problems), images.shape[1]

    def decode(portion):
        bad = []
        for i in portion:
            try:
                image = read_image(files[i], reader)
            except InputError as error:
                bad.append(str(error))
                continue
            sizes[i] = len(image)
            images[i] = resize(image, img_size)
        return bad

    # A job for each image would cost as much as its decoding.
    portions = [range(i, min(i + 32, len(files))) for i in range(0, len(files), 32)]
    with ThreadPoolExecutor(workers) as pool:
        for bad in pool.map(decode, portions):
            problems.extend(bad)
    return len(problems) == before


def decode_images(files, img_size, workers, reader=READERS["opt"]):
    """Decode any images of one modality to (N, S, S, 3) uint8. InputError that names every bad one."""
    problems, images = [], np.empty((len(files), img_size, img_size, 3), np.uint8)
    if not _decode(files, images, [None] * len(files), workers, problems, reader):
        raise several(f"{len(problems)} image(s) cannot be used:", problems)
    return torch.from_numpy(images)


def showing_nothing(images):
    """The rows of (N, S, S, 3) uint8 whose pixels are all alike: nodata all over, or a constant. A list of numbers."""
    flat = images.flatten(1, 2)
    return (flat == flat[:, :1]).all(2).all(1).nonzero()[:, 0].tolist()


def resize(image, size):
    """(H, H, 3) uint8 -> (size, size, 3): by area when it shrinks, so that nothing aliases."""
    if image.shape[0] == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if size < image.shape[0] else cv2.INTER_LINEAR)
