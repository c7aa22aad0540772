"""What tools/locate.py leaves for other programs: layers, control points, the query itself with them, a page."""
import base64
import io
import json
import re
import sqlite3
import sys
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, Program, require_fit
from test_localization import ground
from test_locate import LEFT, TOP, UTM, locate, rows_of, write_map

import rasterio
pyproj = pytest.importorskip("pyproj", reason="requirements-optional.txt is not installed")

from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from shared.mapping.calibration import OUTCOMES
from shared.mapping.localization import Answer
from shared.mapping.locator import Location, Query
from shared.mapping.maps import GeoMap
from shared.plumbing.errors import InputError, OutputError
from shared.reading.raster import Reader
from tools import locate as locate_tool
from tools.answers_on_map import (AT_THE_END, COLOURS, COLUMNS, JOURNAL, OF_A_QUERY, STRIP, SHAPES, TABLE, describe,
                                  draw_footprints, shapes_of, summary, write_package)
from tools.answers_page import overview, page, scale_bar
from tools.control_points import copy_with_points, points_of_answer, warp_by_points
from tools.figures import panels, plt
from tools.tie_points import turned_to


@pytest.fixture(scope="module")
def answered(run, tmp_path_factory):
    """A folder of --out, of queries on the map and off it."""
    folder = tmp_path_factory.mktemp("answered")
    image = ground(420, seed=3)
    write_map(folder / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    write_map(folder / "here.tif", image[200:300, 120:220], from_origin(LEFT + 1200, TOP - 2000, 10, 10))
    cv2.imwrite(str(folder / "water.png"), np.full((100, 100, 3), 90, np.uint8))
    command = ["--query", folder / "here.tif", folder / "water.png", "--resolution", "10", "--top_k", "3"]
    done = locate(run, *command, map_file=folder / "map.tif", out=folder / "out")
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, out=folder / "out", image=image, command=command, run=run, said=done.stdout)


@pytest.fixture
def limited_files():
    """A disk that is full after so many bytes of a file."""
    resource = pytest.importorskip("resource", reason="no limits on files here")

    @contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


# Layers --------------------------------------------------------------------------------------------------------------

def test_a_geopackage_holds_what_geojson_does_in_the_maps_crs(answered):
    geopandas = pytest.importorskip("geopandas", reason="requirements-optional.txt is not installed")
    layers = {name: geopandas.read_file(answered.out / "answers.gpkg", layer=name)
              for name in ("footprints", "centres", "radii")}
    assert [len(layer) for layer in layers.values()] == [3, 3, 1] and "answers.gpkg" in answered.said
    assert all(layer.crs == UTM and set(layer["crs"]) == {UTM} for layer in layers.values())
    rows = rows_of(answered.out)[:3]
    shapes = json.loads((answered.out / "answers.geojson").read_text())["features"]
    for name, part in (("footprints", "footprint"), ("centres", "centre"), ("radii", "90% radius")):
        expected = [shape["properties"] for shape in shapes if shape["properties"]["part"] == part]
        for properties, (_, got) in zip(expected, layers[name].iterrows()):
            for key, value in properties.items():
                value = json.dumps(value) if key == "covariance_m2" else value
                assert got[key] == value or (value is None and got.isna()[key]), key
    for layer in layers.values():
        assert [*layer.columns] == [*COLUMNS, "covariance_m2", "part", "geometry"]
        for row, (_, got) in zip(rows, layer.iterrows()):
            assert {name: "" if got.isna()[name] else str(got[name]) for name in COLUMNS} == row, "as in answers.csv"
    for row, point, shape in zip(rows, layers["centres"].geometry, layers["footprints"].geometry):
        place = float(row["x"]), float(row["y"])
        assert (point.x, point.y) == pytest.approx(place, abs=0.006)
        assert (shape.centroid.x, shape.centroid.y) == pytest.approx(place, abs=0.1)
        assert shape.area == pytest.approx(1000 ** 2, rel=1e-4)
    ring = np.array(layers["radii"].geometry[0].exterior.coords) - (float(rows[0]["x"]), float(rows[0]["y"]))
    assert np.hypot(*ring.T) == pytest.approx(float(rows[0]["radius"]), abs=0.01)


