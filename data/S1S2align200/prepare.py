"""Cut the public 100-tile Sentinel-1/2 set into aligned pairs.

    python data/S1S2align200/prepare.py --download OUT        fetches it first, some 290 MB, and keeps it in OUT/source
    python data/S1S2align200/prepare.py SOURCE OUT            from what was fetched by hand

SOURCE holds dataset/opt/*.png, dataset/sar/*.png and dataset/metadata.json. OUT gets {train,test}/{opt,sar}/TILE_RC.png
(row R and column C of the tile), split by whole tile with the same share of each region, and pairs.csv with positions.
Neighbouring tiles overlap where two Sentinel-2 tiles meet: a test crop that shows ground of a training tile is left
out, and so is a tile that is there twice. What is there is not made again, so that an interrupted run goes on.
"""
import argparse
import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository's root, where shared/ and data/ are

from data.download import download, unpack
from data.output import open_output, write_pairs_csv, write_png
from data.split import split_by_tiles
from shared.plumbing.errors import InputError, run_script, several
from shared.plumbing.files import write_rows

PUBLISHED = "https://github.com/VolkovVl/Optical-SAR-dataset/archive/34d7e20e68fe59363d383ae9a165bee63c5a7320.tar.gz"
ROUNDING = 1.0                                          # pixels by which tiles that only touch may seem to overlap


@dataclass(frozen=True)
class Tile:
    """One tile of the published set. left, top, right, bottom: in EPSG:3395 metres. digest: of the optical pixels."""
    name: str
    opt: Path
    sar: Path
    region: str
    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    digest: bytes

    @property
    def metres(self):
        """Of a pixel, across and down."""
        return (self.right - self.left) / self.width, (self.top - self.bottom) / self.height

    def square(self, row, column, crop):
        """(left, top, right, bottom) of a crop, `row` and `column` counted in crops."""
        across, down = (side * crop for side in self.metres)
        left, top = self.left + column * across, self.top - row * down
        return left, top, left + across, top - down

    def shows(self, square):
        """Whether the tile shows ground of a square (left, top, right, bottom)."""
        left, top, right, bottom = square
        wide, high = min(right, self.right) - max(left, self.left), min(top, self.top) - max(bottom, self.bottom)
        across, down = self.metres
        return wide > ROUNDING * across and high > ROUNDING * down


def read_tiles(source):
    """name -> Tile. InputError names all that is wrong."""
    folder = source / "dataset" if (source / "dataset").is_dir() else source
    file = folder / "metadata.json"
    if not file.is_file():
        raise InputError(f"{source} holds no dataset/metadata.json: "
                         "give the folder that the published archive unpacks to, or --download")
    try:
        notes = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}): unpack the archive again")
    problems, tiles = [], {}
    for note in tqdm(notes, desc="tiles read", disable=None):
        tile = read_tile(folder, note, problems)
        if tile:
            tiles[tile.name] = tile
    if problems:
        raise several(f"{source} has {len(problems)} problem(s); fetch these again:", problems)
    return tiles


def read_tile(folder, note, problems):
    """The Tile of an entry of metadata.json, or None; what is wrong with it is appended to `problems`."""
    opt, sar = folder / "opt" / note["fragment_filename"], folder / "sar" / note["fragment_filename"]
    sizes, digest, before = [], b"", len(problems)
    for image in (opt, sar):
        try:
            with Image.open(image) as opened:
                opened.load()
                sizes.append(opened.size)
                digest = digest or hashlib.blake2b(opened.tobytes(), digest_size=16).digest()
        except (OSError, SyntaxError) as error:
            problems.append(f"{image}: cannot be decoded ({error})")
    if len(set(sizes)) > 1:
        problems.append(f"{opt} and {sar} differ in size: {sorted(sizes)}")
    region = re.search(r"_(T\d{2}[A-Z]{3})_", note["opt_tile_name"])
    if not region:
        problems.append(f"{folder / 'metadata.json'}: no UTM tile in opt_tile_name {note['opt_tile_name']}")
    if len(problems) > before:
        return None
    corners = np.array(note["corners_EPSG:3395"])
    left, bottom = corners.min(0).tolist()
    right, top = corners.max(0).tolist()
    return Tile(opt.stem, opt, sar, region[1], *sizes[0], left, top, right, bottom, digest)


def leave_out_repeated(tiles, test):
    """Print and return the tiles that show what another shows; of one in each split the training tile goes."""
    by_digest, repeated = {}, set()
    # Test tiles first, so that they are the ones that stay.
    for name in sorted(tiles, key=lambda name: (name not in test, name)):
        first = by_digest.setdefault(tiles[name].digest, name)
        if first != name:
            repeated.add(name)
            print(f"left out: tile {name}, which is tile {first} again")
    return repeated


