"""Where on a map is a SAR image, how is it turned, and can that be trusted?

    python tools/locate.py --run results/NAME --map map.tif --query sar.tif [sar2.png ...] --resolution 10
    python tools/locate.py --run results/NAME --map map.tif --query FOLDER --out answers
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --prior -118.2,34.1 --radius 3000
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --check
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --prior own --radius 500 --tie_points 64

--run: a run of code_Con/train.py with --pooling cells, calibrated by code_Match/calibrate.py. The map is whatever GDAL
opens that is georeferenced, in any CRS or by control points, in any kind of numbers (docs/data.md), read in windows of
ground metres; its cells are kept in --cache and used again. A query is the same, and is then seen north up; or an image
without a georeference, with --resolution (metres of a pixel on the ground). Rotations are those of the query as it is
seen. Several files, folders and globs are a list of queries. Writes to --out, as the answers come: answers.csv and
answers.jsonl, of each query a picture (NAME.png) and, where there is a place, the query warped onto the map (NAME.tif),
and at the end answers.geojson. With --tie_points also where parts of it lie, each by itself (NAME.tie_points.csv, and
NAME.points for QGIS), by which NAME.tif is then warped. The same command again goes on; --fresh starts over. "not on
this map" is an answer; "error" is a query that could not be read, with the reason, and makes the exit status 2.
"""
import argparse
import hashlib
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pyproj import CRS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.calibration import load_calibration, texture_of
from shared.cells import load_cell_network
from shared.localization import Search, rotations_to_try
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_bytes, write_text
from shared.raster import PLAIN, open_raster
from shared.reading import readers_of_run
from shared.turned import difference_of_angles
from tools.answers_on_map import Journal, describe, line_of, list_queries, picture, shapes_of, warp
from tools.maps import GeoMap, MapFeatures, georeference_of
from tools.tie_points import MOST_TIE_POINTS, Field, find_tie_points, part_side, points_text, rows_of_points, table_text

ROTATIONS = {"known": 0, "15": 15, "unknown": 180}
LEAST_SHOWN = 0.5                                       # of a query that must not be nodata
LEAST_SIDE = 32                                         # px of the network's that a query shows at least
COARSEST = 3.3                                          # so large a pixel: 6 of 10 held-out tiles, none wrongly
FAR = 500_000                                           # metres from the map beyond which a query has a grid of its own
WITH_A_PLACE = ("located", "ambiguous")


class Query:
    """A query at the network's resolution: its size from the header, its pixels when read() is called.

    width, height: px of `metres` ground metres. own_ratio: metres of its own pixels to that. own_size: (width, height)
    px of a file without a georeference. truth: (x, y) of its
    middle by its own georeference, px of the map's grid, or None. After read(): pixels (h, w, 3) uint8, shown (h, w)
    bool, share_shown of its own pixels, and taken, words for what they are in the file.
    Raises InputError where it cannot be opened or its resolution is not known.
    """

    def __init__(self, file, resolution, geo, reader):
        self.file, self.reader, self.truth, self.pixels = file, reader, None, None
        self.grid = self._grid_of(file, geo)
        if self.grid:
            self.own_ratio = self.grid.own_metres / geo.metres
            self.width, self.height = self.grid.width, self.grid.height
            middle = self.grid.transform * (self.width / 2, self.height / 2)
            self.truth = geo.from_crs(*middle, self.grid.crs)
            return
        if resolution is None:
            raise InputError(f"--query {file} does not tell its resolution: give --resolution in metres a pixel")
        self.own_ratio = resolution / geo.metres
        self.own_size = size_of(file)
        self.width, self.height = (max(1, round(side * self.own_ratio)) for side in self.own_size)

    def _grid_of(self, file, geo):
        with open_raster(file, "--query") as source:
            place = georeference_of(source)
        if place is None:
            return None
        grid = GeoMap(file, geo.metres, self.reader, "--query")
        # North is the map's north, unless it lies so far away that the map's projection is of no use there.
        if geo.metres_from_middle(*grid.to_lonlat(grid.width / 2, grid.height / 2)) < FAR:
            grid = GeoMap(file, geo.metres, self.reader, "--query", crs=geo.crs)
        return grid

    def own_pixel(self, x, y):
        """Px of the file, column and row from its upper left corner, of px of the query as it is seen."""
        if not self.grid:
            width, height = self.own_size
            return x * width / self.width, y * height / self.height
        return self.grid.place.to_pixel(*self.grid.to_map(x, y))

    def read(self):
        if self.grid:
            self.pixels, self.shown = self.grid.read(0, 0, self.width, self.height)
            height, width = self.grid.place.shape
            self.share_shown = min(1.0, self.shown.sum() / (height * width * self.own_ratio ** 2))
            self.taken = self.grid.look[2]
            return
        bands, shown, self.taken = self.reader.read_bands(self.file)
        pixels, self.share_shown = self.reader.to_bytes(bands, shown), shown.mean()
        method = cv2.INTER_AREA if self.own_ratio < 1 else cv2.INTER_LINEAR
        size = self.width, self.height
        self.shown = cv2.resize(shown.astype(np.uint8) * 255, size, interpolation=method) > 254
        self.pixels = cv2.resize(pixels * shown[..., None], size, interpolation=method) * self.shown[..., None]