def test_a_geopackage_across_the_antimeridian_is_in_one_piece(tmp_path):
    """And what counts longitudes up to 360 is in the file's own CRS."""
    geopandas = pytest.importorskip("geopandas", reason="requirements-optional.txt is not installed")
    file = write_map(tmp_path / "map.tif", ground(300), from_origin(179.985, -17, 1e-4, 1e-4), "EPSG:4326")
    geo = GeoMap(file, 10.0, Reader("opt"))
    query = SimpleNamespace(pixels=np.zeros((100, 80, 3), np.uint8))
    answer = Answer(0, geo.width / 2, geo.height / 2, 30.0, 0.5)
    row = {"query": "caf\udce9", "rank": 1, "rotation": 30.0, "radius": 200.0, "status": "located"}
    write_package(tmp_path / "answers.gpkg", shapes_of(query, [answer], [row], geo), geo)
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []
    shape = geopandas.read_file(tmp_path / "answers.gpkg", layer="footprints")
    assert shape.crs == "EPSG:4326" and shape["query"][0] == "caf\N{REPLACEMENT CHARACTER}"
    assert shape["probability"].dtype == float and shape["probability"].isna().all(), "numbers, if there were any"
    west, south, east, north = shape.total_bounds
    assert 179.98 < west < 180 < east < 180.02 and -17.03 < south < north < -17
    write_package(tmp_path / "answers.gpkg", [], geo)
    assert len(geopandas.read_file(tmp_path / "answers.gpkg", layer="centres")) == 0, "of no answer empty layers"


def test_a_full_disk_leaves_the_layers_of_before(tmp_path, limited_files):
    pytest.importorskip("geopandas", reason="requirements-optional.txt is not installed")
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(64), from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    write_package(tmp_path / "answers.gpkg", [], geo)
    before = (tmp_path / "answers.gpkg").read_bytes()
    with limited_files(20_000), pytest.raises(OutputError, match="answers.gpkg cannot be written"):
        write_package(tmp_path / "answers.gpkg", [], geo)
    assert (tmp_path / "answers.gpkg").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_without_geopandas_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.locate.find_spec", lambda name: None)
    assert locate_tool.layers(None, None) == []
    assert capsys.readouterr().err == (
        f"no answers.gpkg without geopandas: {sys.executable} -m pip install -r {ROOT}/requirements-optional.txt\n")


def test_what_is_written_at_the_end_is_ours_or_not_written(answered, tmp_path):
    """The same command writes it again; a file of the user's of that name is refused before any work."""
    pytest.importorskip("geopandas", reason="requirements-optional.txt is not installed")
    done = locate(answered.run, *answered.command, map_file=answered.folder / "map.tif", out=answered.out)
    assert done.returncode == 0 and "here: bands" not in done.stdout, "all is answered"
    with sqlite3.connect(answered.out / "answers.gpkg") as package:
        assert package.execute("select count(*) from footprints").fetchone() == (3,)
    killed = tmp_path / "killed"
    killed.mkdir()
    lines = (answered.out / "answers.jsonl").read_text().splitlines(keepends=True)
    killed.joinpath("answers.jsonl").write_text("".join(line for line in lines if '"output"' not in line))
    for name in AT_THE_END:
        (killed / name).write_text("my own\n")
        for more in ([], ["--fresh"]):
            done = locate(answered.run, *answered.command, *more, map_file=answered.folder / "map.tif", out=killed)
            assert done.returncode == 2 and f"holds {name}, which is not of this tool" in done.stderr, done.stderr
        assert (killed / name).read_text() == "my own\n"
        (killed / name).unlink()


# Control points ------------------------------------------------------------------------------------------------------

def read_points(file):
    """(the CRS, (N, 8) rows) of a .points file as QGIS reads it."""
    crs, header, *lines = file.read_text().splitlines()
    assert header == "mapX,mapY,sourceX,sourceY,enable,dX,dY,residual"
    return crs.removeprefix("#CRS: "), np.array([[float(value) for value in line.split(",")] for line in lines])


