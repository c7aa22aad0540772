"""Where rasters lie: every way of saying so gives the same ground, on a grid of ground metres."""
import warnings

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine, from_origin

from shared.plumbing.errors import InputError
from shared.reading.raster import Reader
from test_localization import ground
from shared.mapping.maps import GeoMap

OPT, SAR = Reader("opt"), Reader("sar")
LONGITUDE, LATITUDE = -117.0, 34.3
UTM = "EPSG:32611"


def write(file, image, crs=None, transform=None, gcps=None, **more):
    """(H, W) or (H, W, C) as a TIFF; gcps: a function of (column, row) to (x, y) in the CRS."""
    bands = image.transpose(2, 0, 1) if image.ndim == 3 else image[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(file, "w", driver="GTiff", width=image.shape[1], height=image.shape[0], count=len(bands),
                           dtype=image.dtype, crs=None if gcps else crs, transform=transform, **more) as out:
            out.write(bands)
            if gcps:
                height, width = image.shape[:2]
                points = [GroundControlPoint(row, column, *gcps(column, row))
                          for row in np.linspace(0, height, 4) for column in np.linspace(0, width, 4)]
                out.gcps = points, rasterio.crs.CRS.from_user_input(crs)
    return file


def to(crs, x, y, source="EPSG:4326"):
    return pyproj.Transformer.from_crs(source, crs, always_xy=True).transform(x, y)


def spot(side=120, row=40, column=80):
    """An image with a square of 8 px, dark elsewhere, whose middle lies at (row, column)."""
    image = np.full((side, side), 40, np.uint8)
    image[row - 4:row + 4, column - 4:column + 4] = 250
    image += np.random.default_rng(0).integers(0, 5, image.shape).astype(np.uint8)        # no constant border
    return image


def place_of_spot(geo):
    """Longitude and latitude of the bright square."""
    pixels, _ = geo.read(0, 0, geo.width, geo.height)
    down, across = np.nonzero(pixels[..., 0] > 150)
    return np.array(geo.to_lonlat(across.mean() + 0.5, down.mean() + 0.5))


def metres_between(a, b):
    return pyproj.Geod(ellps="WGS84").inv(*a, *b)[2]


def georeferences():
    """name -> (CRS, what write() takes). Of an image of 120 px, each with its own idea of a grid."""
    x, y = to(UTM, LONGITUDE, LATITUDE)
    mercator, feet = to("EPSG:3395", LONGITUDE, LATITUDE), to("EPSG:2229", LONGITUDE, LATITUDE)
    turned = Affine.translation(x, y) * Affine.rotation(-30) * Affine.scale(10, -10)
    degrees = from_origin(LONGITUDE, LATITUDE, 1e-4, 1e-4)
    return {
        "UTM": (UTM, {"transform": from_origin(x, y, 10, 10)}),
        "south up": (UTM, {"transform": Affine(10, 0, x, 0, 10, y - 1200)}),
        "8 x 14 m": (UTM, {"transform": from_origin(x, y, 8, 14)}),
        "turned by 30 degrees": (UTM, {"transform": turned}),
        "another zone": ("EPSG:32612", {"transform": from_origin(*to("EPSG:32612", LONGITUDE, LATITUDE), 10, 10)}),
        "Mercator": ("EPSG:3395", {"transform": from_origin(*mercator, 12, 12)}),
        "feet": ("EPSG:2229", {"transform": from_origin(*feet, 33, 33)}),
        "degrees": ("EPSG:4326", {"transform": degrees}),
        "longitudes from 0 to 360": ("EPSG:4326", {"transform": Affine.translation(360, 0) * degrees}),
        "control points in degrees": ("EPSG:4326", {"gcps": lambda column, row: degrees * (column, row)}),
        "control points, turned": (UTM, {"gcps": lambda column, row: turned * (column, row)}),
    }


@pytest.mark.parametrize("name", georeferences())
def test_every_georeference_shows_the_same_place_north_up_in_ground_metres(tmp_path, name):
    crs, how = georeferences()[name]
    file = write(tmp_path / "x.tif", spot(), crs, **how)
    transform = how.get("transform") or Affine.identity()
    x, y = how["gcps"](80, 40) if "gcps" in how else transform * (80, 40)
    longitude, latitude = to("EPSG:4326", x, y, crs)
    for grid_crs in (None, pyproj.CRS(UTM)):
        geo = GeoMap(file, 10.0, SAR, crs=grid_crs)
        assert metres_between(place_of_spot(geo), ((longitude + 180) % 360 - 180, latitude)) < 6
        middle, right, up = (geo.to_lonlat(geo.width / 2 + 30 * i, geo.height / 2 - 30 * j)
                             for i, j in ((0, 0), (1, 0), (0, 1)))
        assert metres_between(middle, right) == pytest.approx(300, rel=0.006)
        assert metres_between(middle, up) == pytest.approx(300, rel=0.006)
        assert abs(pyproj.Geod(ellps="WGS84").inv(*middle, *up)[0]) < 4, "north is up, but for the grid's convergence"


@pytest.mark.parametrize("left", [179.99, -180.01])
def test_a_map_across_the_antimeridian(tmp_path, left):
    transform = from_origin(left, LATITUDE, 2e-4, 2e-4)
    geo = GeoMap(write(tmp_path / "x.tif", spot(), "EPSG:4326", transform), 20.0, SAR)
    longitude, latitude = transform * (80, 40)
    assert metres_between(place_of_spot(geo), ((longitude + 180) % 360 - 180, latitude)) < 12
    assert geo.width < 200 and geo.read(0, 0, geo.width, geo.height)[1].mean() > 0.9


def test_a_wide_map_has_ground_metres_too(tmp_path):
    geo = GeoMap(write(tmp_path / "x.tif", spot(), "EPSG:4326", from_origin(-5, 56, 0.1, 0.1)), 10_000.0, SAR)
    a, b = geo.to_lonlat(20, geo.height / 2), geo.to_lonlat(80, geo.height / 2)
    assert "Azimuthal" in str(geo.crs.coordinate_operation.method_name) or geo.crs.name == "unknown"
    assert metres_between(a, b) == pytest.approx(600_000, rel=0.01)


def test_what_has_no_place_is_one_sentence(tmp_path):
    image, x, y = spot(), *to(UTM, LONGITUDE, LATITUDE)
    transform = from_origin(x, y, 10, 10)
    moon = "+proj=eqc +R=1737400 +units=m +no_defs"
    cases = {"has no CRS": (None, transform), "but no transform": (UTM, Affine.identity()),
             "local CRS": ('LOCAL_CS["site",UNIT["metre",1]]', transform), "another body": (moon, transform),
             "of no place": (UTM, from_origin(x, 9e15, 10, 10)), "without area": (UTM, Affine(10, 0, x, 0, 0, y))}
    for words, (crs, where) in cases.items():
        file = write(tmp_path / f"{words}.tif", image, crs, where)
        with pytest.raises(InputError, match=words) as caught:
            GeoMap(file, 10.0, SAR)
        assert "\n" not in str(caught.value)


def test_the_header_alone_is_read_to_begin_with(tmp_path, monkeypatch):
    file = write(tmp_path / "x.tif", spot(), UTM, from_origin(*to(UTM, LONGITUDE, LATITUDE), 300, 300))
    monkeypatch.setattr("shared.mapping.maps.read_window", None)
    geo = GeoMap(file, 10.0, SAR)
    assert geo.own_metres == pytest.approx(300, rel=0.001) and (geo.width, geo.height) == (3600, 3600)


def test_numbers_nodata_and_bands_on_the_grid_are_those_of_the_reader(tmp_path):
    where = {"crs": UTM, "transform": from_origin(*to(UTM, LONGITUDE, LATITUDE), 10, 10)}
    image = ground(100, seed=2)
    six = np.dstack([image[..., :1] * 0 + 7, image[..., ::-1], image[..., :2]]).astype(np.uint16) * 50
    six[:30, :30] = 65535
    file = write(tmp_path / "six.tif", six, **where)
    geo = GeoMap(file, 10.0, Reader("opt", (4, 3, 2)))
    pixels, shown = geo.read(0, 0, 100, 100)
    assert not shown[:29, :29].any() and shown[31:].all() and "65535 along the border" in geo.look[2]
    fits = [np.corrcoef(pixels[40:, :, k].ravel(), image[40:, :, k].ravel())[0, 1] for k in range(3)]
    assert min(fits) > 0.97
    alone, alone_shown = Reader("opt", (4, 3, 2)).read(file)
    assert np.abs(pixels[31:].astype(int) - alone[31:]).max() <= 2 and (shown == alone_shown).mean() > 0.99
    dark = image.copy()
    dark[:20, :20] = 0
    dark[50, 50] = dark[70:73, 20:23] = 0                             # true zeros, within
    geo = GeoMap(write(tmp_path / "dark.tif", dark, **where), 10.0, OPT)
    pixels, shown = geo.read(0, 0, 100, 100)
    assert not shown[:20, :20].any() and shown[22:, 22:].all() and np.array_equal(pixels[30:], dark[30:])
    four = np.dstack([image, np.full((100, 100), 77, np.uint8)])
    four[50, 50] = 144, 110, 47, 77
    geo = GeoMap(write(tmp_path / "four.tif", four, **where), 10.0, OPT)
    assert np.array_equal(geo.read(50, 50, 1, 1)[0][0, 0], [144, 110, 47])


def test_what_a_map_is_made_of_tells_it_apart(tmp_path):
    x, y = to(UTM, LONGITUDE, LATITUDE)
    image = ground(80)
    file = write(tmp_path / "x.tif", image, UTM, from_origin(x, y, 10, 10))
    with rasterio.open(file) as source:
        rasterio.shutil.copy(source, tmp_path / "x.vrt", driver="VRT")
    cv2.imwrite(str(tmp_path / "w.png"), image)
    (tmp_path / "w.wld").write_text(f"10\n0\n0\n-10\n{x + 5}\n{y - 5}\n")
    (tmp_path / "w.png.aux.xml").write_text(f"<PAMDataset><SRS>{UTM}</SRS></PAMDataset>")
    files = tmp_path / "x.vrt", tmp_path / "w.png"
    before = [GeoMap(each, 10.0, OPT).identity for each in files]
    assert before == [GeoMap(each, 10.0, OPT).identity for each in files]
    write(file, ground(80, seed=9), UTM, from_origin(x, y, 10, 10))   # the VRT's source changes, the VRT does not
    (tmp_path / "w.wld").write_text(f"10\n0\n0\n-10\n{x + 3005}\n{y - 5}\n")
    after = [GeoMap(each, 10.0, OPT).identity for each in files]
    assert before[0] != after[0] and before[1] != after[1]
    assert before[0] != GeoMap(files[0], 10.0, Reader("opt", (3, 2, 1))).identity
    file.unlink()
    with pytest.raises(InputError, match="cannot be (opened|read)"):
        GeoMap(tmp_path / "x.vrt", 10.0, OPT).read(0, 0, 80, 80)


@pytest.mark.parametrize("left", [243.0, 179.99])
def test_answers_are_in_the_numbers_of_the_map(tmp_path, left):
    transform = from_origin(left, LATITUDE, 1e-4, 1e-4)
    geo = GeoMap(write(tmp_path / "x.tif", spot(), "EPSG:4326", transform), 10.0, SAR)
    assert geo.to_map(*geo.from_map(left + 0.004, LATITUDE - 0.003)) == pytest.approx((left + 0.004, LATITUDE - 0.003))
    assert geo.to_lonlat(*geo.from_map(left + 0.001, LATITUDE - 0.003))[0] == pytest.approx(
        (left + 0.001 + 180) % 360 - 180)


@pytest.mark.parametrize("declared, collar, dtype", [(np.nan, -9999, np.float32), (65535, 0, np.uint16)])
def test_a_collar_is_told_though_another_number_is_declared(tmp_path, declared, collar, dtype):
    image = np.random.default_rng(0).integers(5, 2000, (80, 80)).astype(dtype)
    image[:25, :25], image[70:, :10] = collar, declared
    file = write(tmp_path / "x.tif", image, UTM, from_origin(*to(UTM, LONGITUDE, LATITUDE), 10, 10), nodata=declared)
    pixels, shown = GeoMap(file, 10.0, SAR).read(0, 0, 80, 80)
    assert not shown[:24, :24].any() and not shown[71:, :9].any() and shown[:, 30:].all()


def test_a_palette_of_sixteen_bits_gives_its_colours(tmp_path):
    where = {"crs": UTM, "transform": from_origin(*to(UTM, LONGITUDE, LATITUDE), 10, 10)}
    numbers = np.where(spot() > 100, 300, 7).astype(np.uint16)
    with rasterio.open(tmp_path / "x.tif", "w", driver="GTiff", count=1, height=120, width=120, dtype="uint16",
                       photometric="palette", **where) as out:
        out.write(numbers, 1)
        out.write_colormap(1, {7: (10, 20, 30, 255), 300: (200, 100, 0, 255)})
    pixels, _ = GeoMap(tmp_path / "x.tif", 10.0, OPT).read(0, 0, 120, 120)
    alone, _ = OPT.read(tmp_path / "x.tif")
    assert pixels[40, 80].tolist() == alone[40, 80].tolist() == [200, 100, 0] and pixels[5, 5].tolist() == [10, 20, 30]


def test_control_points_on_a_line_and_swapped_axes_are_one_sentence(tmp_path):
    line = write(tmp_path / "x.tif", spot(), "EPSG:4326", gcps=lambda column, row: (row / 1e4, row / 1e4))
    with pytest.raises(InputError, match="on one line"):
        GeoMap(line, 10.0, SAR)
    with pytest.raises(InputError, match="of no place"):
        GeoMap(write(tmp_path / "y.tif", spot(), "EPSG:4326", from_origin(34.4, -117, 1e-4, 1e-4)), 10.0, SAR)
