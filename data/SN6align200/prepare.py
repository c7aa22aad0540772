"""Cut the published SpaceNet 6 archive into aligned pairs on the grid of the coordinates.

    python data/SN6align200/prepare.py SOURCE OUT

SOURCE holds PS-RGB/, SAR-Intensity/ and SummaryData/SAR_orientations.txt (or is a folder above them). A crop is a cell
of one grid over the whole area, so that the same place in two strips has the same name. SAR becomes HH, VV, VH as R, G,
B, each scaled from its 1st to its 99th percentile over the whole set. Two passes: a survey of every tile (kept in
OUT/survey.json), then the crops; images that are there are not made again, so that an interrupted run goes on.
"""
import argparse
import json
import math
import re
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository's root, where shared/ is

from shared.plumbing.errors import InputError, run_script, several
from shared.plumbing.files import write_text
from data.output import open_output, write_pairs_csv, write_png
from data.split import split_by_blocks

NAME = re.compile(r"_PS-RGB_(?P<strip>\d{14}_\d{14})_tile_(?P<tile>\d+)\.tif$")
BANDS = {"HH": 1, "VV": 4, "VH": 3}                     # the archive's order is HH, HV, VH, VV
LOW_DB, HIGH_DB, BINS = -100.0, 100.0, 20000            # the histogram from which the percentiles come, 0.01 dB a bin
AUTHORS_TEST_PLACES = 2250
SMALL_SHARE = 0.3                                       # tested on, of an archive too small for the author's gallery


def find_tiles(source):
    """[(strip, RGB file, SAR file)] and strip -> orientation. InputError names all that is missing."""
    candidates = source, *sorted(source.glob("*")), *sorted(source.glob("*/*"))
    folders = [folder for folder in candidates if (folder / "PS-RGB").is_dir()]
    if not folders:
        raise InputError(f"{source} holds no folder PS-RGB: give the folder that the archive unpacks to")
    root, problems, tiles = folders[0], [], []
    orientations = {}
    file = root / "SummaryData/SAR_orientations.txt"
    if file.is_file():
        orientations = {line.split()[0]: int(line.split()[1]) for line in file.read_text().splitlines() if line.strip()}
    else:
        problems.append(f"{file}: there is no such file")
    for rgb in sorted((root / "PS-RGB").glob("*.tif")):
        match = NAME.search(rgb.name)
        sar = root / "SAR-Intensity" / rgb.name.replace("_PS-RGB_", "_SAR-Intensity_")
        if not match:
            problems.append(f"{rgb}: the name does not end in _PS-RGB_START_END_tile_N.tif")
        elif not sar.is_file():
            problems.append(f"{rgb}: there is no {sar}")
        elif orientations and match["strip"] not in orientations:
            problems.append(f"{rgb}: {file} does not name its strip {match['strip']}")
        else:
            tiles.append((match["strip"], rgb, sar))
    if not tiles and not problems:
        problems.append(f"{root / 'PS-RGB'}: there is no tile (*.tif) in it")
    if problems:
        raise several(f"{source} has {len(problems)} problem(s); unpack these again:", problems)
    return tiles, orientations