def test_points_of_a_query_are_its_corners_and_centre(answered):
    crs, points = read_points(answered.out / "here.points")
    assert pyproj.CRS(crs) == pyproj.CRS(UTM) and (points[:, 4] == 1).all() and (points[:, 5:] == 0).all()
    assert points[:, 2:4].tolist() == [[0, 0], [100, 0], [100, -100], [0, -100], [50, -50]]
    row = rows_of(answered.out)[0]
    assert points[4, :2] == pytest.approx((float(row["x"]), float(row["y"])), abs=0.006)
    assert points[:4, :2] - points[4, :2] == pytest.approx(500 * np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]), abs=1)
    assert not (answered.out / "water.points").exists(), "no place, no points"


def bent_query(folder):
    """A query that lies by control points on a curve, as a radar's swath does, of 400 x 300 px."""
    points = [GroundControlPoint(row, column, LEFT + 10 * (column + (row - 150) ** 2 / 2000), TOP - 10 * row)
              for column in (0, 200, 400) for row in (0, 75, 150, 225, 300)]
    with rasterio.open(folder / "bent.tif", "w", driver="GTiff", width=400, height=300, count=1, dtype="float32",
                       crs=UTM, gcps=points) as out:
        out.write(np.random.default_rng(0).normal(size=(1, 300, 400)).astype(np.float32))
    return folder / "bent.tif"


def test_points_follow_a_query_whose_own_place_is_bent(tmp_path):
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(500), from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    query = Query(bent_query(tmp_path), None, geo, Reader("sar"))
    query.read()
    answer = Answer(0, *query.truth, 0.0, 0.5)
    rows = points_of_answer(query, answer, geo)
    assert len(rows) == 25
    for row in rows:
        place = LEFT + 10 * (row["column"] + (row["row"] - 150) ** 2 / 2000), TOP - 10 * row["row"]
        assert (row["map_x"], row["map_y"]) == pytest.approx(place, abs=2), "to a fifth of a pixel"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_are_counted_in_the_file_as_it_is_stored(tmp_path, orientation):
    """Not as EXIF turns it: GDAL does not know of that."""
    stored = np.zeros((60, 80, 3), np.uint8)
    stored[10:14, 20:24] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "query.jpg", exif=exif, quality=100)
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(100), from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    query = Query(tmp_path / "query.jpg", 20.0, geo, Reader("sar"))
    query.read()
    rows, columns = np.nonzero(query.pixels[..., 0] > 128)
    seen = columns.mean() + 0.5, rows.mean() + 0.5
    assert query.own_pixel(*seen) == pytest.approx((22, 12), abs=0.2)
    assert query.seen_pixel(22, 12) == pytest.approx(seen, abs=0.4)
    assert query.file_size == (80, 60)


# The query itself ----------------------------------------------------------------------------------------------------

SPOT = (37, 61)                                         # row and column of what is looked for


def queries_of_all_kinds(folder, image):
    """{name: a query's file} that shows 100 x 100 px of a map and a spot, and what else there may be in a file."""
    row, column = SPOT
    view = image[200:300, 120:220].astype(np.float32).mean(2)
    place = {"transform": from_origin(LEFT + 1200, TOP - 2000, 10, 10), "crs": UTM, "driver": "GTiff", "width": 100,
             "height": 100}
    decibels = view / 10 - 25
    decibels[:9] = np.nan
    decibels[row - 1:row + 2, column - 1:column + 2] = 30
    with rasterio.open(folder / "decibels.tif", "w", dtype="float32", count=1, nodata=np.nan, **place) as out:
        out.write(decibels, 1)
        out.descriptions = ["VV"]
        out.update_tags(AREA_OR_POINT="Point", ACQUIRED="2019-08-01", TIFFTAG_IMAGEDESCRIPTION="of a test")
        out.update_tags(1, UNIT="dB")
        out.update_tags(ns="RPC", **dict.fromkeys(("LINE_OFF", "SAMP_OFF", "LAT_OFF", "LONG_OFF", "HEIGHT_OFF"), "1"))
    both = np.stack([view * 100 + 1, view * 0 + 7]).astype(np.uint16)
    both[:, row - 1:row + 2, column - 1:column + 2] = 60_000
    with rasterio.open(folder / "two.tif", "w", dtype="uint16", count=2, nodata=0, **place) as out:
        out.write(both)
        out.scales, out.offsets = (0.01, 0.5), (0, -3)
    with (rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
          rasterio.open(folder / "masked.tif", "w", dtype="uint16", count=1, **place) as out):
        out.write(both[:1])
        out.write_mask(np.arange(100)[None].repeat(100, 0) < 95)
    plain = (0.4 * view).astype(np.uint8)
    plain[row - 1:row + 2, column - 1:column + 2] = 255
    cv2.imwrite(str(folder / "plain.png"), plain)
    return {name: folder / f"{name}" for name in ("decibels.tif", "two.tif", "masked.tif", "plain.png")}


