"""Where on a map is a SAR image, how is it turned, and can that be trusted?

    python tools/locate.py --run results/NAME --map map.tif --query sar.tif [sar2.png ...] --resolution 10
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --prior -118.2,34.1 --radius 3000
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --check

--run: a run of code_Match/train.py. The map is a GeoTIFF of three bands, in any CRS, north up or not, read in windows;
its features are kept in --cache and used again. A query is a GeoTIFF, or a PNG or JPEG with --resolution (metres of a
pixel, as the map's CRS counts them). Writes to --out: answers.csv, answers.geojson, and of each query the image warped
onto the map (NAME.tif) and a picture (NAME.png). "not on this map" is an answer, not an error.
Needs rasterio and pyproj (requirements-optional.txt).
"""
import argparse
import hashlib
import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import rasterio
import torch
from pyproj import CRS
from rasterio.errors import RasterioIOError
from rasterio.transform import from_origin
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.calibration import load_calibration, texture_of
from shared.layouts import read_any_image
from shared.localization import Search, difference_of_angles, rotations_to_try, turn
from shared.matcher import load_matcher
from shared.model import load_model
from shared.neighbourhoods import Patches, corners_of_patches, embed_images, embedding_size, rank_patches
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script, several
from shared.plumbing.files import write_bytes, write_rows, write_text
from tools.figures import CYCLE, SAR, panels, png
from tools.maps import GeoMap, MapFeatures

COLUMNS = ("query", "rank", "x", "y", "rotation", "scale", "score", "probability", "radius", "status")
ROTATIONS = {"known": 0, "15": 15, "unknown": 180}
LEAST_SHOWN = 0.5                                       # of a query that must not be nodata
RATIO = 2.5                                             # a resolution further from the matcher's than this does not fit
LARGE = 4096                                            # px a side from which neighbourhoods come first
NEIGHBOURHOODS = 20
CROP, AT_ONCE = 200, 256                               # px of the crops of retrieval; patches embedded at once
MOST_SHOWN, SQUARE = 1200, 32                           # px of the picture of a map, and of the checkerboard's squares


class Image:
    """A query as its file holds it, then at the matcher's resolution.

    pixels: (h, w, 3) uint8. shown: share that is not nodata. metres: of a pixel. truth: by its own georeference, or
    None: its middle (x, y), the middle of its upper edge, and their CRS. Raises InputError where it cannot be read or
    its resolution is not known.
    """

    def __init__(self, file, resolution, metres):
        self.name = Path(file).stem
        self.truth = None
        if Path(file).suffix.lower() in (".tif", ".tiff"):
            pixels, shown = self._read_tiff(file, resolution)
        else:
            pixels = read_any_image(Path(file))
            shown = np.ones(pixels.shape[:2], bool)
            if resolution is None:
                raise InputError(f"--query {file} does not tell its resolution: give --resolution in metres a pixel")
            self.metres = resolution
        self.shown = float(shown.mean())
        self.own_ratio = self.metres / metres
        size = [max(1, round(side * self.own_ratio)) for side in pixels.shape[1::-1]]
        method = cv2.INTER_AREA if self.own_ratio < 1 else cv2.INTER_LINEAR
        self.pixels = cv2.resize(pixels, size, interpolation=method)

    def _read_tiff(self, file, resolution):
        try:
            with rasterio.open(file) as source:
                bands = source.read(tuple(range(1, min(source.count, 3) + 1)))
                shown = (source.dataset_mask() > 0) & np.isfinite(bands[0])
                transform, crs = source.transform, source.crs
        except RasterioIOError as error:
            raise InputError(f"--query {file} cannot be read ({str(error).splitlines()[0]}): give a GeoTIFF, PNG or "
                             "JPEG")
        if crs is None and resolution is None:
            raise InputError(f"--query {file} has no CRS: give --resolution in metres a pixel")
        self.metres = resolution or abs(transform.determinant) ** 0.5
        if crs is not None:
            across = bands.shape[2] / 2
            self.truth = transform * (across, bands.shape[1] / 2), transform * (across, 0), CRS.from_user_input(crs)
            if not crs.is_projected and resolution is None:
                raise InputError(f"--query {file} counts in degrees: give --resolution in metres a pixel")
        if bands.dtype != np.uint8:
            bands = _to_bytes(bands.astype(float), shown)
        bands = np.repeat(bands[:1], 3, 0) if len(bands) < 3 else bands
        return np.ascontiguousarray(bands.transpose(1, 2, 0) * shown[..., None].astype(np.uint8)), shown


