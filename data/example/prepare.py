"""Cut the example from whole test tiles: an optical map, a SAR image of that ground, and one of elsewhere.

    python data/example/prepare.py data/S1S2align200 data/example

The data set is one with tiles.csv (data/S1S2align200/prepare.py --keep_tiles). The map is a GeoTIFF of the tiles of
MAP, one below the other, in their own projection. The SAR images are as a radar's owner might have them: 10 m a pixel
on the ground, turned, without a georeference. Nothing that is there is written over.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository's root, where shared/ is

import cv2
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine, from_bounds
from rasterio.warp import reproject, transform

from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import make_folder, read_rows, write_bytes
from shared.reading.raster import Reader

CRS, UTM = "EPSG:3395", "EPSG:32611"                    # of the tiles; in whose metres the SAR images are
MAP = ("049", "062")                                    # from north to south
QUALITY = 72                                            # of the map's JPEG
SIDE, METRES = 280, 10.0                                # px of the SAR images, and of one of them on the ground
# Tiles; the middle, in px from their upper left corner; degrees by which the image is turned clockwise.
SAR = {"sar.png": (MAP, (430, 900), 40.0), "elsewhere.png": (("155",), (512, 512), 0.0)}
FILES = "map.tif", *SAR


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("data_path", type=Path, help="with test_tiles/ and tiles.csv")
    parser.add_argument("out", type=Path)
    return parser.parse_args()


def main(args):
    there = [str(args.out / name) for name in FILES if (args.out / name).exists()]
    if there:
        raise InputError(f"{', '.join(there)}: there already; give another folder, or move it away")
    make_folder(args.out, "OUT")
    pixels, place = mosaic(args.data_path, "opt", MAP)
    write_bytes(args.out / "map.tif", geotiff(pixels, place))
    for name, (tiles, middle, turned) in SAR.items():
        pixels, place = mosaic(args.data_path, "sar", tiles)
        image = cut(pixels[..., 0], place, middle, turned)
        write_bytes(args.out / name, cv2.imencode(".png", image)[1].tobytes())
    for name in FILES:
        print(f"{args.out / name}: {(args.out / name).stat().st_size / 1024:.0f} KiB")


def mosaic(data_path, modality, names):
    """Test tiles one below the other: (H, W, 3) uint8, and their transform in CRS.

    InputError where the data set holds no whole tiles.
    """
    listing = data_path / "tiles.csv"
    if not listing.is_file():
        raise InputError(f"{data_path} has no tiles.csv: python data/S1S2align200/prepare.py --keep_tiles writes it")
    rows = {row["tile"]: row for row in read_rows(listing)}
    tiles = []
    for name in names:
        file = next((data_path / "test_tiles" / modality).glob(f"{name}.*"), None)
        if file is None or name not in rows:
            raise InputError(f"{data_path} has no test tile {name}: its split is another")
        tiles.append(Reader(modality).read(file)[0])
    first, last = rows[names[0]], rows[names[-1]]
    pixels = np.concatenate(tiles)
    bounds = [float(row[side]) for row, side in ((first, "left"), (last, "bottom"), (first, "right"), (first, "top"))]
    return pixels, from_bounds(*bounds, pixels.shape[1], pixels.shape[0])


def geotiff(pixels, place):
    """The bytes of a GeoTIFF, JPEG inside, of (H, W, 3) uint8."""
    height, width, bands = pixels.shape
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=width, height=height, count=bands, dtype="uint8", crs=CRS,
                         transform=place, tiled=True, blockxsize=256, blockysize=256, compress="JPEG",
                         photometric="YCBCR", jpeg_quality=QUALITY) as out:
            out.write(pixels.transpose(2, 0, 1))
        return memory.read()


def cut(pixels, place, middle, turned):
    """(SIDE, SIDE) uint8 about a middle, in px of (H, W) pixels at `place`, turned clockwise by so many degrees."""
    (x,), (y,) = transform(CRS, UTM, *([value] for value in place * middle))
    # Down the image is the direction that lies `turned` degrees clockwise of south.
    own = Affine.translation(x, y) * Affine.rotation(-turned) * Affine.scale(METRES, -METRES)
    image = np.zeros((SIDE, SIDE), np.uint8)
    reproject(pixels, image, src_crs=CRS, src_transform=place, dst_crs=UTM,
              dst_transform=own * Affine.translation(-SIDE / 2, -SIDE / 2), resampling=Resampling.bilinear)
    return image


if __name__ == "__main__":
    run_script(main, arguments)