def size_of(file):
    """(width, height) in px by a file's header."""
    with open_raster(file, "--query") as source:
        size = source.width, source.height
    if Path(file).suffix.lower() in PLAIN:
        with Image.open(file) as image:
            is_turned = image.getexif().get(0x0112, 1) >= 5           # EXIF: by a quarter
        return size[::-1] if is_turned else size
    return size


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="a finished run of code_Con/train.py, calibrated")
    parser.add_argument("--map", required=True)
    parser.add_argument("--query", required=True, nargs="+", help="files, folders, globs")
    options.add_reading(parser)
    parser.add_argument("--resolution", type=options.above_zero,
                        help="metres a pixel of queries that are not georeferenced")
    parser.add_argument("--rotation", choices=tuple(ROTATIONS), default="known",
                        help="known: north is up; 15: within 15 degrees of that; unknown")
    parser.add_argument("--prior", help="where the query roughly is: X,Y in the map's CRS, or lon,lat, or `own`, "
                                        "its own georeference")
    parser.add_argument("--radius", type=options.above_zero, help="metres about the prior")
    parser.add_argument("--tie_points", type=options.positive, metavar="N",
                        help="find also where some N parts of a query lie, each by itself, and warp it by them")
    parser.add_argument("--top_k", type=options.positive, default=5, help="answers written")
    parser.add_argument("--check", action="store_true", help="compare with the queries' own georeference")
    parser.add_argument("--cache", type=Path, help="folder that keeps the map's features (default: beside the map)")
    parser.add_argument("--out", type=Path, default=Path("results/locate"))
    parser.add_argument("--fresh", action="store_true", help="start over where --out holds answers")
    options.add_device(parser)
    args = parser.parse_args(_with_negative_priors(sys.argv[1:]))
    if bool(args.prior) != bool(args.radius):
        raise InputError("--prior and --radius go together: give both, or neither")
    if args.tie_points and args.tie_points > MOST_TIE_POINTS:
        raise InputError(f"--tie_points {args.tie_points}: their parts overlap, and more than {MOST_TIE_POINTS} tell "
                         "nothing more; give fewer")
    return args


def _with_negative_priors(words):
    """--prior -118.2,34.1 as --prior=-118.2,34.1: argparse takes what begins with a minus for a flag."""
    joined = []
    for word in words:
        if joined and joined[-1] == "--prior":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def locate(args):
    device = choose_device(args.device)
    network, _ = load_cell_network(args.run, device, autocast(device, args.amp))
    calibration = load_calibration(args.run)
    readers = readers_of_run(args.run, args, is_own_data=False)
    geo = GeoMap(args.map, float(calibration.metres), readers["opt"])
    check_map(geo)
    files = list_queries(args.query)
    settings = {"run": _hash_of(args.run), "map": geo.identity, "sar_bands": args.sar_bands, "scale": args.scale,
                **{name: str(getattr(args, name)) for name in
                   ("resolution", "rotation", "prior", "radius", "tie_points", "top_k", "check")}}
    journal = Journal(args.out, settings, [args.map, *files], args.fresh)
    print(f"map: {geo.look[2]}; {geo.width} x {geo.height} px of {geo.metres:g} m in {geo.crs.name}")
    features = MapFeatures(geo, network, args.run / "weights.pt", cache_of(args))
    failed = 0
    for file in files:
        if journal.has(file):
            continue
        name = journal.begin(file)
        try:
            query = Query(file, args.resolution, geo, readers["sar"])
            area = area_of(query, args.prior, args.radius, geo)
            check_query(query, geo, needs_truth=args.check)
            rows, shapes = answer(query, name, area, features, calibration, args)
        except InputError as error:
            rows, shapes = [{"query": name, "rank": 1, "status": "error", "reason": str(error)}], []
            failed += 1
            print(f"error: {error}", file=sys.stderr)
        journal.add(file, rows, shapes)
    journal.close()
    print(f"{args.out}/answers.csv, answers.geojson, and a picture of each query, a GeoTIFF of each with a place")
    if failed:
        sys.exit(2)


def answer(query, name, area, features, calibration, args):
    """(rows, shapes) of one query; its picture, GeoTIFF and tie points are written to --out."""
    geo = features.geo
    status = status_of_header(query) or status_of_pixels(query, calibration)
    if query.pixels is not None:
        print(f"{name}: {query.taken}")
    if status:
        rows = describe(name, query, [], None, status, None, geo)
        print(line_of(rows), flush=True)
        return rows, []
    search = Search(features.network, query.pixels, rotations_to_try(ROTATIONS[args.rotation]),
                    calibration.scale(min(query.pixels.shape[:2])), query.shown)
    for window in windows_of(features, search, query, area):
        search.look_at(window)
    answers = search.answers()
    status, radius = judge(answers, search, calibration, geo)
    rows = describe(name, query, answers[:args.top_k], search, status, radius, geo)
    text = line_of(rows)
    if args.check and answers:
        off = np.hypot(query.truth[0] - answers[0].x, query.truth[1] - answers[0].y) * geo.metres
        turned = abs(difference_of_angles(answers[0].rotation, 0))
        text += f"; {off:.1f} m and {turned:.1f}° from its own georeference"
    print(text, flush=True)
    if answers:
        if status in WITH_A_PLACE:
            field = tied(query, name, search, answers[0], calibration, geo, args) if args.tie_points else None
            warp(query, answers[0], geo, args.out / f"{name}.tif", field)
        write_bytes(args.out / f"{name}.png", picture(name, query, answers[:args.top_k], search, geo, area, status))
    return rows, shapes_of(query, answers[:args.top_k], rows, geo)