def _to_bytes(bands, shown):
    if not shown.any():
        return np.zeros(bands.shape, np.uint8)
    low, high = np.percentile(bands[:, shown], (1, 99))
    return (255 * (np.nan_to_num(bands) - low) / max(high - low, 1e-9)).clip(0, 255).astype(np.uint8)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="a finished run of code_Match/train.py")
    parser.add_argument("--map", required=True, type=Path)
    parser.add_argument("--query", required=True, type=Path, nargs="+")
    parser.add_argument("--resolution", type=options.above_zero, help="metres a pixel of queries that do not tell")
    parser.add_argument("--rotation", choices=tuple(ROTATIONS), default="known",
                        help="known: north is up; 15: within 15 degrees of that; unknown")
    parser.add_argument("--prior", help="where the query roughly is: X,Y in the map's CRS, or lon,lat, or `own`, "
                                        "its own georeference")
    parser.add_argument("--radius", type=options.above_zero, help="metres about the prior")
    parser.add_argument("--retrieval", type=Path,
                        help=f"a run whose embeddings say where to look first on a map of over {LARGE} px a side")
    parser.add_argument("--exhaustive", action="store_true", help="look everywhere, however large the map")
    parser.add_argument("--top_k", type=options.positive, default=5, help="answers written")
    parser.add_argument("--check", action="store_true", help="compare with the queries' own georeference")
    parser.add_argument("--cache", type=Path, help="folder that keeps the map's features (default: beside the map)")
    parser.add_argument("--out", type=Path, default=Path("results/locate"))
    options.add_device(parser)
    args = parser.parse_args()
    if bool(args.prior) != bool(args.radius):
        raise InputError("--prior and --radius go together: give both, or neither")
    return args


def locate(args):
    device = choose_device(args.device)
    precision = autocast(device, args.amp)
    model, calibration = load_matcher(args.run, device), load_calibration(args.run)
    metres = float(calibration.metres)
    geo = GeoMap(args.map, metres)
    queries, problems = [], []
    for file in args.query:
        try:
            image = Image(file, args.resolution, metres)
            check_query(image, file, geo, args)
            queries.append((image, area_of(args, geo, image)))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(problems[0]) if len(problems) == 1 else several(f"{len(problems)} problem(s):", problems)
    cache = args.cache or args.map.with_name(args.map.name + ".features")
    features = MapFeatures(geo, model, args.run / "weights.pt", cache, device, precision)
    coarse = None
    if args.retrieval and not args.exhaustive:
        coarse = Neighbourhoods(args, geo, features.folder, device, precision)
    args.out.mkdir(parents=True, exist_ok=True)
    rows, shapes = [], []
    for image, area in queries:
        search = Search(model, image.pixels, rotations_to_try(ROTATIONS[args.rotation]),
                        calibration.scale(min(image.pixels.shape[:2])), device, precision)
        for window in windows_of(features, coarse, search, image, area, args):
            search.look_at(window)
        answers = search.answers()
        status, radius = judge(image, answers, search, calibration, geo)
        rows_of_query = describe(image, answers[:args.top_k], search, status, radius, geo)
        rows += rows_of_query
        shapes += features_of_answers(image, answers[:args.top_k], rows_of_query, geo)
        print(line_of(image, rows_of_query, answers, geo, args.check, status))
        if answers:
            warp(image, answers[0], geo, args.out / f"{image.name}.tif")
            write_bytes(args.out / f"{image.name}.png", picture(image, answers[:args.top_k], search, geo, area,
                                                                  status))
    write_rows(args.out / "answers.csv", COLUMNS, rows)
    write_text(args.out / "answers.geojson", json.dumps({"type": "FeatureCollection", "features": shapes}, indent=1))
    print(f"{args.out}/answers.csv, answers.geojson, and a picture and a GeoTIFF of each query")