def spot_of(file, band=1):
    """(x, y) in the CRS of the brightest spot of a GeoTIFF."""
    with rasterio.open(file) as source:
        bands = np.nan_to_num(source.read(band).astype(float), nan=-1e3)
        rows, columns = np.nonzero(bands > 0.5 * bands.max())
        return source.transform * (columns.mean() + 0.5, rows.mean() + 0.5)


@pytest.fixture(scope="module")
def warped(run, tmp_path_factory):
    """Queries of all kinds, located and warped."""
    folder = tmp_path_factory.mktemp("warped")
    image = ground(420, seed=3)
    write_map(folder / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    files = queries_of_all_kinds(folder, image)
    prior = ["--prior", f"{LEFT + 1700},{TOP - 2500}", "--radius", "300"]
    done = locate(run, "--query", *files.values(), "--resolution", "10", "--warp", *prior, "--scale", "db",
                  map_file=folder / "map.tif", out=folder / "out")
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in rows_of(folder / "out") if row["rank"] == "1"} == {"located"}
    return SimpleNamespace(files=files, out=folder / "out")


@pytest.mark.parametrize("name", ["decibels.tif", "two.tif", "masked.tif", "plain.png"])
def test_the_query_itself_has_control_points_and_is_warped_by_them(warped, name):
    stem = name.split(".")[0]
    files = warped.files[name], warped.out / f"{stem}.gcps.tif", warped.out / f"{stem}.warped.tif"
    with ExitStack() as stack:
        own, copy, by_them = (stack.enter_context(rasterio.open(file)) for file in files)
        assert copy.transform.is_identity and copy.crs is None and not copy.tags(ns="RPC")
        points, crs = copy.gcps
        assert len(points) == 5 and crs == UTM == by_them.crs and by_them.transform.a == pytest.approx(10, abs=0.1)
        np.testing.assert_array_equal(copy.read(), own.read())
        np.testing.assert_array_equal(copy.read_masks(), own.read_masks())
        for written in (copy, by_them):
            assert written.dtypes == own.dtypes and written.descriptions == own.descriptions
            assert written.nodata == own.nodata or np.isnan([written.nodata, own.nodata]).all()
            assert (written.scales, written.offsets) == (own.scales, own.offsets)
            assert written.colorinterp == own.colorinterp
            kept = {**own.tags(), "AREA_OR_POINT": "Area"}
            assert written.tags() == kept and written.tags(1) == own.tags(1)
        # As gdalwarp sees the copy.
        values = np.zeros((200, 200), np.float32)
        transform = from_origin(LEFT + 700, TOP - 1500, 10, 10)
        reproject(rasterio.band(copy, 1), values, gcps=points, src_crs=crs, dst_transform=transform, dst_crs=UTM,
                  dst_nodata=-1e3, resampling=Resampling.bilinear)
        rows, columns = np.nonzero(values > 0.5 * values.max())
        seen = transform * (columns.mean() + 0.5, rows.mean() + 0.5)
        shown = own.read_masks(1).mean()
        assert by_them.read_masks(1).mean() == pytest.approx(shown, rel=0.05), "what shows nothing stays so"
    row, column = SPOT
    answer = next(row for row in rows_of(warped.out) if row["query"] == stem)
    assert float(answer["rotation"]) == 0
    # Where the answer puts it, which is within a few metres of where it lies.
    true = float(answer["x"]) + 10 * (column + 0.5 - 50), float(answer["y"]) - 10 * (row + 0.5 - 50)
    for place in (seen, spot_of(warped.out / f"{stem}.warped.tif")):
        assert np.hypot(*np.subtract(place, true)) < 5, "half a pixel"