def tied(query, name, search, answer, calibration, geo, args):
    """The Field of the query's tie points, which are written to --out."""
    points = find_tie_points(search, answer, args.tie_points, calibration.scale(part_side(search)))
    rows = rows_of_points(points, query, answer, geo)
    write_text(args.out / f"{name}.points", points_text(rows, geo))
    write_text(args.out / f"{name}.tie_points.csv", table_text(rows))
    lengths = np.hypot(*points.offsets[points.kept].T) * geo.metres
    median = f", of {np.median(lengths):.1f} m in the median" if len(lengths) else ""
    print(f"{name}: {points.kept.sum()} of {len(points.kept)} tie points kept{median}")
    return Field(query.pixels.shape, points)


def cache_of(args):
    """The folder that keeps a map's features: the one given, beside the map where that is a file, or in --out."""
    if args.cache:
        return args.cache
    return Path(f"{args.map}.features") if Path(args.map).is_file() else args.out / "features"


def _hash_of(run):
    return hashlib.sha256((run / "weights.pt").read_bytes()).hexdigest()[:16]


def check_map(geo):
    """InputError where the map's pixels, by its header, are too large for the network."""
    if geo.own_metres > COARSEST * geo.metres:
        raise InputError(f"--map {geo.file} has pixels of {geo.own_metres:.0f} m, and the run learned from "
                         f"{geo.metres:.0f} m: give a map of at most {COARSEST * geo.metres:.0f} m")


def check_query(query, geo, needs_truth):
    """InputError where the query, by its header, cannot lie on the map, or lacks what is asked of it."""
    if max(query.width, query.height) > max(geo.width, geo.height) or min(query.width, query.height) > min(
            geo.width, geo.height):
        raise InputError(f"--query {query.file} shows {query.width} x {query.height} px of the map's "
                         f"{geo.width} x {geo.height}: cut it, give a larger map, or mend --resolution")
    if min(query.width, query.height) < LEAST_SIDE:
        raise InputError(f"--query {query.file} shows {query.width} x {query.height} px of {geo.metres:g} m: give one "
                         f"of at least {LEAST_SIDE}, or mend --resolution")
    if needs_truth and query.truth is None:
        raise InputError(f"--query {query.file} has no georeference of its own, as --check and --prior own need")


def area_of(query, prior, radius, geo):
    """(left, top, right, bottom) in px of the grid that is searched. InputError where the prior is not on the map."""
    if not prior:
        return 0, 0, geo.width, geo.height
    if prior == "own":
        check_query(query, geo, needs_truth=True)
        x, y = query.truth
    else:
        try:
            x, y = (float(part) for part in prior.split(","))
        except ValueError:
            raise InputError(f"--prior {prior}: give X,Y in the map's CRS, or lon,lat")
        is_lonlat = abs(x) <= 180 and abs(y) <= 90
        x, y = geo.from_crs(x, y, CRS.from_epsg(4326)) if is_lonlat else geo.from_map(x, y)
    if not (0 <= x <= geo.width and 0 <= y <= geo.height):
        raise InputError(f"--prior {prior} lies outside the map")
    reach = radius / geo.metres + max(query.width, query.height)
    return max(0, x - reach), max(0, y - reach), min(geo.width, x + reach), min(geo.height, y + reach)


def windows_of(features, search, query, area):
    """The windows of the map that are looked at."""
    side = max(max(seen.size) * search.cell for seen in search.seen)
    yield from features.windows(max(side, int(np.ceil(1.5 * max(query.pixels.shape[:2])))), area)


def status_of_header(query):
    """The status of a query that cannot be located, by its header; None where it can."""
    return "resolution does not fit" if query.own_ratio > COARSEST else None


def status_of_pixels(query, calibration):
    """The same by its pixels, which are read now."""
    query.read()
    if query.share_shown < LEAST_SHOWN:
        return "too much nodata"
    if texture_of(query.pixels[query.shown][None]) < calibration.texture:
        return "too little texture"
    return None


def judge(answers, search, calibration, geo):
    """(status, 90% radius in metres or None)."""
    if not answers:
        return "not on this map", None
    confidence = calibration.confidence(search.evidence(answers))
    return calibration.status(confidence, answers[0].probability), calibration.radius(confidence) * geo.metres


if __name__ == "__main__":
    run_script(locate, arguments)
