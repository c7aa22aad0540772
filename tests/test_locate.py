"""tools/locate.py and its maps: coordinates, windows, answers, statuses, and what is refused."""
import csv
import json
import math
import os
import re
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import cv2
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import rasterio.vrt
import torch
from rasterio.transform import Affine, from_origin

from conftest import script
from shared.mapping.cells import CellNetwork, load_cell_network
from shared.mapping.finer_cells import FinerCells
from shared.mapping.localization import Search, map_of
from shared.mapping.locator import windows_of
from shared.mapping.maps import GeoMap, MapFeatures
from shared.mapping.turned import cut_turned
from shared.model import PseudoSiamese
from shared.reading.raster import Reader
from test_localization import displaced, ground
from tools.answers_on_map import AT_THE_END, Journal

CPU = torch.device("cpu")
LEFT, TOP = 500_000.0, 3_800_000.0
UTM = "EPSG:32611"


def write_map(file, image, transform, crs=UTM, **more):
    bands = image.transpose(2, 0, 1) if image.ndim == 3 else image[None]
    with rasterio.open(file, "w", driver="GTiff", width=image.shape[1], height=image.shape[0], count=len(bands),
                       dtype=image.dtype, crs=crs, transform=transform, **more) as out:
        out.write(bands)
    return file


def locate(run, *flags, map_file, out):
    return script("tools/locate.py", "--run", run, "--map", map_file, "--out", out, "--cache", out / "cache",
                  "--device", "cpu", "--amp", "off", *flags)