def survey_tile(tile, crop):
    """Read one tile: its cells with the share of missing pixels, its SAR histograms, its resolution.

    Or {"problem": what is wrong with it}.
    """
    strip, rgb_file, sar_file = tile
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(rgb_file) as rgb, rasterio.open(sar_file) as sar:
                if rgb.count != 3 or rgb.dtypes[0] != "uint8" or sar.count != 4:
                    return {"problem": f"{rgb_file}: {rgb.count} bands of {rgb.dtypes[0]}, SAR {sar.count} bands; "
                                       "expected 3 of uint8, and 4"}
                shift_x, shift_y = abs(rgb.transform.c - sar.transform.c), abs(rgb.transform.f - sar.transform.f)
                if rgb.shape != sar.shape or shift_x > rgb.res[0] / 2 or shift_y > rgb.res[1] / 2:
                    return {"problem": f"{sar_file}: another size or place than {rgb_file.name}"}
                bands = sar.read(list(BANDS.values()))
                black = (rgb.read() == 0).all(0)
                transform, resolution = rgb.transform, round(rgb.res[0], 2)
    except (rasterio.errors.RasterioError, rasterio.errors.NotGeoreferencedWarning) as error:
        return {"problem": f"{rgb_file} or its SAR: cannot be read ({str(error).splitlines()[0]})"}
    missing = ~np.isfinite(bands).all(0) | (bands == 0).any(0)
    valid = bands[:, ~missing]
    histograms = [np.histogram(band.clip(LOW_DB, HIGH_DB), BINS, (LOW_DB, HIGH_DB))[0] for band in valid]
    missing |= black
    return {"file": rgb_file.name, "strip": strip, "resolution": resolution, "histograms": np.stack(histograms),
            "cells": [[*cell, row, column, float(missing[row:row + crop, column:column + crop].mean())]
                      for *cell, row, column in cells_within(transform, missing.shape, resolution, crop)]}


def cells_within(transform, shape, resolution, crop):
    """(x, y, row, column) of the cells of the grid that lie wholly in a tile, to the nearest pixel.

    x, y: the cell's number, west to east and south to north, in units of crop x resolution metres from the origin of
    the coordinates. row, column: its upper left pixel in the tile.
    """
    side = crop * resolution
    left, top = transform.c, transform.f
    right, bottom = left + shape[1] * transform.a, top + shape[0] * transform.e
    for x in range(math.floor(left / side), math.ceil(right / side)):
        for y in range(math.floor(bottom / side), math.ceil(top / side)):
            column, row = round((x * side - left) / transform.a), round(((y + 1) * side - top) / transform.e)
            if column >= 0 and row >= 0 and column + crop <= shape[1] and row + crop <= shape[0]:
                yield x, y, row, column


def survey(tiles, out, crop, workers):
    """Survey every tile, going on from OUT/survey.json.

    Returns what survey_tile says of each, and the histograms (3, BINS) over all.
    Raises InputError that names every tile that cannot be used.
    """
    file = out / "survey.json"
    state = json.loads(file.read_text()) if file.is_file() else {"tiles": {}, "histograms": [[0] * BINS] * 3}
    surveyed, histograms = state["tiles"], np.array(state["histograms"])
    left = [tile for tile in tiles if tile[1].name not in surveyed]
    problems = []

    def keep():
        write_text(file, json.dumps({"tiles": surveyed, "histograms": histograms.tolist()}))

    with ProcessPoolExecutor(workers) as pool:
        surveys = pool.map(partial(survey_tile, crop=crop), left)
        for i, tile_survey in enumerate(tqdm(surveys, total=len(left), desc="survey", disable=None)):
            if "problem" in tile_survey:
                problems.append(tile_survey["problem"])
            else:
                histograms += tile_survey.pop("histograms")
                surveyed[tile_survey["file"]] = tile_survey
            if i % 100 == 99:
                keep()
    keep()
    if problems:
        raise several(f"{len(problems)} tile(s) cannot be used; fetch them again, or remove both files of each:",
                      problems)
    resolutions = {tile_survey["resolution"] for tile_survey in surveyed.values()}
    if len(resolutions) > 1:
        raise InputError(f"the tiles have different resolutions ({sorted(resolutions)} m): prepare them apart")
    return [surveyed[rgb.name] for _, rgb, _ in tiles], histograms


def percentiles(histograms):
    """(3, 2): the 1st and 99th percentile of HH, VV and VH in dB. histograms: (3, BINS)."""
    if (histograms.sum(1) == 0).any():
        raise InputError("no tile holds a valid SAR pixel")
    share = histograms.cumsum(1) / histograms.sum(1, keepdims=True)
    width = (HIGH_DB - LOW_DB) / BINS
    bins = [[np.searchsorted(band, level) for level in (0.01, 0.99)] for band in share]
    return LOW_DB + width * (np.array(bins) + 0.5)


