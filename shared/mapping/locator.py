"""Where on a map is a SAR image, how is it turned, and can that be trusted: a query is read, sought and judged.

Positions are (x, y) in px of the map's grid, as in shared/mapping/localization.py.
"""
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pyproj import CRS
from rasterio.transform import Affine

from shared.mapping.calibration import load_calibration, texture_of
from shared.mapping.cells import load_cell_network
from shared.mapping.localization import Search, rotations_to_try
from shared.mapping.maps import GeoMap, MapFeatures, Mask, georeference_of
from shared.plumbing.errors import InputError
from shared.plumbing.packed import require_run
from shared.reading.raster import PLAIN, open_mask, open_raster, read_mask

ROTATIONS = {"known": 0, "15": 15, "unknown": 180}      # degrees to both sides
LEAST_SHOWN = 0.5                                       # of a query that must not be nodata
LEAST_SIDE = 32                                         # px of the network's that a query shows at least
COARSEST = 3.3                                          # so large a pixel: 6 of 10 held-out tiles, none wrongly
FAR = 500_000                                           # metres from the map beyond which a query has a grid of its own
EMPTY = 0.1                                             # of what is searched; more is told where nothing was found
WITH_A_PLACE = ("located", "ambiguous")


# A query -------------------------------------------------------------------------------------------------------------

class Query:
    """A query at the network's resolution: its size from the header, its pixels when read() is called.

    file: a path, or what an image is called that is in memory. reader: the SAR images' Reader. resolution: metres of a
    pixel on the ground, of what has no georeference. geo: the map. mask: a file of its size, whose zeros and nodata
    count as nodata, or None.
    width, height: px of `metres` ground metres. own_ratio: metres of its own pixels to that. file_size: (width, height)
    px of the file as GDAL reads it. truth: (x, y) of its middle by its own georeference, px of the map's grid, or None.
    After read(): pixels (h, w, 3) uint8, shown (h, w) bool, share_shown of its own pixels, and taken, words for what
    they are in the file.
    Raises InputError where it cannot be opened, its resolution is not known, or the mask does not fit.
    """

    def __init__(self, file, resolution, geo, reader, mask=None):
        self.file, self.reader, self.truth, self.pixels, self.mask = file, reader, None, None, mask
        self.grid = self._grid_of(file, geo)
        if self.grid:
            self.file_size = self.grid.place.shape[::-1]
            if mask:
                self._require_size_of_mask(self.file_size)
                self.grid.mask = Mask(mask, self.grid, "--query_mask", self.grid.place)
            self.own_ratio = self.grid.own_metres / geo.metres
            self.width, self.height = self.grid.width, self.grid.height
            middle = self.grid.transform * (self.width / 2, self.height / 2)
            self.truth = geo.from_crs(*middle, self.grid.crs)
            return
        if resolution is None:
            raise InputError(f"--query {file} does not tell its resolution{position_of(file)}: give --resolution in "
                             "metres a pixel")
        self.own_ratio = resolution / geo.metres
        self.file_size, shown_size, to_file = size_of(file)
        if mask:
            self._require_size_of_mask(shown_size)
        self.width, self.height = (max(1, round(side * self.own_ratio)) for side in shown_size)
        self.to_file = to_file * Affine.scale(shown_size[0] / self.width, shown_size[1] / self.height)

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

    def _require_size_of_mask(self, size):
        with open_mask(self.mask, "--query_mask") as source:
            if (source.width, source.height) != size:
                raise InputError(f"--query_mask {self.mask} has {source.width} x {source.height} px, and --query "
                                 f"{self.file} {size[0]} x {size[1]}: give one of the same size")

    def own_pixel(self, x, y):
        """Px of the file, column and row from its upper left corner, of px of the query as it is seen."""
        if not self.grid:
            return self.to_file * (x, y)
        return self.grid.place.to_pixel(*self.grid.to_map(x, y))

    def seen_pixel(self, column, row):
        """The other way round."""
        if not self.grid:
            return ~self.to_file * (column, row)
        (x,), (y,) = self.grid.place.to_crs([column], [row])
        return self.grid.from_crs(x, y, self.grid.place.crs)

    def read(self):
        if self.grid:
            self.pixels, self.shown = self.grid.read(0, 0, self.width, self.height)
            height, width = self.grid.place.shape
            self.share_shown = min(1.0, self.shown.sum() / (height * width * self.own_ratio ** 2))
            self.taken = self.grid.look[2]
            return
        bands, shown, self.taken = self.reader.read_bands(self.file)
        if self.mask:
            with open_mask(self.mask, "--query_mask") as source:
                shown &= read_mask(source)
        pixels, self.share_shown = self.reader.to_bytes(bands, shown), shown.mean()
        method = cv2.INTER_AREA if self.own_ratio < 1 else cv2.INTER_LINEAR
        size = self.width, self.height
        self.shown = cv2.resize(shown.astype(np.uint8) * 255, size, interpolation=method) > 254
        self.pixels = cv2.resize(pixels * shown[..., None], size, interpolation=method) * self.shown[..., None]