def test_a_turned_query_of_finer_pixels_too(tmp_path):
    """By an answer that turns it, in a CRS of degrees, by a polynomial and exactly through each point, in blocks."""
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(300), from_origin(-117.0, 34.4, 1e-4, 1e-4), "EPSG:4326"), 10.0,
                 Reader("opt"))
    plain = np.full((740, 600), 40, np.uint8)
    plain[600:605, 520:525] = 250
    cv2.imwrite(str(tmp_path / "plain.png"), plain)
    query = Query(tmp_path / "plain.png", 2.0, geo, Reader("sar"))
    query.read()
    answer = Answer(0, 140.0, 120.0, 25.0, 0.5)
    rows = points_of_answer(query, answer, geo)
    true = turned_to(np.array([[522.5 / 5, 602.5 / 5]]), query.pixels.shape, answer)[0]
    for thin_plates in (False, True):
        copy_with_points(query.file, rows, geo.map_crs, tmp_path / "copy.tif")
        warp_by_points(tmp_path / "copy.tif", tmp_path / "warped.tif", thin_plates)
        off = np.subtract(geo.from_crs(*spot_of(tmp_path / "warped.tif"), geo.map_crs), true)
        assert np.hypot(*off) < 0.1, "half a pixel of the query's"
        with rasterio.open(tmp_path / "warped.tif") as by_them:
            shown = by_them.read_masks(1) > 0
            assert shown.shape > (512, 512) and not shown[0, 0] and (by_them.read(1)[shown] >= 40).mean() > 0.99
            square_metres = abs(by_them.transform.determinant) * 111_000 ** 2 * np.cos(np.deg2rad(34.4))
            assert shown.sum() * square_metres == pytest.approx(740 * 600 * 2 ** 2, rel=0.02)


@pytest.mark.parametrize("dtype", ["palette", "alpha", "int16", "float64", "complex64", "complex_int16"])
def test_numbers_of_every_kind_stay_what_they_are(tmp_path, dtype):
    """And what lies beside the warped query is told, by nodata, by its alpha or by a mask."""
    rows = [{"row": row, "column": column, "map_x": LEFT + 10 * column - 3 * row, "map_y": TOP - 10 * row - 3 * column,
             "kept": 1} for row, column in ((0, 0), (0, 60), (50, 60), (50, 0), (25, 30), (25, 30))]
    numbers = np.random.default_rng(0).integers(1, 4, (1, 50, 60)).astype(np.uint8)
    count, stored = (2, "uint8") if dtype == "alpha" else (1, "uint8" if dtype == "palette" else dtype)
    with rasterio.open(tmp_path / "sar.tif", "w", driver="GTiff", width=60, height=50, count=count,
                       dtype=stored) as out:
        if dtype == "palette":
            out.write_colormap(1, {number: (number, 2, 3, 255) for number in range(4)})
        if dtype == "alpha":
            out.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            numbers = np.concatenate([numbers, np.full_like(numbers, 255)])
        out.write(numbers.astype("complex64" if "complex" in dtype else stored))
    copy_with_points(tmp_path / "sar.tif", rows, pyproj.CRS(UTM), tmp_path / "copy.tif")
    warp_by_points(tmp_path / "copy.tif", tmp_path / "warped.tif")
    with ExitStack() as stack:
        own, copy, by_them = (stack.enter_context(rasterio.open(tmp_path / f"{name}.tif"))
                              for name in ("sar", "copy", "warped"))
        np.testing.assert_array_equal(copy.read(), own.read())
        assert len(copy.gcps[0]) == 5, "each point once"
        for written in (copy, by_them):
            assert written.dtypes == own.dtypes and written.colorinterp == own.colorinterp
            assert dtype != "palette" or written.colormap(1)[2] == (2, 2, 3, 255)
        shown = by_them.dataset_mask() > 0
        assert not shown[0, 0] and 0.5 < shown.mean() < 0.95 and np.abs(by_them.read(1)[shown]).min() > 0