def rectangles(cells):
    """Cover grid cells with rectangles of them, the largest first, each cell once: a list of (x, y, width, height)."""
    left, cover = set(cells), []
    while left:
        best = (0, 0, 0, 0)
        for x, y in sorted(left):
            width, height = len(left), 1
            while (x, y + height - 1) in left:                        # one row more, as wide as all the rows so far
                width = next(i for i in range(width + 1) if i == width or (x + i, y + height - 1) not in left)
                best = max(best, (x, y, width, height), key=area)
                height += 1
        cover.append(best)
        left -= {(best[0] + i, best[1] + j) for i in range(best[2]) for j in range(best[3])}
    return cover


def area(rectangle):
    _, _, width, height = rectangle
    return width * height


def cut_tile(job, out, limits):
    """Write the crops of one tile.

    job: (RGB file, SAR file, [(folder, modality, name, row, column, height, width)]).
    """
    rgb_file, sar_file, crops = job
    with rasterio.open(rgb_file) as rgb, rasterio.open(sar_file) as sar:
        for folder, modality, name, row, column, height, width in crops:
            window = ((row, row + height), (column, column + width))
            if modality == "opt":
                image = rgb.read(window=window).transpose(1, 2, 0)
            else:
                bands = sar.read(list(BANDS.values()), window=window)
                low, high = limits[:, 0, None, None], limits[:, 1, None, None]
                # A missing pixel is black in all three.
                bands = np.where(np.isfinite(bands).all(0) & (bands != 0).all(0), (bands - low) / (high - low) * 255, 0)
                image = bands.clip(0, 255).round().astype(np.uint8).transpose(1, 2, 0)
            write_png(out / folder / modality / f"{name}.png", np.ascontiguousarray(image))


def views_of_cells(surveys, max_missing, strips):
    """Which tiles show each cell of the grid, the one with most valid pixels first.

    Returns {(x, y): [(missing, strip, tile's index, row, column)]}, one view of a strip, since its tiles may overlap;
    of one strip alone where strips is `one`.
    """
    views = defaultdict(list)
    for index, tile_survey in enumerate(surveys):
        for x, y, row, column, missing in tile_survey["cells"]:
            if missing <= max_missing:
                views[x, y].append((missing, tile_survey["strip"], index, row, column))
    for cell, cell_views in views.items():
        best_of_strip = {view[1]: view for view in sorted(cell_views, reverse=True)}
        ordered = sorted(best_of_strip.values())
        views[cell] = ordered if strips == "all" else ordered[:1]
    return views


def split_cells(cells, test_places, block, seed):
    """({"train": cells, "test": cells}, side of a block), by blocks; what is None is chosen here.

    Raises InputError where the cells cannot be split so.
    """
    if test_places is None:
        is_large = len(cells) >= 2 * AUTHORS_TEST_PLACES
        test_places = AUTHORS_TEST_PLACES if is_large else max(1, round(SMALL_SHARE * len(cells)))
    block = block or min(10, math.ceil(math.sqrt(test_places)))
    train, test = split_by_blocks(list(cells), test_places, block, seed)
    if min(len(train), len(test)) < 2 or len(test) < test_places:
        raise InputError(f"{len(cells)} usable places cannot be split into {test_places} for testing and some for "
                         "training with a gap between: give a smaller --crop, --test_places or --block, or a larger "
                         "--max_missing")
    return {"train": train, "test": test}, block