def check_query(image, file, geo, args):
    """InputError where the query cannot lie on the map, or lacks what is asked of it."""
    if max(image.pixels.shape[:2]) > max(geo.width, geo.height) or min(image.pixels.shape[:2]) > min(geo.width,
                                                                                                     geo.height):
        raise InputError(f"--query {file} shows {image.pixels.shape[1]} x {image.pixels.shape[0]} px of the map's "
                         f"{geo.width} x {geo.height}: cut it, give a larger map, or mend --resolution")
    if (args.prior == "own" or args.check) and image.truth is None:
        raise InputError(f"--query {file} has no georeference of its own, as --check and --prior own need")


def area_of(args, geo, image):
    """(left, top, right, bottom) in px of the grid that is searched. InputError where the prior is not on the map."""
    if not args.prior:
        return 0, 0, geo.width, geo.height
    if args.prior == "own":
        point, _, crs = image.truth
    else:
        try:
            point = tuple(float(part) for part in args.prior.split(","))
            x, y = point
        except ValueError:
            raise InputError(f"--prior {args.prior}: give X,Y in the map's CRS, or lon,lat")
        is_lonlat = abs(x) <= 180 and abs(y) <= 90
        crs = CRS.from_epsg(4326) if is_lonlat else geo.map_crs
    x, y = geo.from_crs(*point, crs)
    if not (0 <= x <= geo.width and 0 <= y <= geo.height):
        raise InputError(f"--prior {args.prior} lies outside the map")
    reach = args.radius / geo.metres + max(image.pixels.shape[:2])
    return max(0, x - reach), max(0, y - reach), min(geo.width, x + reach), min(geo.height, y + reach)