SQUARE = (120, 60)                                      # row and column of the source pixel that is looked for
TRANSFORMS = {
    "north up": (from_origin(LEFT, TOP, 10, 10), UTM),
    "south up": (Affine(10, 0, LEFT, 0, 10, TOP - 2000), UTM),
    "turned": (Affine.translation(LEFT, TOP) * Affine.rotation(-30) * Affine.scale(10, -10), UTM),
    "finer": (from_origin(LEFT, TOP, 5, 5), UTM),
    "degrees": (from_origin(-117.0, 34.4, 1e-4, 1e-4), "EPSG:4326"),
    "feet": (from_origin(6_500_000, 1_900_000, 30, 30), "EPSG:2229"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_coordinates_are_exact_to_half_a_pixel(tmp_path, name):
    transform, crs = TRANSFORMS[name]
    image = np.full((200, 160, 3), 40, np.uint8)
    row, column = SQUARE
    image[row - 4:row + 5, column - 4:column + 5] = 250
    geo = GeoMap(write_map(tmp_path / "map.tif", image, transform, crs), 10.0, Reader("opt"))
    seen, shown = geo.read(0, 0, geo.width, geo.height)
    down, across = np.nonzero(seen[..., 0] > 145)
    x, y = geo.to_map(across.mean() + 0.5, down.mean() + 0.5)
    true_x, true_y = transform * (column + 0.5, row + 0.5)
    to_grid = pyproj.Transformer.from_crs(crs, geo.crs, always_xy=True)
    off = np.subtract(to_grid.transform(x, y), to_grid.transform(true_x, true_y))
    assert np.abs(off).max() < 5, "half a pixel of 10 m"
    lonlat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    assert geo.to_lonlat(across.mean() + 0.5, down.mean() + 0.5) == pytest.approx(lonlat, abs=1e-9)
    assert geo.from_crs(true_x, true_y, crs) == pytest.approx((across.mean() + 0.5, down.mean() + 0.5), abs=0.5)
    assert shown.all() or name in ("turned", "feet"), "beyond a map that lies askew there is nothing"
    assert name != "turned" or shown.mean() < 0.8


def test_windows_give_what_the_whole_gives(tmp_path, run, monkeypatch):
    image = ground(400)
    image[:, :40] = 0
    file = write_map(tmp_path / "map.tif", image[:, :370], from_origin(LEFT, TOP, 10, 10), nodata=0)
    monkeypatch.setattr("shared.mapping.maps.BLOCK", 160)
    torch.manual_seed(0)
    network = CellNetwork(PseudoSiamese("resnet18", pooling="cells", stages=3).eval(), 8, CPU, nullcontext)
    geo = GeoMap(file, 10.0, Reader("opt"))
    in_blocks = MapFeatures(geo, network, run / "weights.pt", tmp_path / "kept")
    window = in_blocks.window(50, 130, 300, 333)
    monkeypatch.setattr("shared.mapping.maps.BLOCK", 1024)
    at_once = MapFeatures(geo, network, run / "weights.pt", None).window(50, 130, 300, 333)
    assert window.origin == at_once.origin == (48, 128) and window.cells.shape == at_once.cells.shape == (16, 26, 32)
    assert torch.equal(window.mask, at_once.mask) and (window.cells - at_once.cells).abs().max() < 0.002
    assert at_once.cells.std() > 0.05
    decoded = FinerCells(network.model).eval()
    network.finer = CellNetwork(decoded, 4, CPU, nullcontext)
    near = window.finer(200, 150, 40)
    of_all = map_of(network.finer, *geo.read(0, 0, geo.width, geo.height)).part(200, 150, 40)
    assert near.origin == of_all.origin == (160, 108) and near.cell == 4 and near.mask.all()
    assert (near.cells - of_all.cells).abs().max() < 0.002 and near.cells.std() > 0.05
    network.finer = None
    monkeypatch.setattr("shared.mapping.maps.BLOCK", 160)
    monkeypatch.setattr("shared.mapping.maps.map_of", None)                    # what is kept is not made again
    again = MapFeatures(geo, network, run / "weights.pt", tmp_path / "kept")
    assert torch.equal(again.window(50, 130, 300, 333).cells, window.cells)
    left = again.window(0, 0, 100, 100)
    assert left.mask[0, :, :40 // 8].sum() == 0 and left.mask[0, :, 40 // 8:].all()


def test_a_planted_query_is_located_and_a_foreign_one_is_not(tmp_path, run):
    image = ground(420, seed=3)
    file = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    write_map(tmp_path / "here.tif", image[200:300, 120:220], from_origin(LEFT + 1200, TOP - 2000, 10, 10))
    cv2.imwrite(str(tmp_path / "away.png"), ground(100, seed=8)[..., ::-1])
    cv2.imwrite(str(tmp_path / "water.png"), np.full((100, 100, 3), 90, np.uint8))
    out = tmp_path / "out"
    done = locate(run, "--query", tmp_path / "here.tif", "--check", "--top_k", "3", map_file=file, out=out)
    assert done.returncode == 0, done.stderr
    with open(out / "answers.csv") as table:
        rows = list(csv.DictReader(table))
    assert list(rows[0]) == ["query", "rank", "x", "y", "crs", "rotation", "scale", "score", "probability", "radius",
                             "status", "reason"]
    assert {row["crs"] for row in rows} == {UTM}
    assert rows[0]["status"] == "located" and float(rows[0]["rotation"]) == 0
    assert math.hypot(float(rows[0]["x"]) - (LEFT + 1700), float(rows[0]["y"]) - (TOP - 2500)) < 5
    assert "from its own georeference" in done.stdout and float(rows[0]["scale"]) == pytest.approx(1, abs=0.03)
    check_geojson(json.loads((out / "answers.geojson").read_text()), rows)
    with rasterio.open(out / "here.tif") as warped:
        assert warped.crs == UTM and warped.count == 4
        assert abs(warped.transform.c - (LEFT + 1200)) < 5 and abs(warped.transform.f - (TOP - 2000)) < 5
    assert (out / "here.png").read_bytes().startswith(b"\x89PNG")

    out = tmp_path / "more"
    done = locate(run, "--query", tmp_path / "away.png", tmp_path / "water.png", "--resolution", "10", map_file=file,
                  out=out)
    assert done.returncode == 0, done.stderr
    with open(out / "answers.csv") as table:
        status = {row["query"]: row["status"] for row in csv.DictReader(table) if row["rank"] == "1"}
    assert status["away"] in ("not on this map", "ambiguous") and status["water"] != "located"
    assert (out / "away.tif").exists() == (status["away"] == "ambiguous"), "what is written follows the status"
    assert (out / "away.png").exists() and not (out / "water.tif").exists()


def test_a_turned_query_and_a_prior(tmp_path, run):
    image = ground(420, seed=3)
    file = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    middle = Affine.translation(LEFT + 2500, TOP - 1700)
    write_map(tmp_path / "turned.tif", cut_turned(image, 250, 170, 120, 40.0),
              middle * Affine.rotation(-40) * Affine.scale(10, -10) * Affine.translation(-60, -60))
    prior = f"{LEFT + 2300},{TOP - 1800}"
    done = locate(run, "--query", tmp_path / "turned.tif", "--rotation", "unknown", "--check",
                  "--prior", prior, "--radius", "800", map_file=file, out=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out/answers.csv") as table:
        best = next(csv.DictReader(table))
    assert abs((float(best["rotation"]) + 180) % 360 - 180) < 2, "against its own georeference, by which it is seen"
    assert math.hypot(float(best["x"]) - (LEFT + 2500), float(best["y"]) - (TOP - 1700)) < 20
    off, turned = re.search(r"; (.*) m and (.*)° from its own georeference", done.stdout).groups()
    assert float(off) < 20 and float(turned) < 2
    shapes = json.loads((tmp_path / "out/answers.geojson").read_text())["features"]
    xx, xy, yy = shapes[0]["properties"]["covariance_m2"]
    assert 0 <= xx < 400 and 0 <= yy < 400 and xy ** 2 <= xx * yy + 1, "within 2 px, and a covariance"
    cv2.imwrite(str(tmp_path / "plain.png"), cut_turned(image, 250, 170, 120, 40.0)[..., ::-1])
    done = locate(run, "--query", tmp_path / "plain.png", "--rotation", "unknown", "--resolution", "10",
                  "--prior", prior, "--radius", "800", map_file=file, out=tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    best = rows_of(tmp_path / "plain")[0]
    assert abs(float(best["rotation"]) - 40) < 2, "without one, against its upper edge"
    assert math.hypot(float(best["x"]) - (LEFT + 2500), float(best["y"]) - (TOP - 1700)) < 20


def check_geojson(collection, rows):
    """RFC 7946: members, closed counter-clockwise rings, longitude and latitude."""
    assert collection["type"] == "FeatureCollection" and "crs" not in collection
    shapes = collection["features"]
    assert {shape["properties"]["part"] for shape in shapes} == {"footprint", "centre", "90% radius"}
    for shape in shapes:
        assert shape["type"] == "Feature" and {"geometry", "properties"} <= shape.keys()
        coordinates = shape["geometry"]["coordinates"]
        if shape["geometry"]["type"] == "Point":
            coordinates = [coordinates]
        else:
            ring, = coordinates
            assert ring[0] == ring[-1] and len(ring) >= 4
            xs, ys = np.array(ring).T
            assert np.sum(xs[:-1] * ys[1:] - xs[1:] * ys[:-1]) > 0, "counter-clockwise"
            coordinates = ring
        assert all(-117.1 < x < -116.9 and 34.2 < y < 34.4 for x, y in coordinates), "about the map, in degrees"
    lonlat = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(
        float(rows[0]["x"]), float(rows[0]["y"]))
    centre = next(shape for shape in shapes if shape["properties"]["part"] == "centre")
    assert centre["geometry"]["coordinates"] == pytest.approx(list(lonlat), abs=1e-6)


def bad_maps(folder):
    image, transform = ground(200), from_origin(LEFT, TOP, 10, 10)
    (folder / "text.tif").write_text("no map")
    return {
        "text.tif": (folder / "text.tif", "cannot be opened"),
        "no_crs.tif": (write_map(folder / "no_crs.tif", image, transform, crs=None), "has no CRS"),
        "nodata.tif": (write_map(folder / "nodata.tif", image * 0, transform, nodata=0), "nothing but nodata"),
        "coarse.tif": (write_map(folder / "coarse.tif", image, from_origin(LEFT, TOP, 300, 300)), "pixels of 300 m"),
    }


def test_what_is_refused(tmp_path, run):
    image = ground(200)
    good = write_map(tmp_path / "good.tif", image, from_origin(LEFT, TOP, 10, 10))
    query = tmp_path / "query.png"
    cv2.imwrite(str(query), image[:80, :80])
    cases = [(file, ["--query", query, "--resolution", "10"], words) for file, words in bad_maps(tmp_path).values()]
    cases += [(good, ["--query", query, "--resolution", "10", "--prior", "0,0"], "go together"),
              (good, ["--query", query, "--resolution", "10", "--tie_points", "1025"], "more than 1024 tell nothing"),
              (good, ["--query", tmp_path / "*.jp2", "--resolution", "10"], "there is no image")]
    for map_file, flags, words in cases:
        done = locate(run, *flags, map_file=map_file, out=tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ") and not (tmp_path / "out/answers.csv").exists()


def test_a_run_that_is_not_enough_says_what_is_missing(tmp_path, run):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/weights.pt").write_bytes((run / "weights.pt").read_bytes())
    (tmp_path / "old").mkdir()
    torch.save({"channels": 16, "widths": [32], "img_size": 64, "model": {}}, tmp_path / "old/weights.pt")
    for name, words in (("bare", "code_Match/calibrate.py --run"), ("old", "a matcher for positions alone")):
        done = locate(tmp_path / name, "--query", "query.tif", map_file="map.tif", out=tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def rows_of(out):
    with open(out / "answers.csv") as table:
        return list(csv.DictReader(table))


def test_one_command_at_a_time_writes_into_a_folder(tmp_path, run):
    journal = Journal(tmp_path / "out", {"run": "", "map": ""}, [], {}, fresh=False)
    done = locate(run, "--query", write_map(tmp_path / "map.tif", ground(64), from_origin(LEFT, TOP, 10, 10)),
                  map_file=tmp_path / "map.tif", out=tmp_path / "out")
    assert done.returncode == 2 and "another command is writing there" in done.stderr
    journal.lock.release()
    Journal(tmp_path / "out", {"run": "", "map": ""}, [], {}, fresh=False).lock.release()


def test_a_bad_query_is_a_row_and_the_others_go_on(tmp_path, run):
    image = ground(200, seed=4)
    good = write_map(tmp_path / "good.tif", image, from_origin(LEFT, TOP, 10, 10))
    folder = tmp_path / "queries"
    folder.mkdir()
    write_map(folder / "b_fits.tif", image[50:150, 60:160], from_origin(LEFT + 600, TOP - 500, 10, 10))
    cv2.imwrite(str(folder / "a_no_place.png"), image[:80, :80])
    write_map(folder / "c_large.tif", ground(240), from_origin(LEFT, TOP, 10, 10))
    write_map(folder / "d_small.tif", image[:20, :20], from_origin(LEFT, TOP, 10, 10))
    write_map(folder / "e_coarse.tif", image[:50, :50], from_origin(LEFT, TOP, 35, 35))
    (folder / "f_text.tif").write_text("no image")
    fine = cv2.resize(image[50:150, 60:160], (300, 300), interpolation=cv2.INTER_CUBIC)
    write_map(folder / "g_fine.tif", fine, from_origin(LEFT + 600, TOP - 500, 10 / 3, 10 / 3))
    (folder / "._b_fits.tif").write_text("no image")
    shutil.copy(folder / "b_fits.tif", folder / os.fsdecode(b"h_\xe9.tif"))
    done = locate(run, "--query", folder, tmp_path / "none.png", "--check", map_file=good, out=tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("error: ") == 6, "all before the long work"
    rows = {row["query"]: row for row in rows_of(tmp_path / "out") if row["rank"] == "1"}
    reasons = {"a_no_place": "give --resolution", "c_large": "of the map's 200 x 200", "d_small": "at least 32",
               "f_text": "cannot be opened", "h__": "not UTF-8", "none": "is not there"}
    assert {name: row["status"] for name, row in rows.items()} == {
        "b_fits": "located", "g_fine": "located", "e_coarse": "resolution does not fit",
        **dict.fromkeys(reasons, "error")}
    assert all(words in rows[name]["reason"] for name, words in reasons.items())

    for flags, words in ((["--prior", "0,0", "--radius", "100"], "outside the map"),
                         (["--prior", "here", "--radius", "100"], "give X,Y"),
                         (["--check"], "no georeference of its own"),
                         (["--prior", "-117.0,34.33", "--radius", "400"], None)):
        done = locate(run, "--query", folder / "a_no_place.png", "--resolution", "10", *flags, "--fresh", map_file=good,
                      out=tmp_path / "more")
        assert done.returncode == (2 if words else 0) and (not words or words in done.stderr), done.stderr
    # A command of which nothing could be looked for is mended without --fresh: it left no answer.
    for flags, status in ((["--query_mask", tmp_path / "none"], 2), (["--prior", "0,0", "--radius", "9"], 2), ([], 0)):
        done = locate(run, "--query", folder / "b_fits.tif", *flags, map_file=good, out=tmp_path / "mended")
        assert done.returncode == status, done.stderr
    assert [row["status"] for row in rows_of(tmp_path / "mended") if row["rank"] == "1"] == ["located"]


def test_no_file_of_the_users_is_written_over(tmp_path, run, monkeypatch):
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    for name, left in (("one", 20), ("two", 60)):
        (tmp_path / name).mkdir()
        write_map(tmp_path / name / "sar.tif", image[40:140, left:left + 100],
                  from_origin(LEFT + 10 * left, TOP - 400, 10, 10))
    cv2.imwrite(str(tmp_path / "two/map.png"), image[:90, :90])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    flags = ["--resolution", "10", "--query", tmp_path / "one/sar.tif", tmp_path / "two/sar.tif",
             tmp_path / "two/map.png"]
    done = locate(run, *flags, map_file=good, out=tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert all(file.read_bytes() == content for file, content in before.items())
    rows = {row["query"]: row for row in rows_of(tmp_path / "one") if row["rank"] == "1"}
    assert list(rows) == ["sar_2", "sar_3", "map"]
    assert float(rows["sar_2"]["x"]) == pytest.approx(LEFT + 700, abs=5)
    assert float(rows["sar_3"]["x"]) == pytest.approx(LEFT + 1100, abs=5)
    assert (tmp_path / "one/sar_2.tif").exists() and (tmp_path / "one/sar_3.tif").exists()


def test_the_same_command_goes_on_and_another_is_refused(tmp_path, run):
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    files = []
    for number in range(3):
        left = 20 * number
        files.append(write_map(tmp_path / f"q{number}.tif", image[40:140, left:left + 100],
                               from_origin(LEFT + 10 * left, TOP - 400, 10, 10)))
    out = tmp_path / "out"
    assert locate(run, "--query", *files, map_file=good, out=out).returncode == 0
    whole = rows_of(out)
    journal = (out / "answers.jsonl").read_text().splitlines(keepends=True)
    # Killed while the third answer was written down: its picture is there already, and nothing of the end.
    journal = [line for line in journal if '"output"' not in line]
    (out / "answers.jsonl").write_text("".join(journal[:-1]) + journal[-1][:40])
    for name in ("q0.png", *AT_THE_END):
        (out / name).unlink(missing_ok=True)
    (out / ".q2.gcps.tif.part.tif").write_text("half of it")
    done = locate(run, "--query", *files, map_file=good, out=out)
    assert done.returncode == 0 and rows_of(out) == whole
    assert "q2: " in done.stdout and "q0: " not in done.stdout and not (out / "q0.png").exists(), "only what is left"
    assert not list(out.glob(".*part*"))
    assert len(json.loads((out / "answers.geojson").read_text())["features"]) >= 9
    other = locate(run, "--query", *files, "--rotation", "15", map_file=good, out=out)
    assert other.returncode == 2 and "another command (it differs in rotation)" in other.stderr
    # A map that was mended is another map: nothing of the old one is used.
    write_map(good, image, from_origin(LEFT + 3000, TOP, 10, 10))
    moved = locate(run, "--query", *files, map_file=good, out=out)
    assert moved.returncode == 2 and "differs in map" in moved.stderr
    moved = locate(run, "--query", files[0], "--fresh", map_file=good, out=out)
    assert moved.returncode == 0 and float(rows_of(out)[0]["x"]) == pytest.approx(LEFT + 3500, abs=5)


def test_a_collar_of_a_query_is_not_searched_with(tmp_path, run):
    """The search sees the mask: the same answer as without a collar of a constant, that nothing declares."""
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    query = image[40:160, 30:150].astype(np.float32)
    mask = np.add.outer(np.arange(120), np.arange(120)) < 110         # a triangle, as of a turned scene: two fifths
    query[mask] = -9999
    write_map(tmp_path / "collar.tif", query, from_origin(LEFT + 300, TOP - 400, 10, 10))
    done = locate(run, "--query", tmp_path / "collar.tif", "--scale", "db", map_file=good, out=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "out")[0]
    assert row["status"] == "located"
    assert math.hypot(float(row["x"]) - (LEFT + 900), float(row["y"]) - (TOP - 1000)) < 10


def test_a_map_of_many_windows_is_searched_as_a_whole(tmp_path, run, monkeypatch):
    """Every place of a query lies in one of the windows, and the answer is that of the map at once."""
    image = ground(300, seed=5)
    geo = GeoMap(write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10)), 10.0, Reader("opt"))
    network, _ = load_cell_network(run, CPU, nullcontext)
    whole = MapFeatures(geo, network, run / "weights.pt", None)
    monkeypatch.setattr("shared.mapping.maps.BLOCK", 64)
    monkeypatch.setattr("shared.mapping.maps.AT_ONCE", 1)
    parted = MapFeatures(geo, network, run / "weights.pt", None)
    for x, y in ((41, 41), (255, 214)):
        answers = []
        for features, area in ((whole, (0, 0, 300, 300)), (parted, (0, 0, 300, 300)), (parted, (0, 30, 299, 297))):
            search = Search(network, image[y - 40:y + 40, x - 40:x + 40], [0.0], 500.0)
            for window in windows_of(features, search, SimpleNamespace(pixels=search.query), area):
                search.look_at(window)
            answers.append(search.answers()[0])
        for answer in answers[:3 if y > 70 else 2]:
            assert math.hypot(answer.x - x, answer.y - y) < 0.5
        assert answers[0].x == pytest.approx(answers[1].x, abs=0.2)


def test_tie_points_are_written_and_the_query_is_warped_by_them(tmp_path, run):
    """Of a query whose parts are displaced, in a file of its own pixels: points as QGIS takes them, and a map of it."""
    image = cv2.GaussianBlur(ground(400, seed=3), (0, 0), 1.0)
    seen, offset = displaced(image, amplitude=6.0)
    file = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    fine = cv2.resize(seen[60:340, 60:340], (560, 560), interpolation=cv2.INTER_CUBIC)
    write_map(tmp_path / "sar.tif", fine, from_origin(LEFT + 600, TOP - 600, 5, 5))
    out = tmp_path / "out"
    command = ["--query", tmp_path / "sar.tif", "--prior", "own", "--radius", "300", "--tie_points", "36", "--warp"]
    done = locate(run, *command, map_file=file, out=out)
    assert done.returncode == 0 and "tie points kept" in done.stdout, done.stderr
    lines = (out / "sar.points").read_text().splitlines()
    assert lines[0].startswith("#CRS: PROJCRS") and lines[1] == "mapX,mapY,sourceX,sourceY,enable,dX,dY,residual"
    points = np.array([[float(value) for value in line.split(",")] for line in lines[2:]])
    assert points.shape == (36, 8) and points[:, 4].mean() > 0.7
    kept = points[points[:, 4] == 1]
    places = np.column_stack([kept[:, 2], -kept[:, 3]]) / 2 + 60     # px of the displaced image
    true = places + offset(places)
    off = np.hypot(kept[:, 0] - LEFT - 10 * true[:, 0], kept[:, 1] - TOP + 10 * true[:, 1]) / 10
    assert np.median(off) <= 1.5, "px"
    assert kept[:, 7] == pytest.approx(np.hypot(kept[:, 5], kept[:, 6]), abs=0.01)
    with rasterio.open(out / "sar.gcps.tif") as copy:
        assert [(p.col, -p.row, p.x, p.y) for p in copy.gcps[0]] == [tuple(point) for point in kept[:, [2, 3, 0, 1]]]
    with rasterio.open(out / "sar.warped.tif") as source, rasterio.vrt.WarpedVRT(
            source, transform=from_origin(LEFT + 1000, TOP - 1000, 10, 10), width=200, height=200,
            resampling=rasterio.enums.Resampling.average) as by_them:
        under, straight = (part[100:300, 100:300].astype(float) for part in (image, seen))
        off = np.abs(by_them.read().transpose(1, 2, 0) - under).mean()
        assert off < 0.6 * np.abs(straight - under).mean(), "warped by the points"
    with open(out / "sar.tie_points.csv") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 36 and {"east_m", "north_m", "confidence", "kept"} <= rows[0].keys()
    with rasterio.open(out / "sar.tif") as warped:
        left, top = (round((warped.transform.c - LEFT) / 10), round((TOP - warped.transform.f) / 10))
        bands = warped.read([1, 2, 3]).transpose(1, 2, 0)
    middle = np.s_[40:-40, 40:-40]
    under = image[top:top + len(bands), left:left + bands.shape[1]][middle].astype(float)
    straight = seen[top:top + len(bands), left:left + bands.shape[1]][middle]
    assert np.abs(bands[middle] - under).mean() < 0.6 * np.abs(straight - under).mean(), "warped by the points"
    again = locate(run, *command, "--top_k", "4", "--fresh", map_file=file, out=out)
    assert again.returncode == 0 and (out / "sar.points").exists() and not (out / "sar_2.points").exists()


def test_what_the_user_puts_beside_the_answers_stays(tmp_path, run):
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    (tmp_path / "q").mkdir()
    (tmp_path / "q/bad.tif").write_text("no image")
    out = tmp_path / "out"
    assert locate(run, "--query", tmp_path / "q/bad.tif", map_file=good, out=out).returncode == 2
    write_map(out / "bad.tif", image[:90, :90], from_origin(LEFT, TOP, 10, 10))
    mine = (out / "bad.tif").read_bytes()
    write_map(tmp_path / "q/bad.tif", image[40:140, 20:120], from_origin(LEFT + 200, TOP - 400, 10, 10))
    done = locate(run, "--query", tmp_path / "q/bad.tif", map_file=good, out=out)
    assert done.returncode == 0 and (out / "bad.tif").read_bytes() == mine and (out / "bad_2.tif").exists()
    assert "bad_2: band" in done.stdout, "what was taken of it is said"
    done = locate(run, "--query", out / "bad.tif", "--fresh", map_file=good, out=out)
    assert done.returncode == 0 and (out / "bad.tif").read_bytes() == mine, "an input, and none of ours"
    for name in ("answers.jsonl", "answers.geojson", "answers.csv"):
        other = tmp_path / f"mine {name}"
        other.mkdir()
        (other / name).write_text("my notes\n")
        done = locate(run, "--query", out / "bad.tif", "--fresh", map_file=good, out=other)
        assert done.returncode == 2 and "give another --out" in done.stderr
        assert (other / name).read_text() == "my notes\n" and len(list(other.iterdir())) == 1
    done = locate(run, "--query", out / "bad.tif", map_file=good, out=good)
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr


def test_a_query_that_changes_in_its_source_is_answered_anew(tmp_path, run):
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    source, vrt = tmp_path / "source.tif", tmp_path / "query.vrt"
    write_map(source, image[40:140, 20:120], from_origin(LEFT + 200, TOP - 400, 10, 10))
    with rasterio.open(source) as opened:
        rasterio.shutil.copy(opened, vrt, driver="VRT")
    out = tmp_path / "out"
    assert locate(run, "--query", vrt, map_file=good, out=out).returncode == 0
    assert float(rows_of(out)[0]["x"]) == pytest.approx(LEFT + 700, abs=5)
    write_map(source, image[40:140, 60:160], from_origin(LEFT + 200, TOP - 400, 10, 10))
    assert locate(run, "--query", vrt, map_file=good, out=out).returncode == 0
    assert float(rows_of(out)[0]["x"]) == pytest.approx(LEFT + 1100, abs=5)
    assert (out / "query.tif").exists()
    write_map(source, image[40:140, 60:160] // 100, from_origin(LEFT + 200, TOP - 400, 10, 10))        # nearly flat
    assert locate(run, "--query", vrt, map_file=good, out=out).returncode == 0
    has_place = rows_of(out)[0]["status"] in ("located", "ambiguous")
    assert not has_place and not (out / "query.tif").exists(), "what is written follows the status of now"


def test_no_answer_lies_beyond_the_radius(tmp_path, run):
    image = ground(420, seed=3)
    file = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    write_map(tmp_path / "here.tif", image[200:300, 120:220], from_origin(LEFT + 1200, TOP - 2000, 10, 10))
    for off, is_within in ((250, True), (600, False)):
        x, y = LEFT + 1700 + off, TOP - 2500
        out = tmp_path / f"off {off}"
        done = locate(run, "--query", tmp_path / "here.tif", "--prior", f"{x},{y}", "--radius", "300", map_file=file,
                      out=out)
        assert done.returncode == 0, done.stderr
        places = [(float(row["x"]), float(row["y"])) for row in rows_of(out) if row["x"]]
        assert len(places) > 1 and all(math.hypot(a - x, b - y) <= 300.01 for a, b in places)
        assert (rows_of(out)[0]["status"] == "located") == is_within
        assert (math.hypot(places[0][0] - LEFT - 1700, places[0][1] - TOP + 2500) < 5) == is_within


def test_a_full_disk_is_no_fault_of_the_query(tmp_path, run):
    """It ends the command in one sentence; the same command goes on, and nothing half done stays."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    image = ground(200, seed=4)
    good = write_map(tmp_path / "map.tif", image, from_origin(LEFT, TOP, 10, 10))
    files = [write_map(tmp_path / f"q{number}.tif", image[40:140, 20 * number:20 * number + 100],
                       from_origin(LEFT + 200 * number, TOP - 400, 10, 10)) for number in range(2)]
    out = tmp_path / "out"
    out.mkdir()
    os.symlink("/dev/full", out / ".q1.png.part")
    command = ["--query", *files, "--prior", "own", "--radius", "300", "--tie_points", "4"]
    done = locate(run, *command, map_file=good, out=out)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {out}/q1.png cannot be written (No space left")
    assert len(done.stderr.strip().splitlines()) == 1
    assert [row["status"] for row in rows_of(out) if row["rank"] == "1"] == ["located"] and (out / "q1.tif").exists()
    # What it left of q1 goes, also where q1 has no place any more.
    write_map(files[1], image[40:140, 20:120] // 100, from_origin(LEFT + 200, TOP - 400, 10, 10))
    done = locate(run, *command, map_file=good, out=out)
    assert done.returncode == 0 and "q0: " not in done.stdout
    assert rows_of(out)[-1]["status"] not in ("located", "ambiguous", "error")
    assert not list(out.glob("q1.tif")) + list(out.glob("q1.*points*")) + list(out.glob(".*.part"))
    assert "1 located (90% within" in done.stdout.splitlines()[-1]


def test_what_an_answer_does_not_tell_by_itself_is_a_reason(tmp_path, run):
    image = ground(300, seed=6)
    with_hole = image.copy()
    with_hole[90:200, 90:200] = 0
    file = write_map(tmp_path / "map.tif", with_hole, from_origin(LEFT, TOP, 10, 10), nodata=0)
    write_map(tmp_path / "in_the_hole.tif", image[100:180, 100:180], from_origin(LEFT + 1000, TOP - 1000, 10, 10))
    done = locate(run, "--query", tmp_path / "in_the_hole.tif", "--prior", "own", "--radius", "100", map_file=file,
                  out=tmp_path / "hole")
    assert done.returncode == 0, done.stderr
    row = rows_of(tmp_path / "hole")[0]
    assert row["status"] == "not on this map" and re.match(r"\d+% of what was searched shows nothing", row["reason"])
    assert "shows nothing" in done.stdout
    # A cell of this network is 4 px, and a query needs twelve of them for tie points.
    for side, has_points in ((44, False), (52, True)):
        write_map(tmp_path / f"of {side}.tif", image[20:20 + side, 220:220 + side],
                  from_origin(LEFT + 2200, TOP - 200, 10, 10))
        done = locate(run, "--query", tmp_path / f"of {side}.tif", "--prior", "own", "--radius", "60", "--tie_points",
                      "9", map_file=file, out=tmp_path / "tied")
        row = rows_of(tmp_path / "tied")[0]
        assert row["status"] in ("located", "ambiguous"), row
        assert row["reason"] == ("" if has_points else "no tie points: 44 x 44 px, and 48 are needed")
        assert (tmp_path / f"tied/of {side}.tie_points.csv").exists() == has_points
        with rasterio.open(tmp_path / f"tied/of {side}.gcps.tif") as copy:
            assert len(copy.gcps[0]) == 5 or has_points
        shutil.rmtree(tmp_path / "tied")