def position_of(file):
    """Words for a position that a file has and that is of no use: a world file's, without a CRS."""
    with open_raster(file, "--query") as source:
        return "" if source.transform.is_identity else " (its world file has no CRS)"


def size_of(file):
    """By a file's header: (width, height) px as it is stored, the same as it is shown, and the Affine from the latter's
    px to the former's: EXIF may turn and mirror a JPEG."""
    with open_raster(file, "--query") as source:
        width, height = source.width, source.height
    orientation = 1
    if Path(file).suffix.lower() in PLAIN and Path(file).is_file():
        with Image.open(file) as image:
            if image.format in ("JPEG", "MPO"):
                orientation = image.getexif().get(0x0112, 1)
    to_file = Affine.identity()
    if orientation in (5, 6, 7, 8):                     # lies on its side
        to_file = Affine(0, 1, 0, 1, 0, 0)
    if orientation in (2, 3, 7, 8):
        to_file = Affine(-1, 0, width, 0, 1, 0) * to_file
    if orientation in (3, 4, 6, 7):
        to_file = Affine(1, 0, 0, 0, -1, height) * to_file
    return (width, height), (height, width) if orientation >= 5 else (width, height), to_file


def require_truth(query):
    """InputError where a query does not tell where it lies."""
    if query.truth is None:
        raise InputError(f"--query {query.file} has no georeference of its own, as --check and --prior own need")


def circle_of(prior, radius, query, geo):
    """The circle about a --prior. prior: text, `own`, X,Y in the map's CRS, or lon,lat. radius: metres.

    InputError where the prior is not understood, or not on the map.
    """
    if prior == "own":
        require_truth(query)
        return circle_about(*query.truth, radius, geo, prior)
    try:
        x, y = (float(part) for part in prior.split(","))
    except ValueError:
        raise InputError(f"--prior {prior}: give X,Y in the map's CRS, or lon,lat")
    is_lonlat = abs(x) <= 180 and abs(y) <= 90
    place = geo.from_crs(x, y, CRS.from_epsg(4326)) if is_lonlat else geo.from_map(x, y)
    return circle_about(*place, radius, geo, prior)


def circle_about(x, y, radius, geo, prior):
    """(x, y, radius) in px of the grid. x, y: px. radius: metres. InputError where the prior, words for the place, is
    not on the map."""
    if not (0 <= x <= geo.width and 0 <= y <= geo.height):
        raise InputError(f"--prior {prior} lies outside the map")
    return x, y, radius / geo.metres


# The answer ----------------------------------------------------------------------------------------------------------

@dataclass
class Location:
    """What is answered of a query. status: located, ambiguous, not on this map, too little texture, too much nodata, or
    resolution does not fit. reason: words that say more, or "". answers: localization.Answer, best first. radius:
    metres about the first within which the truth lies in nine of ten such cases, or None. search: the Search that
    found them, or None. area: (left, top, right, bottom), px of the grid that were searched."""
    status: str
    reason: str = ""
    answers: list = field(default_factory=list)
    radius: float = None
    search: Search = None
    area: tuple = None

    @property
    def has_place(self):
        return self.status in WITH_A_PLACE