def test_a_copy_that_does_not_fit_on_the_disk_is_no_copy(tmp_path, limited_files):
    rows = [{"row": row, "column": column, "map_x": LEFT + 10 * column, "map_y": TOP - 10 * row, "kept": 1}
            for row, column in ((0, 0), (0, 300), (300, 300), (300, 0))]
    noise = np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)
    write_map(tmp_path / "sar.tif", noise, from_origin(LEFT, TOP, 10, 10))
    copy_with_points(tmp_path / "sar.tif", rows, pyproj.CRS(UTM), tmp_path / "copy.tif")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with limited_files(50_000), pytest.raises(OutputError, match="copy.tif cannot be written"):
        copy_with_points(tmp_path / "sar.tif", rows, pyproj.CRS(UTM), tmp_path / "copy.tif")
    with limited_files(50_000), pytest.raises(OutputError, match="warped.tif cannot be written"):
        warp_by_points(tmp_path / "copy.tif", tmp_path / "warped.tif")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    # What is broken in the query is the query's fault.
    (tmp_path / "sar.tif").write_bytes(before[tmp_path / "sar.tif"][:40_000])
    with pytest.raises(InputError, match="sar.tif cannot be"):
        copy_with_points(tmp_path / "sar.tif", rows, pyproj.CRS(UTM), tmp_path / "other.tif")
    assert not list(tmp_path.glob("*other*"))


# The page ------------------------------------------------------------------------------------------------------------

def test_the_page_is_one_file_that_fetches_nothing(answered):
    text = (answered.out / "answers.html").read_text()
    assert "1 located (90% within" in text and "1 too little texture" in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    beside = [link for link in links if not link.startswith(("data:", "#"))]
    assert set(beside) == {file.name for file in answered.out.glob("here.*")} and len(set(beside)) == 4
    jpeg = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]*)", text)[1])
    assert len(jpeg) <= 300 * 1024
    seen, true = (cv2.GaussianBlur(np.array(image, float), (0, 0), 2)
                  for image in (Image.open(io.BytesIO(jpeg)), answered.image))
    assert seen.shape == true.shape and np.abs(seen - true).mean() < 3, "the map, but for what a JPEG loses"