def join_cells(cells, views, block_of):
    """Training cells that one tile shows and that lie in one block, joined: pieces as large as these allow.

    No piece reaches into the gap or into another block. Yields (name, tile's index, row, column, height, width), in
    cells but for row and column, which are pixels.
    """
    joined = defaultdict(dict)
    for x, y in cells:
        _, _, index, row, column = views[x, y][0]
        joined[block_of(x, y), index][x, y] = row, column
    pieces = defaultdict(int)
    for (name, index), corners in sorted(joined.items()):
        for x, y, width, height in rectangles(corners):
            row, column = corners[x, y + height - 1]                  # rows count from the north, y from the south
            yield f"{name}__{pieces[name]}", index, row, column, height, width
            pieces[name] += 1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--crop", type=int, default=200, help="pixels")
    parser.add_argument("--max_missing", type=float, default=0.05,
                        help="share of a crop's pixels that may have no SAR or optical value")
    parser.add_argument("--strips", choices=("one", "all"), default="one",
                        help="of a place: the one with most valid pixels, or all as NAME__STRIP")
    parser.add_argument("--orientation", choices=("north", "south", "both"), default="both",
                        help="keep strips imaged from there only")
    parser.add_argument("--test_places", type=int,
                        help=f"default: {AUTHORS_TEST_PLACES}, the author's gallery; "
                             f"{100 * SMALL_SHARE:.0f}%% of a small archive")
    parser.add_argument("--block", type=int,
                        help="cells along a side of the blocks that are split (default: 10, in a small archive as many "
                             "as one block for testing needs)")
    parser.add_argument("--keep_tiles", action="store_true",
                        help="also write the training ground in pieces as large as tiles and blocks allow, to "
                             "train_tiles/")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main(args):
    tiles, orientations = find_tiles(args.source)
    if args.orientation != "both":
        tiles = [tile for tile in tiles if orientations[tile[0]] == ("north", "south").index(args.orientation)]
    settings = {name: value for name, value in vars(args).items() if name not in ("source", "out", "workers")}
    folders = ("train", "test", "train_tiles") if args.keep_tiles else ("train", "test")
    open_output(args.out, {**settings, "tiles": [rgb.name for _, rgb, _ in tiles]},
                [f"{folder}/{modality}" for folder in folders for modality in ("opt", "sar")])
    surveys, histograms = survey(tiles, args.out, args.crop, args.workers)
    views = views_of_cells(surveys, args.max_missing, args.strips)
    splits, block = split_cells(views, args.test_places, args.block, args.seed)
    limits = percentiles(histograms)
    bands = [f"{band} {low:.2f} to {high:.2f} dB" for band, (low, high) in zip(BANDS, limits)]
    print(f"scaled from the 1st to the 99th percentile: {', '.join(bands)}")

    def block_of(x, y):
        return f"x{x // block}_y{y // block}"

    jobs, rows, side = defaultdict(list), [], args.crop * surveys[0]["resolution"]
    for split, cells in splits.items():
        for x, y in cells:
            name = f"x{x}_y{y}"
            for rank, (_, strip, index, row, column) in enumerate(views[x, y]):
                if rank == 0:
                    jobs[index].append((split, "opt", name, row, column, args.crop, args.crop))
                sar_name = f"{name}__{strip}" if args.strips == "all" else name
                jobs[index].append((split, "sar", sar_name, row, column, args.crop, args.crop))
            seen_from = " ".join(("north", "south")[orientations[view[1]]] for view in views[x, y])
            rows.append({"split": split, "id": name, "region": "Rotterdam", "tile": block_of(x, y),
                         "x_m": (x + 0.5) * side, "y_m": (y + 0.5) * side, "size_m": side, "from": seen_from})
    if args.keep_tiles:
        for name, index, row, column, height, width in join_cells(splits["train"], views, block_of):
            for modality in ("opt", "sar"):
                size = height * args.crop, width * args.crop
                jobs[index].append(("train_tiles", modality, name, row, column, *size))
    with ProcessPoolExecutor(args.workers) as pool:
        work = [(tiles[index][1], tiles[index][2], crops) for index, crops in sorted(jobs.items())]
        done = pool.map(partial(cut_tile, out=args.out, limits=limits), work)
        list(tqdm(done, total=len(work), desc="crops", disable=None))
    write_pairs_csv(args.out, ("split", "id", "region", "tile", "x_m", "y_m", "size_m", "from"), rows)


if __name__ == "__main__":
    run_script(main, arguments)
