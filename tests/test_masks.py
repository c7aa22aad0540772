"""Masks: what counts as nodata of a map and of queries, where files beside them say so."""
import cv2
import numpy as np
import pytest

from test_localization import ground
from test_locate import LEFT, TOP, UTM, locate, rows_of, write_map

import rasterio
pyproj = pytest.importorskip("pyproj", reason="requirements-optional.txt is not installed")

from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from shared.mapping.locator import Query
from shared.mapping.maps import GeoMap, Mask
from shared.plumbing.errors import InputError
from shared.reading.raster import Reader

PLACE = from_origin(LEFT, TOP, 10, 10)


def masks_of_all_kinds(folder):
    """{name: a file} that hides the left 1200 m of a map of 3 km by 2, and lies a little beyond it."""
    hidden = np.zeros((260, 360), np.uint8)
    hidden[:, 150:] = 1                                 # 10 m, from 300 m to the west of the map
    place = from_origin(LEFT - 300, TOP + 300, 10, 10)
    write_map(folder / "zero.tif", hidden, place)
    write_map(folder / "nodata.tif", np.where(hidden, 7, 255).astype(np.uint8), place, nodata=255)
    both = np.where(hidden, 7, 255).astype(np.uint8)
    both[:, 100:150] = 0
    write_map(folder / "zero and nodata.tif", both, place, nodata=255)
    write_map(folder / "nan.tif", np.where(hidden, 0.5, np.nan).astype(np.float32), place)
    with rasterio.open(folder / "gcps.tif", "w", driver="GTiff", width=360, height=260, count=1, dtype="uint8", crs=UTM,
                       gcps=[GroundControlPoint(row, column, *(place * (column, row)))
                             for row in (0, 260) for column in (0, 360)]) as out:
        out.write(hidden, 1)
    # In degrees, each pixel where its middle lies.
    fine = from_origin(-117.005, 34.345, 1e-4, 1e-4)
    columns, rows = np.meshgrid(np.arange(500) + 0.5, np.arange(300) + 0.5)
    x, _ = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(*(fine * (columns, rows)))
    write_map(folder / "degrees.tif", (x >= LEFT + 1200).astype(np.int16), fine, "EPSG:4326")
    return {file.stem: file for file in folder.iterdir()}


def test_a_mask_is_seen_on_the_grid_of_the_map(tmp_path):
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(300)[:200], PLACE), 10.0, Reader("opt"))
    (tmp_path / "masks").mkdir()
    files = masks_of_all_kinds(tmp_path / "masks")
    assert len(files) == 6
    for name, file in files.items():
        geo.mask = Mask(file, geo, "--map_mask")
        _, shown = geo.read(20, 10, 250, 150)
        allowed = 1 if name == "degrees" else 0
        assert not shown[:, :100 - allowed].any() and shown[:, 100 + allowed:].all(), name
        assert geo.mask.at(np.array([5.0, 119, 121, 299]), np.array([5.0, 5, 199, 5])).tolist() == [False, False, True,
                                                                                                   True], name


def test_what_is_masked_has_no_say_in_the_tones(tmp_path):
    """As of a map that has nodata there: a cloud of 16 bits would leave the ground dark."""
    numbers = ground(300)[:200].astype(np.uint16) * 10 + 1
    numbers[:, :120] = 60_000 + numbers[:, :120] // 10
    (tmp_path / "masks").mkdir()
    mask = masks_of_all_kinds(tmp_path / "masks")["zero"]
    geo = GeoMap(write_map(tmp_path / "map.tif", numbers, PLACE), 10.0, Reader("opt"))
    geo.mask = Mask(mask, geo, "--map_mask")
    numbers[:, :120] = 0
    holed = GeoMap(write_map(tmp_path / "holed.tif", numbers, PLACE, nodata=0), 10.0, Reader("opt"))
    (pixels, shown), (expected, expected_shown) = (each.read(0, 0, 300, 200) for each in (geo, holed))
    assert (shown == expected_shown).mean() > 0.99
    assert np.abs(pixels[:, 125:].astype(int) - expected[:, 125:]).max() <= 2
    assert geo.identity != GeoMap(tmp_path / "map.tif", 10.0, Reader("opt")).identity, "cells of their own"