def test_names_and_large_maps_on_the_page(tmp_path):
    """A name is text, whatever is in it; a large map is seen coarser, and a bar says how large it is."""
    image = np.tile(ground(500, seed=1), (4, 6, 1))
    geo = GeoMap(write_map(tmp_path / "<b>.tif", image, from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    name = "<i>50% #1"
    row = {"query": name, "rank": 1, "status": "error", "reason": "a & b"}
    text = page([{"rows": [row], "shapes": [], "files": [f"{name}.png"]}], geo)
    assert "<i>" not in text and "<b>" not in text and "a &amp; b" in text
    assert 'src="%3Ci%3E50%25%20%231.png"' in text
    seen = overview(geo)
    assert len(base64.b64decode(seen["jpeg"])) <= 300 * 1024
    assert (seen["width"], seen["height"]) == pytest.approx((3000, 2000), abs=2)
    assert scale_bar(geo) == {"percent": pytest.approx(16.667), "text": "5 km"}
    small = GeoMap(write_map(tmp_path / "small.tif", image[:64, :64], from_origin(LEFT, TOP, 1, 1)), 1.0, Reader("opt"))
    assert scale_bar(small) == {"percent": pytest.approx(15.625), "text": "10 m"}


def test_the_page_shows_where_queries_lie(browser, answered):
    browser.get((answered.out / "answers.html").as_uri())
    assert browser.get_log("browser") == [], "the console is silent"
    browser.execute_script("for (const one of document.images) one.loading = 'eager'")
    images = browser.execute_script(
        "const images = [...document.images, ...document.querySelectorAll('image')];"
        "return Promise.all(images.map(one => one.decode().then(() => true, () => false)))")
    assert images == [True, True], "of the query and of the map"
    ground_box, box, bar = browser.execute_script(
        "const box = s => { const b = document.querySelector(s).getBoundingClientRect();"
        "return [b.x, b.y, b.width, b.height] }; return [box('svg image'), box('polygon'), box('.bar')]")
    scale = ground_box[2] / 420
    shown = np.array([box[0] - ground_box[0], box[1] - ground_box[1], box[2], box[3]]) / scale
    assert shown == pytest.approx([120, 200, 100, 100], abs=1), "px of the map"
    assert bar[2] == pytest.approx(scale * 100, abs=1) and "1 km" in browser.page_source
    colours = browser.execute_script("return [...document.querySelectorAll('polygon')].map("
                                     "one => getComputedStyle(one).stroke)")
    assert colours == ["rgb(0, 158, 115)"], "located, in green"
    (name, size, x, y), (left, top, right, bottom), shape = browser.execute_script(
        "const n = document.querySelector('.name'), at = n.getBoundingClientRect(),"
        "p = document.querySelector('polygon').getBoundingClientRect(),"
        "i = document.images[0], b = i.getBoundingClientRect();"
        "return [[n.textContent, parseFloat(getComputedStyle(n).fontSize), at.x + at.width / 2, at.y],"
        "[p.left, p.top, p.right, p.bottom], b.width / b.height * i.naturalHeight / i.naturalWidth]")
    assert name == "here" and size >= 12 and x == pytest.approx((left + right) / 2, abs=1) and top < y < bottom
    assert shape == pytest.approx(1 / (1 - STRIP), rel=0.01), "the picture without its legend, which is too small there"
    assert browser.execute_script("document.querySelector('svg a').dispatchEvent(new MouseEvent('click',"
                                  "{bubbles: true, cancelable: true, view: window}));"
                                  "return document.querySelector('.query:target h2').textContent.trim()"
                                  ) == "here: located"


def test_what_is_not_on_this_map_has_a_best_place_and_no_probability(tmp_path):
    """Which would be among this map's places, and 1.0 where the best of them leads."""
    geo = GeoMap(write_map(tmp_path / "map.tif", ground(200), from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    query = SimpleNamespace(pixels=np.zeros((50, 50, 3), np.uint8))
    answers = [Answer(0, 100.0, 80.0, 30.0, 0.21, probability=1.0), Answer(0, 60.0, 80.0, 0.0, 0.2)]
    search = SimpleNamespace(zoom_of=lambda answer: 1.0)
    for status in ("not on this map", "ambiguous"):
        rows = describe("q", query, Location(status, "", answers, 500.0, search), geo)
        has = status == "ambiguous"
        assert [row.get("probability") for row in rows] == ([1.0, 0.0] if has else [None, None])
        assert [row.get("radius") for row in rows] == ([500.0, None] if has else [None, None])
        shapes = shapes_of(query, answers, rows, geo)
        assert {shape["properties"]["part"] for shape in shapes} == {"footprint", "centre", *["90% radius"] * has}
        text = page([{"rows": rows, "shapes": shapes, "files": []}], geo)
        assert (f"<dt>{'x, y' if has else 'best place'}</dt><dd>{LEFT + 1000:.1f}, {TOP - 800:.1f}</dd>" in text
                and "<dt>score</dt><dd>0.21</dd>" in text and ("<dt>probability</dt>" in text) == has)
        assert 'class="yes"' in text if has else 'class="no"' in text
        assert 'class="name"' in text
    assert 'class="name"' not in page([{"rows": rows, "shapes": shapes, "files": []}] * 31, geo), "too many to be read"
    flat = {"query": "q", "rank": 1, "status": "too little texture", "reason": ""}
    assert "grey levels vary too little" in page([{"rows": [flat], "shapes": [], "files": []}], geo), "no row is empty"


@pytest.mark.parametrize("status, label", [("located", "answer"), ("ambiguous", "answer"),
                                           ("not on this map", "best place looked at")])
def test_a_picture_has_the_colours_of_the_page(status, label):
    figure, (axis,) = panels()
    query = SimpleNamespace(pixels=np.zeros((50, 50, 3), np.uint8), truth=(42.0, 40.0))
    answers = [Answer(0, 40.0, 40.0, 0.0, 0.5), Answer(0, 90.0, 40.0, 0.0, 0.4)]
    location = Location(status, answers=answers)
    handles = draw_footprints(axis, query, location, (0, 0, 200, 200))
    beside = draw_footprints(axis, query, location, (50, 0, 200, 200))
    plt.close(figure)
    assert len(beside) == 2, "no ring where it lies beside what is shown, nor in the legend"
    assert [handle.get_label() for handle in handles] == [label, "next best", "own georeference"]
    assert [handle.get_color() for handle in handles[:2]] == [COLOURS[status], COLOURS["alternative"]]
    assert handles[0].is_dashed() == (status == "not on this map")


def test_a_picture_is_transparent_beside_the_map_and_not_behind_its_legend(answered):
    image = np.array(Image.open(answered.out / "here.png"))
    panel, legend = np.split(image, [round(len(image) * (1 - STRIP)) + 3])
    green = np.abs(image[..., :3].astype(int) - (0, 158, 115)).max(-1) < 20
    assert (panel[:-3, image.shape[1] // 2, 3] == 0).all(), "between the two"
    assert (legend[5:, ..., 3] == 255).all() and (legend[..., :3] > 250).all(-1).mean() > 0.8
    assert green[:len(panel)].sum() > 1000 and green[len(panel):].sum() > 100, "the answer, and its line in the legend"


def test_statuses_are_counted_in_the_order_of_the_page_on_use():
    text = (ROOT / "docs/use.md").read_text()
    table = text[text.index("| status | when |"):].split("\n\n")[0]
    named = [name for line in table.splitlines()[2:] for name in re.findall(r"`([^`]*)`", line.split("|")[1])]
    assert [*named, "alternative"] == [*COLOURS] and {*OUTCOMES} < {*named}
    rows = [{"status": status, "radius": radius} for status, radius in
            (("error", None), ("not on this map", None), ("error", None), ("located", 30.0), ("located", 50.0))]
    assert summary(rows) == "2 located (90% within 40 m in the median), 1 not on this map, 2 error"


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1200, "dark")])
def test_the_page_fits_its_screen(browser, answered, width, scheme):
    require_fit(browser, answered.out / "answers.html", width, scheme)


# A folder ------------------------------------------------------------------------------------------------------------

def test_a_folder_that_was_killed_is_gone_on_with(run, tmp_path):
    """Three of its queries are bad; what was answered before is not asked again, and nothing half done stays."""
    image = ground(200, seed=4)
    write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    folder, out = tmp_path / "queries", tmp_path / "out"
    folder.mkdir()
    for number in range(9):
        left, top = 12 * number, 10 * number
        write_map(folder / f"q{number:02}.tif", image[top:top + 44, left:left + 44],
                  from_origin(LEFT + 10 * left, TOP - 10 * top, 10, 10))
    (folder / "q01b.tif").write_text("no image")
    (folder / "q05b.tif").write_bytes((folder / "q05.tif").read_bytes()[:3000])
    cv2.imwrite(str(folder / "q07b.png"), image[:44, :44])            # of no known resolution
    command = ["--query", folder, "--prior", "own", "--radius", "60", "--top_k", "1"]
    program = Program("tools/locate.py", "--run", run, "--map", tmp_path / "map.tif", "--out", out, "--cache",
                      out / "cache", "--device", "cpu", "--amp", "off", *command)
    program.stop_when(lambda: (out / "answers.csv").is_file() and len(rows_of(out)) >= 5)
    before = rows_of(out)
    assert 5 <= len(before) < 12
    done = locate(run, *command, map_file=tmp_path / "map.tif", out=out)
    assert done.returncode == 2 and done.stderr.count("error: ") == 3, done.stderr
    rows = {row["query"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 12
    bad = {"q01b": "cannot be opened", "q05b": "cannot be read", "q07b": "give --resolution"}
    for row in before:
        if row["query"] not in bad:
            assert rows[row["query"]] == row and f"{row['query']}: " not in done.stdout, "not asked again"
    for name, row in rows.items():
        assert row["status"] == ("error" if name in bad else "located") and bad.get(name, "") in row["reason"], name
        files = {file.name for file in out.glob(f"{name}.*")}
        assert files == (set() if name in bad else {f"{name}{suffix}" for suffix in (
            ".tif", ".png", ".points", ".gcps.tif")}), "as of a folder that was not killed"
    assert not list(out.glob(".*part*"))
    said = done.stdout.splitlines()[-1]
    assert said.startswith("9 located (90% within") and "3 error" in said
    page_text = (out / "answers.html").read_text()
    assert page_text.count('class="query"') == 12 and page_text.count("<polygon") == 9


def test_the_page_on_use_names_every_file_and_column():
    text = (ROOT / "docs/use.md").read_text()
    assert len(text.splitlines()) <= 90
    files = [TABLE, SHAPES, JOURNAL, *AT_THE_END, *(f"NAME{suffix}" for suffix in OF_A_QUERY)]
    missing = [name for name in (*COLUMNS, *files) if f"`{name}`" not in text]
    assert missing == []
