"""Whole aligned tiles of a split: the maps that a query is looked for on, and the ground that queries are cut from.

DATA/{train,test}_tiles/{opt,sar}/TILE.png|jpg|tif are the tiles that the crops of the split were cut from. Where a data
set has none, its crops are taken for tiles: enough to try everything, and no more.
"""
import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform

from shared.dataset import held_out_tiles
from shared.plumbing.errors import InputError, several
from shared.reading.layouts import (check_ids, compare_ids, find_data, list_images, list_split, read_any_image,
                                    read_leave_out, read_pairs_csv, read_tiles_csv)
from shared.reading.readers import READERS

GEOCENTRIC = "EPSG:4978"
LEAST_SCALE = 0.1                                       # a Mercator map at 84 degrees
DEFAULT_METRES = 10.0                                   # of a pixel, where the data set does not tell: Sentinel's


@dataclass
class Tiles:
    """T tiles in memory. names: of each. opt, sar: T images each, (H, W, 3) uint8, RGB.

    hidden: for each, the rectangles (top, left, bottom, right) in px that leave_out.csv leaves out, and of test tiles
    those that a training tile shows, too, as far as positions are known. metres: side of a pixel on the ground.
    readers: {"opt", "sar"}, by which they were read.
    """
    names: list
    opt: list
    sar: list
    hidden: list
    metres: float
    readers: dict = field(default_factory=lambda: dict(READERS))

    def __len__(self):
        return len(self.names)

    def subset(self, rows):
        return replace(self, **{name: [getattr(self, name)[i] for i in rows] for name in
                                ("names", "opt", "sar", "hidden")})

    def hold_out(self, share, other_half=False):
        """(kept, held out): the very tiles that shared.dataset.hold_out holds out of the same data set."""
        held = held_out_tiles(self.names, share, other_half)
        kept = self.subset([i for i, name in enumerate(self.names) if name not in held])
        return kept, self.subset([i for i, name in enumerate(self.names) if name in held])


def load_tiles(data_path, split, workers, readers=READERS, crs=None):
    """The tiles of a split, `train` or `test`, those of which leave_out.csv leaves nothing left out.

    readers: {"opt", "sar"}. crs: in which tiles.csv and pairs.csv count metres; without one these are the ground's.
    Raises InputError that names every bad file.
    """
    root, problems = find_data(data_path), []
    left_out = read_leave_out(root, split)
    folder = root / f"{split}_tiles"
    if folder.is_dir():
        files = {modality: list_images(folder / modality, problems) for modality in ("opt", "sar")}
        for name in sorted(files["opt"].keys() ^ files["sar"].keys()):
            problems.append(f"{folder}: tile {name} is not there in both modalities")
        zeros, _ = compare_ids(root / "tiles.csv", split, read_tiles_csv(root, split).keys(), files["opt"].keys())
        problems += zeros
    else:
        listing = list_split(root, split, problems)
        check_ids(root, split, listing, problems)
        listing = listing.without(left_out)
        files = {"opt": listing.opt, "sar": {}}
        for place, image in listing.sar.values():
            files["sar"].setdefault(place, image)
    names = sorted(files["opt"].keys() & files["sar"].keys())
    places = read_pairs_csv(root, split)
    of_tile = {}
    for place, row in places.items():
        of_tile.setdefault(row.get("tile"), []).append(place)
    names = [name for name in names if not (name in of_tile and left_out.issuperset(of_tile[name]))]

    def read(file, reader):
        try:
            return read_any_image(file, reader)
        except InputError as error:
            problems.append(str(error))

    readers = {modality: readers[modality].measured_on([files[modality][name] for name in names]) for modality in files}
    with ThreadPoolExecutor(workers) as pool:
        opt, sar = ([*pool.map(partial(read, reader=readers[modality]), [files[modality][name] for name in names])]
                    for modality in ("opt", "sar"))
    for name, opt_tile, sar_tile in zip(names, opt, sar):
        if opt_tile is not None and sar_tile is not None and opt_tile.shape != sar_tile.shape:
            problems.append(f"{files['sar'][name]}: not the size of {files['opt'][name]}")
    if not names and not problems:
        problems.append(f"{folder}: there is no tile")
    if problems:
        raise several(f"the tiles of {root} have {len(problems)} problem(s); mend or remove these files:", problems)
    corners = read_tiles_csv(root, split)
    others = list(read_tiles_csv(root, "train").values()) if split == "test" else []
    hidden = []
    for name, tile in zip(names, opt):
        away = left_out.intersection(of_tile.get(name, ()))
        squares = [square for square in (_square(places[place]) for place in sorted(away)) if square]
        hidden.append(_rectangles([*squares, *others], corners[name], tile) if name in corners else [])
    return Tiles(names, opt, sar, hidden, _metres(names, opt, corners, places, crs), readers)