@pytest.mark.parametrize("kind", ["plain", "georeferenced", "control points"])
def test_a_querys_mask_lies_as_the_query_does(tmp_path, kind):
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(300), PLACE), 10.0, Reader("opt"))
    image, mask = ground(200, seed=1)[:160, :, 0], np.ones((160, 200), np.uint8)
    image[40:80, 60:160], mask[40:80, 60:160] = 255, 0
    image[:8], mask[90:94, 90:94] = 0, 0                # and a speck of the mask's, beside a collar of the image's
    corner = from_origin(LEFT + 300, TOP - 500, 5, 5)
    points = [GroundControlPoint(row, column, *(corner * (column, row))) for row in (0, 160) for column in (0, 200)]
    place = {"plain": {}, "georeferenced": {"transform": corner, "crs": UTM},
             "control points": {"gcps": points, "crs": UTM}}[kind]
    with rasterio.open(tmp_path / "sar.tif", "w", driver="GTiff", width=200, height=160, count=1, dtype="uint8",
                       **place) as out:
        out.write(image, 1)
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    query = Query(tmp_path / "sar.tif", 5.0, geo, Reader("sar"), tmp_path / "mask.png")
    query.read()
    assert query.pixels.shape == (80, 100, 3) and query.share_shown == pytest.approx(0.825, abs=0.02)
    hidden = np.zeros((80, 100), bool)
    hidden[20:40, 30:80] = hidden[:4] = hidden[45:47, 45:47] = True
    assert (query.shown == ~hidden).mean() > 0.97
    assert not query.shown[21:39, 31:79].any() and not query.shown[45:47, 45:47].any()
    assert query.pixels[hidden].max() == 0


def test_masks_that_do_not_fit_are_one_sentence(tmp_path):
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(100), PLACE), 10.0, Reader("opt"))
    cv2.imwrite(str(tmp_path / "plain.png"), np.ones((80, 80), np.uint8))
    cv2.imwrite(str(tmp_path / "three.png"), np.ones((80, 80, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "sar.png"), ground(90))
    write_map(tmp_path / "sar.tif", ground(90), PLACE)
    for query in ("sar.png", "sar.tif"):
        with pytest.raises(InputError, match=rf"plain.png has 80 x 80 px, and --query .*{query} 90 x 90"):
            Query(tmp_path / query, 10.0, geo, Reader("sar"), tmp_path / "plain.png")
        with pytest.raises(InputError, match="three.png has 3 bands: give one of a single band"):
            Query(tmp_path / query, 10.0, geo, Reader("sar"), tmp_path / "three.png")
    with pytest.raises(InputError, match="--map_mask .*plain.png is not georeferenced"):
        Mask(tmp_path / "plain.png", geo, "--map_mask")


def test_locate_leaves_out_what_is_masked(tmp_path, run):
    image = ground(300, seed=4)
    good = write_map(tmp_path / "map.tif", image, PLACE)
    land = np.ones((30, 30), np.uint8)                  # of 100 m
    land[8:22, 8:22] = 0
    write_map(tmp_path / "land.tif", land, from_origin(LEFT, TOP, 100, 100))
    write_map(tmp_path / "elsewhere.tif", land, from_origin(LEFT + 90_000, TOP, 100, 100))
    queries, masks = tmp_path / "queries", tmp_path / "masks"
    queries.mkdir(), masks.mkdir()
    for name, left, top in (("hidden", 100, 100), ("shown", 10, 190)):
        write_map(queries / f"{name}.tif", image[top:top + 90, left:left + 90],
                  from_origin(LEFT + 10 * left, TOP - 10 * top, 10, 10))
    # Half of the query is of elsewhere.
    image_of_two = np.concatenate([image[10:100, 200:245], ground(90, seed=9)[:, :45]], 1)
    write_map(queries / "of two.tif", image_of_two, from_origin(LEFT + 2000, TOP - 100, 10, 10))
    for name, columns in (("hidden", 90), ("shown", 90), ("of two", 46)):
        cv2.imwrite(str(masks / f"{name}.png"), np.tile(np.arange(90) < columns, (90, 1)) * 255)
    flags = ["--query", queries, "--prior", "own", "--radius", "200"]
    done = locate(run, *flags, "--map_mask", tmp_path / "land.tif", "--query_mask", masks, map_file=good,
                  out=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {row["query"]: row for row in rows_of(tmp_path / "out") if row["rank"] == "1"}
    assert rows["hidden"]["status"] == "not on this map" and "shows nothing" in rows["hidden"]["reason"]
    assert [rows[name]["status"] for name in ("shown", "of two")] == ["located", "located"]
    # A mask that is mended is another: what it is of is answered anew, and nothing else.
    cv2.imwrite(str(masks / "of two.png"), np.tile(np.arange(90) < 30, (90, 1)) * 255)
    (masks / "shown.png").unlink()
    done = locate(run, *flags, "--map_mask", tmp_path / "land.tif", "--query_mask", masks, map_file=good,
                  out=tmp_path / "out")
    rows = {row["query"]: row for row in rows_of(tmp_path / "out") if row["rank"] == "1"}
    assert rows["of two"]["status"] == "too much nodata" and "hidden: " not in done.stdout
    assert done.returncode == 2 and f"{masks} holds no mask of the name shown" in rows["shown"]["reason"]
    for mask, words in (("elsewhere.tif", "leaves nothing of --map"), ("masks/hidden.png", "is not georeferenced")):
        done = locate(run, *flags, "--map_mask", tmp_path / mask, map_file=good, out=tmp_path / "none")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