class Neighbourhoods:
    """Retrieval embeddings of a map's patches, kept beside the map's features."""

    def __init__(self, args, geo, folder, device, precision):
        self.model, self.img_size = load_model(args.retrieval, device)
        self.key = hashlib.sha256((args.retrieval / "weights.pt").read_bytes()).hexdigest()[:16]
        self.geo, self.folder, self.device, self.precision = geo, folder, device, precision

    def patches(self, side):
        """The Patches of `side` px, a quarter of that apart."""
        corners = corners_of_patches(self.geo.height, self.geo.width, side, max(1, side // 4))
        file = self.folder / f"patches_{side}_{self.key}.npy"
        if not file.is_file():
            content = io.BytesIO()
            np.save(content, self._embed(corners, side).numpy())
            write_bytes(file, content.getbuffer())
        embeddings = torch.from_numpy(np.load(file, allow_pickle=False))
        return Patches(corners[:, ::-1] + side / 2, np.zeros(len(corners), int), embeddings, side)

    def _embed(self, corners, side):
        size = embedding_size(side, self.img_size, CROP)
        embeddings = []
        for portion in tqdm(np.array_split(corners, -(-len(corners) // AT_ONCE)), desc="patches", disable=None):
            images = [self.geo.read(int(left), int(top), side, side)[0] for top, left in portion]
            embeddings.append(embed_images(self.model, images, "opt", size, self.device, self.precision))
        return torch.cat(embeddings)


def windows_of(features, coarse, search, image, area, args):
    """The windows of the map that are looked at."""
    side = search.features.shape[-1] * search.cell
    side = max(side, int(np.ceil(1.5 * max(image.pixels.shape[:2]))))
    is_large = max(area[2] - area[0], area[3] - area[1]) > LARGE
    if not (coarse and is_large):
        yield from features.windows(side, area)
        return
    square = min(image.pixels.shape[:2])
    patches = coarse.patches(square)
    size = embedding_size(square, coarse.img_size, CROP)
    middle = image.pixels[:square, :square]
    scores, _, _ = rank_patches(coarse.model, middle, patches, ROTATIONS[args.rotation], size, coarse.device,
                                coarse.precision)
    for x, y in patches.centres[np.argsort(-scores)[:NEIGHBOURHOODS]]:
        yield features.window(x - side, y - side, 2 * side, 2 * side)


def judge(image, answers, search, calibration, geo):
    """(status, 90% radius in metres or None)."""
    if image.shown < LEAST_SHOWN:
        return "too much nodata", None
    if not 1 / RATIO <= image.own_ratio <= RATIO or geo.own_metres > RATIO * geo.metres:
        return "resolution does not fit", None
    if texture_of(image.pixels) < calibration.texture:
        return "too little texture", None
    if not answers:
        return "not on this map", None
    confidence = calibration.confidence(search.evidence(answers))
    return calibration.status(confidence, answers[0].probability), calibration.radius(confidence) * geo.metres


def describe(image, answers, search, status, radius, geo):
    """Rows of answers.csv, best first; one without a place where there is no answer."""
    if not answers:
        return [{"query": image.name, "rank": 1, "status": status}]
    rows = []
    for rank, answer in enumerate(answers, 1):
        x, y = geo.to_map(answer.x, answer.y)
        row = {"query": image.name, "rank": rank, "x": round(x, 7), "y": round(y, 7),
               "rotation": round(answer.rotation % 360, 2), "score": round(answer.score, 4),
               "probability": round(answer.probability, 4), "status": status if rank == 1 else "alternative"}
        if rank == 1:
            row.update(scale=round(search.zoom_of(answer), 3), radius="" if radius is None else round(radius, 1))
        rows.append(row)
    return rows


def footprint(image, answer):
    """The query's corners on the grid, (4, 2) px, upper left first, clockwise as the query has them."""
    height, width = image.pixels.shape[:2]
    angle = np.deg2rad(answer.rotation)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    return corners @ turned.T + (answer.x, answer.y)


def features_of_answers(image, answers, rows, geo):
    """GeoJSON features (RFC 7946): of each answer its footprint, with the figures as properties, and its centre."""
    shapes = []
    for answer, row in zip(answers, rows):
        # Outer rings go counter-clockwise (section 3.1.6): the corners as they are go clockwise.
        corners = [list(map(float, geo.to_lonlat(*corner))) for corner in footprint(image, answer)[::-1]]
        properties = {name: row.get(name) for name in COLUMNS if name not in ("x", "y")}
        (xx, xy), (_, yy) = np.array(answer.covariance) * geo.metres ** 2
        properties["covariance_m2"] = [round(xx, 1), round(-xy, 1), round(yy, 1)]         # east, both, north
        centre = list(map(float, geo.to_lonlat(answer.x, answer.y)))
        shapes.append({"type": "Feature", "properties": {**properties, "part": "footprint"},
                       "geometry": {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}})
        shapes.append({"type": "Feature", "properties": {**properties, "part": "centre"},
                       "geometry": {"type": "Point", "coordinates": centre}})
        if row.get("radius"):
            ring = [list(map(float, geo.to_lonlat(answer.x + row["radius"] / geo.metres * np.cos(a),
                                                  answer.y - row["radius"] / geo.metres * np.sin(a))))
                    for a in np.linspace(0, 2 * np.pi, 48, endpoint=False)]
            shapes.append({"type": "Feature", "properties": {**properties, "part": "90% radius"},
                           "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}})
    return shapes


def line_of(image, rows, answers, geo, check, status):
    row = rows[0]
    if not answers:
        return f"{image.name}: {status}"
    text = (f"{image.name}: {status}, x {row['x']}, y {row['y']}, rotation {row['rotation']}°, probability "
            f"{row['probability']}")
    text += f", 90% within {row['radius']} m" if row["radius"] != "" else ""
    if check:
        middle, upper_edge, crs = image.truth
        (x, y), (up_x, up_y) = (geo.from_crs(*point, crs) for point in (middle, upper_edge))
        off = np.hypot(x - answers[0].x, y - answers[0].y) * geo.metres
        rotation = np.rad2deg(np.arctan2(up_x - x, y - up_y))
        turned = abs(difference_of_angles(answers[0].rotation, rotation))
        text += f"; {off:.1f} m and {turned:.1f}° from its own georeference"
    return text


def warp(image, answer, geo, file):
    """Write the query, north up on the grid of the map, in the grid's CRS."""
    views, masks = turn(image.pixels, [answer.rotation])
    side = views.shape[1]
    left, top = geo.transform * (answer.x - side / 2, answer.y - side / 2)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=side, height=side, count=4, dtype="uint8", crs=geo.crs.to_wkt(),
                         transform=from_origin(left, top, geo.metres, geo.metres), compress="deflate") as out:
            out.write(views[0].transpose(2, 0, 1), (1, 2, 3))
            out.write(masks[0].astype(np.uint8) * 255, 4)
            out.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
        write_bytes(file, memory.read())


def picture(image, answers, search, geo, area, status):
    """PNG: the map about the answers with the heat of the score, footprints of the answer and of the runners-up; and a
    checkerboard of query and map."""
    corners = np.concatenate([footprint(image, answer) for answer in answers])
    reach = max(image.pixels.shape[:2])
    left, top = np.maximum(corners.min(0) - reach, area[:2]).astype(int)
    right, bottom = np.minimum(corners.max(0) + reach, area[2:]).astype(int)
    figure, (wide, near) = panels(2, width=4.5, height=4.5)
    factor = max(1, max(right - left, bottom - top) // MOST_SHOWN)
    wide.imshow(geo.read(left, top, right - left, bottom - top)[0][::factor, ::factor],
                extent=(left, right, bottom, top))
    heat, extent = search.heat(answers[0])
    middle = np.median(heat)
    heat = ((heat - middle) / max(heat.max() - middle, 1e-9)).clip(0, 1)          # the upper half of the scores shows
    wide.imshow(heat, extent=extent, cmap="inferno", alpha=0.8 * heat)
    for rank, answer in reversed(list(enumerate(answers))):
        outline = footprint(image, answer)
        colour, width = (SAR, 2) if rank == 0 else (CYCLE[5], 1)
        wide.plot(*np.concatenate([outline, outline[:1]]).T, color=colour, linewidth=width)
    wide.set(xlim=(left, right), ylim=(bottom, top), title=f"{image.name}: {status}", xticks=(), yticks=())

    views, masks = turn(image.pixels, [answers[0].rotation])
    side = views.shape[1]
    x, y = round(answers[0].x - side / 2), round(answers[0].y - side / 2)
    first_x, first_y = max(0, -x), max(0, -y)
    last_x, last_y = min(side, geo.width - x), min(side, geo.height - y)
    ground, _ = geo.read(x + first_x, y + first_y, last_x - first_x, last_y - first_y)
    view, mask = (part[0, first_y:last_y, first_x:last_x] for part in (views, masks))
    squares = np.add.outer(np.arange(len(view)) // SQUARE, np.arange(view.shape[1]) // SQUARE) % 2 == 0
    near.imshow(np.where((squares & mask)[..., None], view, ground))
    near.set(title="checkerboard of query and map", xticks=(), yticks=())
    return png(figure)


if __name__ == "__main__":
    run_script(locate, arguments)