class Locator:
    """A run of code_Con with cells and its calibration, asked where on a map SAR images lie.

    run: its folder, or a packed file. readers: {"opt", "sar"}, by which maps and queries are read. Raises InputError
    where the run gives no cells or was not calibrated.
    """

    def __init__(self, run, device, autocast, readers):
        self.network, _ = load_cell_network(run, device, autocast)
        self.calibration = load_calibration(run, self.network)
        self.weights, self.readers = require_run(Path(run), "--run"), readers
        self.metres = float(self.calibration.metres)

    def open_map(self, file, mask=None):
        """The GeoMap of a file. mask: a georeferenced file, whose zeros and nodata count as nodata. InputError where
        the map's pixels, by its header, are too large for the network, or the mask leaves nothing of it."""
        geo = GeoMap(file, self.metres, self.readers["opt"])
        if geo.own_metres > COARSEST * geo.metres:
            raise InputError(f"--map {geo.file} has pixels of {geo.own_metres:.0f} m, and the run learned from "
                             f"{geo.metres:.0f} m: give a map of at most {COARSEST * geo.metres:.0f} m")
        if mask:
            geo.mask = Mask(mask, geo, "--map_mask")
            if not geo.mask.overview.any():
                raise InputError(f"--map_mask {mask} leaves nothing of --map {file} to be searched: it lies elsewhere, "
                                 "or is zero all over it")
        return geo

    def features_of(self, geo, folder):
        """The MapFeatures of a map. folder: that keeps them; None: the memory."""
        return MapFeatures(geo, self.network, self.weights, folder)

    def open_query(self, file, resolution, geo, mask=None):
        """The Query of a file and its mask. InputError where, by its header, it cannot lie on the map."""
        query = Query(file, resolution, geo, self.readers["sar"], mask)
        if max(query.width, query.height) > max(geo.width, geo.height) or min(query.width, query.height) > min(
                geo.width, geo.height):
            raise InputError(f"--query {query.file} shows {query.width} x {query.height} px of the map's "
                             f"{geo.width} x {geo.height}: cut it, give a larger map, or mend --resolution")
        if min(query.width, query.height) < LEAST_SIDE:
            raise InputError(f"--query {query.file} shows {query.width} x {query.height} px of {geo.metres:g} m: give "
                             f"one of at least {LEAST_SIDE}, or mend --resolution")
        return query

    def locate(self, query, features, within=0, circle=None):
        """The Location of a Query, which is read, on the map of MapFeatures.

        within: degrees to both sides by which it may be turned as it is seen, up to 180. circle: (x, y, radius) px of
        the grid in which its middle lies (default: anywhere).
        """
        if query.own_ratio > COARSEST:
            return Location("resolution does not fit",
                            f"a pixel is {query.own_ratio:.1f} times as large as those learned from")
        query.read()
        if query.share_shown < LEAST_SHOWN:
            return Location("too much nodata", f"{1 - query.share_shown:.0%} of it")
        if texture_of(query.pixels[query.shown][None]) < self.calibration.texture:
            return Location("too little texture")
        search = Search(self.network, query.pixels, rotations_to_try(within),
                        self.calibration.scale(min(query.pixels.shape[:2])), query.shown, circle)
        area, shown, looked_at = area_of(query, circle, features.geo), 0.0, 0
        for window in windows_of(features, search, query, area):
            search.look_at(window)
            shown, looked_at = shown + window.mask.sum().item(), looked_at + window.mask.numel()
        answers = search.answers()
        status, radius = self.judge(answers, search)
        reason, empty = "", 1 - shown / looked_at
        if status == "not on this map" and empty > EMPTY:
            reason = f"{empty:.0%} of what was searched shows nothing, and nine tenths of a query must lie on the rest"
        return Location(status, reason, answers, radius, search, area)

    def judge(self, answers, search):
        """(status, 90% radius in metres or None)."""
        if not answers:
            return "not on this map", None
        confidence = self.calibration.confidence(search.evidence(answers))
        status = self.calibration.status(confidence, answers[0].probability)
        return status, self.calibration.radius(confidence) * self.metres


def area_of(query, circle, geo):
    """(left, top, right, bottom) in px of the grid that hold every place of a query whose middle is in the circle."""
    if circle is None:
        return 0, 0, geo.width, geo.height
    x, y, radius = circle
    reach = radius + max(query.width, query.height)
    return max(0, x - reach), max(0, y - reach), min(geo.width, x + reach), min(geo.height, y + reach)


def windows_of(features, search, query, area):
    """The windows of the map that are looked at."""
    side = max(max(seen.size) * search.cell for seen in search.seen)
    yield from features.windows(max(side, int(np.ceil(1.5 * max(query.pixels.shape[:2])))), area)
