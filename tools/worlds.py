"""A network where it was not trained: other places, sensors and renderings, and windows that lie anywhere in an image.

    python tools/worlds.py --run results/NAME --result_path results/worlds/NAME/seed0
    python tools/worlds.py --data_path data/S1S2align200 --result_path results/worlds/structure/seed0

The second has no run: oriented gradients, nothing learned. Asked on the test split that a network was to learn for, and
on that of every data set in --worlds. aligned: whole SAR images, each of which queries all optical ones. upright,
turned, turned and scaled: windows of 150 of 256 px cut anywhere from the SAR images, sought at every position of all
optical images by the cosine of their cells; right where the image is, and the place within 8 px and half a cell. Needs
--pooling cells; without, aligned is all.
"""
import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
from tqdm import tqdm

from shared import options
from shared.dataset import load_splits, resize
from shared.evaluate import embed, search
from shared.finished_run import asked_of, is_tested, require_row_of
from shared.mapping.cells import ROTATIONS, ZOOMS, CellMaps, StructureCells, cell_side, embed_cells, find_window
from shared.mapping.turned import cut_turned
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_text
from shared.plumbing.lines import Lines
from shared.plumbing.run_files import read_settings, seconds_of
from shared.reading.fingerprint import fingerprint
from shared.reading.layouts import crop_of, find_data, layout_of
from shared.reading.readers import readers_of, readers_of_run
from tools.intervals import bootstrap_intervals

WINDOW = 150 / 256                                      # side of a window, in sides of an image
TURNED, SCALED = 10.0, 0.1                              # degrees and share, at most
KINDS = {"upright": (0.0, 0.0), "turned": (TURNED, 0.0), "turned and scaled": (TURNED, SCALED)}
NEAR_PX = 8.0                                           # and half a cell


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", type=Path, help="a run (default: the descriptor, nothing learned)")
    parser.add_argument("--data_path", help="what the run learned from, where that has moved; needed without --run")
    parser.add_argument("--worlds", type=Path, metavar="FOLDER",
                        help="a folder of data sets (default: the folder worlds beside --data_path, if there is one)")
    parser.add_argument("--turn_and_scale", action="store_true",
                        help=f"try windows at {len(ROTATIONS)} rotations and {len(ZOOMS)} scales, too: "
                             f"{len(ROTATIONS) * len(ZOOMS)} times the time")
    parser.add_argument("--queries", type=options.positive, default=200, metavar="N",
                        help="windows of a data set, spread evenly over its images")
    parser.add_argument("--result_path", required=True, type=Path,
                        help="write the figures there, as a row of the table; the same command goes on where it "
                             "stopped")
    options.add_reading(parser)
    options.add_device(parser)
    args = parser.parse_args()
    if not args.run and not args.data_path:
        raise InputError("give --run RUN, or --data_path DATA for the descriptor, which has none")
    return args


def main(args):
    file = args.result_path / "metrics.json"
    settings = read_settings(args.run) if args.run else {"tta": "none"}
    home = args.data_path or settings["data_path"]
    data_sets = [home, *worlds_beside(home, args.worlds)]
    asked = {**asked_of(args), "in_worlds": {path.name: fingerprint(path, "test") for path in data_sets[1:]}}
    if is_tested(args.result_path):
        require_row_of(args.result_path, args.run, home, asked)
        print(f"{args.result_path} is finished")
        return
    device = choose_device(args.device)
    mixed = autocast(device, args.amp)
    side = crop_of(home, "test")
    model, img_size = load_model(args.run, device) if args.run else (StructureCells(), side)
    scale = img_size / side                             # of every image, as the network has learned
    has_cells = not args.run or model.settings["pooling"] == "cells"
    worlds = []                                         # all of them are read before the first is asked
    for data_path in data_sets:
        is_home = data_path is home
        readers = readers_of_run(args.run, args, is_home) if args.run else readers_of(args)
        worlds.append(World(data_path, settings.get("target_region") if is_home else None, args.workers, readers))
    lines = Lines(args.result_path / "lines.json", args, **asked)
    for world in worlds:
        if not lines.has(world=world.name, windows="aligned"):
            lines.add({"world": world.name, "windows": "aligned", **aligned(world, model, img_size, device, mixed)})
        left = [kind for kind in KINDS if has_cells and not lines.has(world=world.name, windows=kind)]
        if not left:
            continue
        anywhere = Anywhere(world, model, scale, device, mixed, args.turn_and_scale)
        for kind in left:
            lines.add({"world": world.name, "windows": kind, **anywhere.figures(*KINDS[kind], args.queries)})
    seconds = seconds_of(args.run) if args.run else 0.0
    row = {**settings, "data_path": str(home), "run": str(args.run), "asked": asked,
           "tested_data": fingerprint(find_data(home), "test")}
    write_text(args.result_path / "args.json", json.dumps(row))
    write_text(file, json.dumps({"lines": lines.lines, "seconds": seconds, "evaluated_on": "test"}, indent=1))
    lines.file.unlink(missing_ok=True)