def cut(tile, split, hidden_from, out, crop, keep_tiles):
    """Write a tile's crops, row by row from the upper left, and return their rows of pairs.csv.

    hidden_from: the tiles whose ground no crop may show.
    """
    images = {modality: np.array(Image.open(file)) for modality, file in (("opt", tile.opt), ("sar", tile.sar))}
    if images["sar"].ndim == 3 and (images["sar"] == images["sar"][..., :1]).all():
        images["sar"] = images["sar"][..., 0]                   # one channel, published three times
    if keep_tiles:
        for modality, image in images.items():
            write_png(out / f"{split}_tiles" / modality / f"{tile.name}.png", image)
    down, across = tile.height // crop, tile.width // crop
    digits = len(str(max(down, across) - 1))
    rows = []
    for i in range(down):
        for j in range(across):
            square = tile.square(i, j, crop)
            if any(other.shows(square) for other in hidden_from):
                continue
            name = f"{tile.name}_{i:0{digits}d}{j:0{digits}d}"
            for modality, image in images.items():
                part = image[i * crop:(i + 1) * crop, j * crop:(j + 1) * crop]
                write_png(out / split / modality / f"{name}.png", part)
            left, top, right, bottom = square
            rows.append({"split": split, "id": name, "region": tile.region, "tile": tile.name,
                         "x_m": round((left + right) / 2, 2), "y_m": round((top + bottom) / 2, 2),
                         "size_m": round(right - left, 2)})
    return rows


def write_tiles_csv(out, tiles, test):
    """tiles.csv: where each tile lies, in EPSG:3395 metres."""
    columns = ("split", "tile", "region", "left", "top", "right", "bottom")
    rows = [{"split": "test" if tile.name in test else "train", "tile": tile.name,
             **{column: getattr(tile, column) for column in columns[2:]}} for tile in tiles]
    write_rows(out / "tiles.csv", columns, rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="the folder that the published archive unpacks to")
    parser.add_argument("out", type=Path)
    parser.add_argument("--download", action="store_true", help="fetch the published set instead of reading SOURCE")
    parser.add_argument("--url", default=PUBLISHED, help="of the archive that --download fetches")
    parser.add_argument("--crop", type=int, default=200, help="pixels of a crop; 200 gives 25 crops of a tile of 1024")
    parser.add_argument("--test_share", type=float, default=0.3, help="of the tiles of each region")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--keep_tiles", action="store_true",
                        help="also write the tiles whole, to train_tiles/ and test_tiles/, and where they lie, to "
                             "tiles.csv")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main(args):
    if args.download == bool(args.source):
        raise InputError("give either SOURCE or --download, and OUT behind it")
    source = args.source or args.out / "source"
    if args.download and not (source / "dataset/metadata.json").is_file():
        archive = args.out / "source.tar.gz"
        download(args.url, archive)
        unpack(archive, source, "dataset", last="metadata.json")
        archive.unlink()

    tiles = read_tiles(source)
    if len(tiles) < 2:
        raise InputError(f"{source} holds {len(tiles)} tile(s): a split by tile needs two")
    test = split_by_tiles({name: tile.region for name, tile in tiles.items()}, args.test_share, args.seed)
    settings = {"crop": args.crop, "test_share": args.test_share, "seed": args.seed, "tiles": sorted(tiles),
                "left_out": "repeated tiles, test crops that show training ground"}
    splits = ("train", "test", "train_tiles", "test_tiles") if args.keep_tiles else ("train", "test")
    open_output(args.out, settings, [f"{split}/{modality}" for split in splits for modality in ("opt", "sar")])

    repeated = leave_out_repeated(tiles, test)
    kept = [tile for name, tile in sorted(tiles.items()) if name not in repeated]
    training = [tile for tile in kept if tile.name not in test]

    def cut_tile(tile):
        is_test = tile.name in test
        split, hidden_from = ("test", training) if is_test else ("train", [])
        return cut(tile, split, hidden_from, args.out, args.crop, args.keep_tiles)

    with ThreadPoolExecutor(args.workers) as pool:
        done = pool.map(cut_tile, kept)
        rows = [row for part in tqdm(done, total=len(kept), desc="tiles", disable=None) for row in part]
    places = sum((tile.height // args.crop) * (tile.width // args.crop) for tile in kept)
    print(f"left out: {places - len(rows)} test places that show ground of a training tile")
    if args.keep_tiles:
        write_tiles_csv(args.out, kept, test)
    write_pairs_csv(args.out, ("split", "id", "region", "tile", "x_m", "y_m", "size_m"), rows)


if __name__ == "__main__":
    run_script(main, arguments)
