"""The example of data/example: what it is made of, and that it is what its README says."""
import re

import cv2
import numpy as np
import rasterio

from conftest import ROOT, script

FOLDER = ROOT / "data/example"
FILES = ("map.tif", "sar.png", "elsewhere.png")


def test_it_is_small_and_georeferenced_where_it_should_be():
    assert (FOLDER / "map.tif").stat().st_size <= 700 * 1024
    with rasterio.open(FOLDER / "map.tif") as source:
        assert source.crs.to_epsg() == 3395 and source.compression.name == "jpeg" and source.shape == (2048, 1024)
        middle = re.search(r"lies at x (\S+), y (\S+) in", (FOLDER / "README.md").read_text()).groups()
        column, row = ~source.transform * tuple(map(float, middle))
        assert np.hypot(column - 430, row - 900) < 0.1
    for name in FILES[1:]:
        image = cv2.imread(str(FOLDER / name), cv2.IMREAD_UNCHANGED)
        assert image.shape == (280, 280) and image.min() > 0 and (FOLDER / name).stat().st_size < 100 * 1024


def test_its_script_makes_it(real, tmp_path):
    done = script("data/example/prepare.py", real, tmp_path)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        ours, again = (cv2.imread(str(folder / name)).astype(float) for folder in (FOLDER, tmp_path))
        assert ours.shape == again.shape and np.abs(ours - again).mean() < 1              # JPEG libraries differ
    before = (tmp_path / "map.tif").stat()
    done = script("data/example/prepare.py", real, tmp_path)
    assert done.returncode == 2 and "map.tif" in done.stderr and (tmp_path / "map.tif").stat() == before


def test_the_image_lies_where_it_says(real, tmp_path):
    """The upper edge of an image turned clockwise by 40° faces north-east: 100 px up of it are 64 px east."""
    from rasterio.transform import from_origin
    from rasterio.warp import transform
    from tools.bench import load_script
    example = load_script(FOLDER / "prepare.py")
    (x,), (y,) = transform(example.UTM, example.CRS, [400_000], [3_770_000])
    pixels = np.zeros((1000, 1000), np.uint8)
    scale = 1.206                                       # of EPSG:3395 at 34 degrees
    column, row = 500 + 64.3 * 10 * scale / 10, 500 - 76.6 * 10 * scale / 10
    cv2.circle(pixels, (round(column), round(row)), 6, 255, -1)
    image = example.cut(pixels, from_origin(x - 5000, y + 5000, 10, 10), (500, 500), 40.0)
    rows, columns = np.nonzero(image > 128)
    assert abs(columns.mean() - 140) < 3 and abs(rows.mean() - 40) < 3