def worlds_beside(home, folder):
    """The data sets with a test split in a folder, or in `worlds` beside the data set home. InputError where the folder
    that was asked for holds none."""
    beside = folder or find_data(home).resolve().parent / "worlds"
    worlds = [path for path in sorted(beside.glob("*")) if path.is_dir() and layout_of(path)]
    if folder and not worlds:
        raise InputError(f"--worlds {folder}: no data set is in it; give a folder that holds NAME/test/opt and so on")
    return worlds


class World:
    """The test split of a data set, at its images' own size. regions: its places there alone, or None."""

    def __init__(self, data_path, regions, workers, readers):
        self.name = find_data(data_path).resolve().name
        self.side = crop_of(data_path, "test")
        pairs, = load_splits(data_path, ("test",), self.side, workers, readers=readers)
        self.pairs = pairs.of_regions(regions, "--target_region")

    def images(self, modality, size):
        """All optical or all SAR images, (N, size, size, 3) uint8."""
        return torch.from_numpy(np.stack([resize(image, size) for image in getattr(self.pairs, modality).numpy()]))

    def figures(self, hits, right, places):
        """A line's figures: shares of queries in percent, with the 95% interval of `right`, by tile where tiles are
        known. hits, right: (N), the image found first, and the place in it, too. places: (N), of the queries."""
        low, high = bootstrap_intervals(np.array(right, float)[:, None], [self.pairs.tiles[i] for i in places])[:, 0]
        shares = {"image": np.mean(hits), "right": np.mean(right), "low": low, "high": high}
        return {"queries": len(right), "images": len(self.pairs),
                **{name: round(100 * float(value), 1) for name, value in shares.items()}}


def aligned(world, model, img_size, device, mixed):
    """The figures of whole images that query whole images, each at img_size."""
    start = time.perf_counter()
    query, gallery = ({"FC": embed(model, world.images(modality, img_size), modality, device, mixed)["FC"]}
                      for modality in ("sar", "opt"))
    hits = search(query, gallery, world.pairs, device)["FC"].ranks.hits(1).tolist()
    seconds = (time.perf_counter() - start) / len(hits)
    return {**world.figures(hits, hits, world.pairs.sar_place.tolist()), "seconds": round(seconds, 3)}


# Windows anywhere ----------------------------------------------------------------------------------------------------

@dataclass
class Window:
    """image: (S, S, 3) uint8. place: the row of its image. x, y: its middle, in px of that. rotation: degrees
    clockwise. zoom: px of the image to a px of it."""
    image: np.ndarray
    place: int
    x: float
    y: float
    rotation: float
    zoom: float


def draw_windows(images, turned, scaled, count, seed=0):
    """`count` Windows anywhere in SAR images (N, S, S, 3) uint8, turned by up to `turned` degrees and scaled by up to
    the share `scaled`, spread evenly over the images; each shows its image's ground alone."""
    random = np.random.default_rng(seed)
    size, windows = images.shape[1], []
    side = round(WINDOW * size)
    for number in range(count):
        place = number * len(images) // count
        turn, stretch, down, across = random.uniform(size=4)
        rotation, zoom = turned * (2 * turn - 1), 1 + scaled * (2 * stretch - 1)
        angle = np.deg2rad(rotation)
        half = zoom * side / 2 * (abs(np.cos(angle)) + abs(np.sin(angle)))
        # Upright windows begin at a pixel, so that nothing is interpolated.
        x, y = (half + int(part * (size - 2 * half + 1)) for part in (across, down))
        image = cut_turned(images[place].numpy(), x, y, side, rotation, zoom)
        windows.append(Window(image, place, x, y, rotation, zoom))
    return windows


class Anywhere:
    """The search for windows of a world in all of its optical images, at `scale` px of the network's to a px."""

    def __init__(self, world, model, scale, device, mixed, turn_and_scale):
        self.world, self.model, self.device, self.mixed = world, model, device, mixed
        self.tried = (ROTATIONS, ZOOMS) if turn_and_scale else ((0.0,), (1.0,))
        size = round(scale * world.side)
        self.scale, self.cell = size / world.side, cell_side(model)
        self.maps = CellMaps(embed_cells(model, world.images("opt", size), "opt", device, mixed))
        self.near = NEAR_PX + self.cell / self.scale / 2

    def figures(self, turned, scaled, count):
        """A line's figures for `count` windows turned and scaled by so much."""
        windows = draw_windows(self.world.pairs.images["sar"], turned, scaled, count)
        hits, right, start = [], [], time.perf_counter()
        for window in tqdm(windows, desc=self.world.name, leave=False, disable=None):
            image, x, y = self.find(window.image)
            hits.append(image == window.place)
            right.append(hits[-1] and np.hypot(x - window.x, y - window.y) <= self.near)
        seconds = (time.perf_counter() - start) / len(windows)
        places = [window.place for window in windows]
        return {**self.world.figures(hits, right, places), "seconds": round(seconds, 3)}

    def find(self, window):
        """(image, x, y): the number of the image that a window (S, S, 3) lies in, and its middle there, in px."""
        seen = resize(window, round(self.scale * len(window)))
        found = find_window(self.model, seen, self.maps, self.cell, self.device, self.mixed, *self.tried)
        best = int(found.scores.argmax())
        return best, found.x[best] / self.scale, found.y[best] / self.scale


if __name__ == "__main__":
    run_script(main, arguments)