def _square(row):
    """(left, top, right, bottom) in metres of a row of pairs.csv, None where it does not tell."""
    if not {"x_m", "y_m", "size_m"} <= row.keys():
        return None
    x, y, half = row["x_m"], row["y_m"], row["size_m"] / 2
    return x - half, y + half, x + half, y - half


def _rectangles(squares, corners, tile):
    """What a tile shows of squares in metres, as (top, left, bottom, right) in px; less than a pixel is nothing."""
    left, top, right, bottom = corners
    height, width = tile.shape[:2]
    across, down = width / (right - left), height / (top - bottom)
    rectangles = []
    for square_left, square_top, square_right, square_bottom in squares:
        rectangle = [(top - square_top) * down, (square_left - left) * across,
                     (top - square_bottom) * down, (square_right - left) * across]
        rectangle = [round(min(max(edge, 0), size)) for edge, size in zip(rectangle, (height, width) * 2)]
        if rectangle[2] - rectangle[0] > 1 and rectangle[3] - rectangle[1] > 1:
            rectangles.append(tuple(rectangle))
    return rectangles


def add_crs(parser):
    """The flag that says which metres a data set counts: load_tiles's crs."""
    parser.add_argument("--crs", type=projection, metavar="EPSG:CODE",
                        help="in which tiles.csv and pairs.csv count, as EPSG:3395, whose metres are not the ground's "
                             "(default: they are)")


def projection(text):
    """A projected CRS by its name, code or WKT."""
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise argparse.ArgumentTypeError(f"{text} is no CRS ({error})")
    if not crs.is_projected:
        raise argparse.ArgumentTypeError(f"{text} does not count in metres")
    return crs


def _metres(names, tiles, corners, places, crs):
    """Ground metres of a pixel: the median of those tiles that tell where they lie."""
    told = []
    for name, tile in zip(names, tiles):
        if name in corners:
            left, top, right, bottom = corners[name]
            told.append((right - left) / tile.shape[1] * ground_scale(crs, (left + right) / 2, (top + bottom) / 2))
        elif "size_m" in places.get(name, {}):
            row = places[name]
            told.append(row["size_m"] / tile.shape[1] * ground_scale(crs, row.get("x_m", 0.0), row.get("y_m", 0.0)))
    return float(np.median(told)) if told else DEFAULT_METRES


def ground_scale(crs, x, y):
    """Metres on the ground to one of a projection, at a place of it: 0.83 at 34 degrees of a Mercator map. 1 without a
    crs. InputError where the place is none of the CRS."""
    if crs is None:
        return 1.0
    # In geocentric metres there is no projection left.
    try:
        at, east, north = np.transpose(transform(crs, GEOCENTRIC, [x, x + 1, x], [y, y, y + 1], [0.0] * 3))
        scale = float((np.linalg.norm(east - at) * np.linalg.norm(north - at)) ** 0.5)
    except CPLE_BaseError:                              # beyond what the projection takes
        scale = 0.0
    if not LEAST_SCALE < scale < 1 / LEAST_SCALE:
        raise InputError(f"--crs {crs}: {x:.0f}, {y:.0f} of tiles.csv or pairs.csv is no place of it: give their "
                         "own")
    return scale
