"""Cut the public 100-tile Sentinel-1/2 set into aligned pairs.

    python data/S1S2align200/prepare.py SOURCE OUT

SOURCE holds dataset/opt/*.png, dataset/sar/*.png and dataset/metadata.json. OUT gets {train,test}/{opt,sar}/TILE_RC.png
(row R and column C of the tile), split by whole tile with the same share of each region, and pairs.csv with positions.
Images that are there are not made again, so that an interrupted run goes on.
"""
import argparse
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository's root, where shared/ is

from shared.plumbing.errors import InputError, run_script, several
from data.output import open_output, write_pairs_csv, write_png
from data.split import split_by_tiles


def read_tiles(source):
    """name -> (opt file, sar file, region, (left, top, metres for a pixel in x and y)).

    Raises InputError that names all that is wrong.
    """
    folder = source / "dataset" if (source / "dataset").is_dir() else source
    file = folder / "metadata.json"
    if not file.is_file():
        raise InputError(f"{source} holds no dataset/metadata.json: "
                         "give the folder that the published archive unpacks to")
    try:
        notes = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}): unpack the archive again")
    problems, tiles = [], {}
    for note in notes:
        opt, sar = folder / "opt" / note["fragment_filename"], folder / "sar" / note["fragment_filename"]
        sizes = set()
        for image in (opt, sar):
            try:
                with Image.open(image) as opened:
                    opened.load()
                    sizes.add(opened.size)
            except (OSError, SyntaxError) as error:
                problems.append(f"{image}: cannot be decoded ({error})")
        if len(sizes) > 1:
            problems.append(f"{opt} and {sar} differ in size: {sorted(sizes)}")
        region = re.search(r"_(T\d{2}[A-Z]{3})_", note["opt_tile_name"])
        if not region:
            problems.append(f"{file}: no UTM tile in opt_tile_name {note['opt_tile_name']}")
        if not problems:
            corners, (width, height) = np.array(note["corners_EPSG:3395"]), sizes.pop()
            left, bottom = corners.min(0)
            right, top = corners.max(0)
            tiles[opt.stem] = (opt, sar, region[1], (left, top, (right - left) / width, (top - bottom) / height))
    if problems:
        raise several(f"{source} has {len(problems)} problem(s); fetch these again:", problems)
    return tiles


def cut(tile, split, out, crop, keep_tiles):
    """Write a tile's crops, row by row from the upper left, and return their rows of pairs.csv."""
    name, (opt, sar, region, (left, top, metres_x, metres_y)) = tile
    images = {modality: np.array(Image.open(file)) for modality, file in (("opt", opt), ("sar", sar))}
    if images["sar"].ndim == 3 and (images["sar"] == images["sar"][..., :1]).all():
        images["sar"] = images["sar"][..., 0]                   # one channel, published three times
    if keep_tiles and split == "train":
        for modality, image in images.items():
            write_png(out / "train_tiles" / modality / f"{name}.png", image)
    height, width = images["opt"].shape[:2]
    down, across = height // crop, width // crop
    digits = len(str(max(down, across) - 1))
    rows = []
    for i in range(down):
        for j in range(across):
            crop_name = f"{name}_{i:0{digits}d}{j:0{digits}d}"
            for modality, image in images.items():
                part = image[i * crop:(i + 1) * crop, j * crop:(j + 1) * crop]
                write_png(out / split / modality / f"{crop_name}.png", part)
            x, y = left + (j + 0.5) * crop * metres_x, top - (i + 0.5) * crop * metres_y
            rows.append({"split": split, "id": crop_name, "region": region, "tile": name, "x_m": round(x, 2),
                         "y_m": round(y, 2), "size_m": round(crop * metres_x, 2)})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--crop", type=int, default=200, help="pixels of a crop; 200 gives 25 crops of a tile of 1024")
    parser.add_argument("--test_share", type=float, default=0.3, help="of the tiles of each region")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--keep_tiles", action="store_true",
                        help="also write the training tiles whole, to train_tiles/")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    tiles = read_tiles(args.source)
    if len(tiles) < 2:
        raise InputError(f"{args.source} holds {len(tiles)} tile(s): a split by tile needs two")
    test = split_by_tiles({name: region for name, (_, _, region, _) in tiles.items()}, args.test_share, args.seed)
    settings = {"crop": args.crop, "test_share": args.test_share, "seed": args.seed, "tiles": sorted(tiles)}
    splits = ("train", "test", "train_tiles") if args.keep_tiles else ("train", "test")
    open_output(args.out, settings, [f"{split}/{modality}" for split in splits for modality in ("opt", "sar")])

    def cut_tile(tile):
        return cut(tile, "test" if tile[0] in test else "train", args.out, args.crop, args.keep_tiles)

    with ThreadPoolExecutor(args.workers) as pool:
        done = pool.map(cut_tile, sorted(tiles.items()))
        rows = [row for part in tqdm(done, total=len(tiles), desc="tiles", disable=None) for row in part]
    write_pairs_csv(args.out, ("split", "id", "region", "tile", "x_m", "y_m", "size_m"), rows)


if __name__ == "__main__":
    run_script(main)
