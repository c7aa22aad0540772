"""What tools/locate.py leaves for other programs: layers, control points, the query itself with them, a page."""
import json
import sqlite3
from contextlib import contextmanager
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from test_localization import ground
from test_locate import LEFT, TOP, UTM, locate, rows_of, write_map

pyproj = pytest.importorskip("pyproj", reason="requirements-optional.txt is not installed")

from rasterio.transform import from_origin

from shared.localization import Answer
from shared.mapping.maps import GeoMap
from shared.plumbing.errors import OutputError
from shared.raster import Reader
from tools import locate as locate_tool
from tools.answers_on_map import AT_THE_END, shapes_of, write_package


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
    for row, point, shape in zip(rows, layers["centres"].geometry, layers["footprints"].geometry):
        place = float(row["x"]), float(row["y"])
        assert (point.x, point.y) == pytest.approx(place, abs=1e-3)
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
    assert capsys.readouterr().err == "no answers.gpkg without geopandas: pip install -r requirements-optional.txt\n"


def test_what_is_written_at_the_end_is_ours_or_not_written(answered, tmp_path):
    """The same command writes it again; a file of the user's of that name is refused before any work."""
    pytest.importorskip("geopandas", reason="requirements-optional.txt is not installed")
    done = locate(answered.run, *answered.command, map_file=answered.folder / "map.tif", out=answered.out)
    assert done.returncode == 0 and "here: " not in done.stdout, "all is answered"
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
