"""Georeferenced rasters, maps and queries alike, on a north-up grid of ground metres, read in windows."""
import hashlib
import io
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import rasterio
import torch
from pyproj import CRS, Geod, Proj, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from pyproj.exceptions import CRSError
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine, GCPTransformer, from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.windows import Window
from tqdm import tqdm

from shared.mapping.localization import Map, map_of
from shared.plumbing.errors import InputError
from shared.plumbing.files import make_folder, write_bytes, write_text
from shared.reading.nodata import undeclared_nodata, without_specks
from shared.reading.raster import (as_numbers, name_of, open_bands, open_mask, palette_of, read_mask, read_window,
                                   reason_of)

BLOCK = 1024                                            # px a side that are read and embedded at once
HALO = 64                                               # px beyond which nothing has a say in a cell of three stages
AT_ONCE = 4                                             # blocks a side that are searched at once
IN_MEMORY = 256                                         # blocks of 512 KiB, where they are not kept beside the map
OVERVIEW = 1000                                         # px a side of what tones and nodata are measured on
SCALE_ERROR = 0.005                                     # up to which a projection's metres are taken for ground metres
WIDE = 3.0                                              # degrees on each side of its middle that a UTM zone serves
EARTH = 6_378_137                                       # metres; no other body's radius is within a hundredth of it
EDGE = np.linspace(0, 1, 9)                             # where along its edges a raster's outline is looked at


# Where a raster lies -----------------------------------------------------------------------------------------------

@dataclass
class Georeference:
    """Where a raster of shape (height, width) lies. crs: pyproj's. transform: px to the CRS, or None where there are
    control points, gcps. meridian: from which longitudes are counted, in those of the file, whose CRS is then `own`."""
    crs: CRS
    shape: tuple
    transform: Affine = None
    gcps: list = None
    meridian: float = 0.0
    own: CRS = None

    def to_crs(self, columns, rows):
        """(2, N) x and y of px (N) and (N), counted from the upper left corner."""
        columns, rows = np.asarray(columns, float), np.asarray(rows, float)
        if self.gcps:
            with GCPTransformer(self.gcps) as transformer:
                return np.array(transformer.xy(rows, columns, offset="ul"))
        return np.array(self.transform * (columns, rows))

    def to_pixel(self, x, y):
        """(column, row) px of a place in the file's own CRS, as to_crs counts them."""
        if self.gcps:
            with GCPTransformer(self.gcps) as transformer:
                row, column = transformer.rowcol(x - self.meridian, y, op=float)
            return float(column), float(row)
        return ~self.transform * (x - self.meridian, y)

    @property
    def outline(self):
        """(2, N): x and y in the CRS of points along the edge."""
        height, width = self.shape
        along, ends = np.concatenate([EDGE, EDGE]), np.repeat([0.0, 1.0], len(EDGE))
        return self.to_crs(width * np.concatenate([along, ends]), height * np.concatenate([ends, along]))

    @property
    def middle(self):
        """(x, y) in the CRS."""
        return self.to_crs([self.shape[1] / 2], [self.shape[0] / 2])[:, 0]

    def counted_within(self):
        """The same, where a longitude passes 180, counted from a meridian in its middle: no projection returns such."""
        west, east = self.outline[0].min(), self.outline[0].max()
        if not self.crs.is_geographic or (west >= -180 and east <= 180):
            return self
        meridian, ellipsoid = round((west + east) / 2), self.crs.ellipsoid
        crs = CRS.from_user_input(f"+proj=longlat +a={ellipsoid.semi_major_metre} +rf={ellipsoid.inverse_flattening} "
                                  f"+pm={meridian} +no_defs")
        if self.gcps:
            gcps = [GroundControlPoint(point.row, point.col, point.x - meridian, point.y) for point in self.gcps]
            return Georeference(crs, self.shape, gcps=gcps, meridian=meridian, own=self.crs)
        transform = Affine.translation(-meridian, 0) * self.transform
        return Georeference(crs, self.shape, transform, meridian=meridian, own=self.crs)


def georeference_of(source):
    """The Georeference of a dataset; None where it has no CRS, or neither a transform nor control points.

    An identity transform is none. InputError where the CRS is of no place on Earth, or the transform has no area.
    """
    gcps, gcps_crs = source.gcps
    if source.crs is not None and not source.transform.is_identity:
        if source.transform.determinant == 0:
            raise InputError(f"{name_of(source)} has a transform without area: georeference it anew")
        return Georeference(_crs_on_earth(source.crs, name_of(source)), source.shape, source.transform).counted_within()
    if gcps and gcps_crs:
        pixels = np.linalg.matrix_rank([[1, point.row, point.col] for point in gcps])
        places = np.linalg.matrix_rank([[1, point.x - gcps[0].x, point.y - gcps[0].y] for point in gcps])
        if min(pixels, places) < 3:
            raise InputError(f"{name_of(source)} has control points on one line: give three that are not")
        return Georeference(_crs_on_earth(gcps_crs, name_of(source)), source.shape, gcps=gcps).counted_within()
    return None


def _crs_on_earth(crs, name):
    try:
        crs = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"{name} has a CRS that is not understood ({error}): assign another")
    if crs.ellipsoid is None:
        raise InputError(f"{name} has a local CRS ({crs.name}), of no known place on Earth: georeference it")
    if abs(crs.ellipsoid.semi_major_metre / EARTH - 1) > 0.01:
        raise InputError(f"{name} lies on another body than the Earth ({crs.name})")
    return crs


def ground_crs(place):
    """The CRS of a grid of ground metres: a Georeference's own, the UTM zone of its middle, or one about its middle.

    Its own where it counts in metres that are the ground's but for SCALE_ERROR; UTM where it is neither wide nor at a
    pole; else azimuthal equidistant.
    """
    to_lonlat = Transformer.from_crs(place.crs, "EPSG:4326", always_xy=True)
    (longitude, latitude), outline = to_lonlat.transform(*place.middle), np.array(to_lonlat.transform(*place.outline))
    again = to_lonlat.transform(longitude, latitude, direction="INVERSE")
    is_place = np.isfinite([longitude, latitude]).all() and abs(latitude) <= 90
    if not is_place or not np.allclose(again, place.middle, rtol=1e-6, atol=1e-6):
        raise InputError(f"its coordinates are of no place in its CRS ({place.crs.name}): georeference it anew")
    if place.crs.is_projected and all(axis.unit_conversion_factor == 1 for axis in place.crs.axis_info[:2]):
        factors = Proj(place.crs).get_factors(*np.column_stack([[longitude, latitude], outline]))
        scales = np.concatenate([factors.meridional_scale, factors.parallel_scale])
        if np.abs(scales - 1).max() < SCALE_ERROR:
            return place.crs
    across = np.abs((outline[0] - longitude + 180) % 360 - 180).max()
    zones = query_utm_crs_info("WGS 84", AreaOfInterest(longitude, latitude, longitude, latitude))
    if across <= WIDE and zones:
        return CRS.from_epsg(zones[0].code)
    return CRS.from_user_input(f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +datum=WGS84 +units=m +no_defs")


# On a grid -----------------------------------------------------------------------------------------------------------

class GeoMap:
    """A georeferenced raster, map or query, seen on a north-up grid of `metres` ground metres a pixel in `crs`.

    reader: by whose bands and tones it is seen. flag: that named the file. crs: of the grid, default ground_crs's.
    Positions are (x, y) in px of the grid, from its upper left corner, as in localization.py. Opening reads the header
    alone; tones and nodata are looked at with the first window. mask: the Mask of what counts as nodata besides, where
    one is set before that.
    Raises InputError where the file cannot be opened or is not georeferenced.
    """
    mask = None

    def __init__(self, file, metres, reader, flag="--map", crs=None):
        self.file, self.reader, self.metres, self.flag = str(file), reader, metres, flag
        self.opened = open_bands(file, reader.modality, reader.bands, flag)
        source = self.opened.source
        self.place = georeference_of(source)
        if self.place is None:
            has_crs = "a CRS, but no transform and no control points" if source.crs else "no CRS"
            raise InputError(f"{flag} {file} has {has_crs}: georeference it (gdal_translate -a_srs -a_ullr)")
        try:
            self.crs = crs or ground_crs(self.place)
        except InputError as error:
            raise InputError(f"{flag} {file}: {error}")
        to_grid = Transformer.from_crs(self.place.crs, self.crs, always_xy=True)
        x, y = np.array(to_grid.transform(*self.place.outline))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise InputError(f"{flag} {file}: its edge is of no place in {self.crs.name}: cut it")
        self.width, self.height = (max(1, round((side.max() - side.min()) / metres)) for side in (x, y))
        self.transform = from_origin(x.min(), y.max(), metres, metres)
        self.own_metres = self._own_metres(to_grid)
        self.average = metres > 1.5 * self.own_metres
        self._to_map = Transformer.from_crs(self.crs, self.place.crs, always_xy=True)
        self._to_lonlat = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)

    def _own_metres(self, to_grid):
        """Metres of a pixel of the file in its middle: the root of its area."""
        row, column = (side / 2 for side in self.place.shape)
        x, y = to_grid.transform(*self.place.to_crs([column, column + 1, column], [row, row, row + 1]))
        return abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])) ** 0.5

    @cached_property
    def look(self):
        """(the Reader with the raster's own stretch, the number along the border that stands for nodata, or None, words
        for what was taken). InputError where there is nothing but nodata."""
        source, numbers, alpha, words = self.opened
        scale = max(1, max(source.shape) // OVERVIEW)
        shape = max(1, source.height // scale), max(1, source.width // scale)
        bands = as_numbers(read_window(source, numbers, out_shape=(len(numbers), *shape)))
        shown = (source.read_masks(numbers, out_shape=(len(numbers), *shape)) > 0).any(0) & np.isfinite(bands).all(0)
        if source.colorinterp[0] == ColorInterp.palette:
            return self.reader, None, words
        nodata = undeclared_nodata(bands)
        nodata = None if nodata == source.nodata else nodata
        if nodata is not None:
            shown &= (bands != nodata).any(0)
            words += f", {nodata:g} along the border taken for nodata"
        if alpha:
            shown &= read_window(source, alpha, out_shape=shape) > 0
        if self.mask:
            rows, columns = (np.indices(shape) + 0.5) * np.reshape(np.divide(source.shape, shape), (2, 1, 1))
            x, y = self.from_crs(*self.place.to_crs(columns.ravel(), rows.ravel()), self.place.crs)
            shown &= self.mask.at(x, y).reshape(shape)
        if not shown.any():
            raise InputError(f"{self.flag} {self.file} holds nothing but nodata: give one that shows something")
        return self.reader.measured_in(bands, shown), nodata, words

    @cached_property
    def _warp(self):
        """What GDAL's warper takes, whether by a transform or by control points."""
        source, nodata = self.opened.source, self.look[1]
        is_float = np.dtype(source.dtypes[0]).kind in "fc"
        if nodata is None:
            nodata = source.nodata if source.nodata is not None else np.nan if is_float else None
        resampling = Resampling.average if self.average else Resampling.bilinear
        if source.colorinterp[0] == ColorInterp.palette or np.dtype(source.dtypes[0]).kind == "c":
            resampling = Resampling.nearest             # colours' numbers and phases have no mean
        # Of bytes one band may well be 0, as in a saturated colour, where 0 is nodata.
        unified = "PARTIAL" if is_float else "YES"
        return {"src_crs": self.place.crs.to_wkt(), "src_nodata": nodata, "resampling": resampling,
                "UNIFIED_SRC_NODATA": unified, **({"src_alpha": self.opened.alpha} if self.opened.alpha else {})}

    @cached_property
    def _grid(self):
        dtype = "complex64" if np.dtype(self.opened.source.dtypes[0]).kind == "c" else "float32"
        return WarpedVRT(self.opened.source, crs=self.crs.to_wkt(), transform=self.transform, width=self.width,
                         height=self.height, dtype=dtype, nodata=np.nan, src_transform=self.place.transform,
                         **self._warp)

    @cached_property
    def _source_bands(self):
        source, numbers = self.opened.source, self.opened.numbers
        if np.dtype(source.dtypes[0]).kind == "c":
            return list(as_numbers(read_window(source, numbers)))
        return [rasterio.band(source, number) for number in numbers]

    def _read_bands(self, window):
        """(C, h, w) of a window of the grid, NaN where nothing is shown."""
        if self.place.transform:
            return as_numbers(read_window(self._grid, self.opened.numbers, window=window))
        bands = np.full((len(self.opened.numbers), window.height, window.width), np.nan, np.float32)
        transform = self.transform * Affine.translation(window.col_off, window.row_off)
        try:
            for source_band, band in zip(self._source_bands, bands):
                reproject(source_band, band, gcps=self.place.gcps, dst_nodata=np.nan, dst_transform=transform,
                          dst_crs=self.crs.to_wkt(), init_dest_nodata=True, **self._warp)
        except RasterioError as error:
            raise InputError(f"{self.flag} {self.file} cannot be read ({reason_of(error)})")
        return bands

    def read(self, left, top, width, height):
        """((h, w, 3) uint8, (h, w) bool where there is something) of a window of the grid, within it."""
        reader, nodata, _ = self.look
        source = self.opened.source
        bands = self._read_bands(Window(left, top, width, height))
        shown = np.isfinite(bands).all(0)
        if nodata is not None and source.nodata is not None:          # GDAL's warper takes one of them
            shown &= (bands != source.nodata).any(0)
        if nodata is not None and np.dtype(source.dtypes[0]).kind != "f":
            specks = ~shown & ~without_specks(~shown)   # true values, within the image
            bands[:, specks], shown = nodata, shown | specks
        if self.mask:
            shown &= self.mask.read(left, top, width, height)
        if source.colorinterp[0] == ColorInterp.palette:
            bands = palette_of(source)[np.nan_to_num(bands[0]).astype(int)].transpose(2, 0, 1)
        elif source.dtypes[0] == "uint8":
            bands = np.nan_to_num(bands).round().astype(np.uint8)
        return reader.to_bytes(bands, shown) * shown[..., None], shown

    @property
    def identity(self):
        """What the pixels of the grid depend on, but for the reader's tones: a list for json."""
        source = self.opened.source
        gcps = [[p.row, p.col, p.x, p.y] for p in self.place.gcps or ()]
        lies = [self.place.crs.to_wkt(), list(self.place.transform or ()), gcps, list(source.shape)]
        grid = [self.crs.to_wkt(), list(self.transform), self.metres]
        mask = [self.mask.source.name, state_of(self.mask.file)] if self.mask else []
        return [state_of(self.file), source.name, lies, grid, repr(self.look[0]), self.look[1], *mask]

    @property
    def map_crs(self):
        """The map's CRS, which to_map gives coordinates in."""
        return self.place.own or self.place.crs

    def to_map(self, x, y):
        """Px of the grid -> coordinates in the map's CRS."""
        x, y = self._to_map.transform(*(self.transform * (x, y)))
        return x + self.place.meridian, y

    def from_map(self, x, y):
        """Coordinates in the map's CRS -> px of the grid."""
        return self.from_crs(x - self.place.meridian, y, self.place.crs)

    def to_lonlat(self, x, y):
        return self._to_lonlat.transform(*(self.transform * (x, y)))

    def from_lonlat(self, longitude, latitude):
        return ~self.transform * self._to_lonlat.transform(longitude, latitude, direction="INVERSE")

    def metres_from_middle(self, longitude, latitude):
        """Metres over the Earth from the grid's middle to a place."""
        here = self.to_lonlat(self.width / 2, self.height / 2)
        return Geod(ellps="WGS84").inv(*here, longitude, latitude)[2]

    def from_crs(self, x, y, crs):
        """Coordinates in any CRS -> px of the grid."""
        x, y = Transformer.from_crs(crs, self.crs, always_xy=True).transform(x, y)
        return ~self.transform * (x, y)


class Mask:
    """Where a raster of one band is neither zero nor nodata, on the grid of a GeoMap; beyond its edge it is zero.

    place: its Georeference (default: its own). flag: that named the file. InputError where it has more bands or lies
    nowhere.
    """

    def __init__(self, file, grid, flag, place=None):
        self.file, self.grid = str(file), grid
        self.source = open_mask(file, flag)
        self.place = place or georeference_of(self.source)
        if self.place is None:
            raise InputError(f"{flag} {file} is not georeferenced: give one that is, as the map is")

    @cached_property
    def _on_grid(self):
        nodata = 0 if self.source.nodata is None else self.source.nodata
        return WarpedVRT(self.source, crs=self.grid.crs.to_wkt(), transform=self.grid.transform, width=self.grid.width,
                         height=self.grid.height, src_crs=self.place.crs.to_wkt(), src_transform=self.place.transform,
                         src_nodata=nodata, nodata=nodata, resampling=Resampling.nearest)

    def _read(self, left, top, width, height, shape):
        """(h, w) bool of a window of the grid, seen at another shape."""
        if self.place.transform:
            return read_mask(self._on_grid, window=Window(left, top, width, height), out_shape=shape)
        scale = Affine.scale(width / shape[1], height / shape[0])
        seen = np.zeros(shape, np.uint8)
        reproject(self._whole, seen, gcps=self.place.gcps, src_crs=self.place.crs.to_wkt(),
                  dst_transform=self.grid.transform * Affine.translation(left, top) * scale,
                  dst_crs=self.grid.crs.to_wkt(), resampling=Resampling.nearest)
        return seen > 0

    @cached_property
    def _whole(self):
        return read_mask(self.source).astype(np.uint8)

    def read(self, left, top, width, height):
        """(h, w) bool of a window of the grid."""
        return self._read(left, top, width, height, (height, width))

    @cached_property
    def overview(self):
        factor = max(1, max(self.grid.width, self.grid.height) / OVERVIEW)
        shape = tuple(max(1, round(side / factor)) for side in (self.grid.height, self.grid.width))
        return self._read(0, 0, self.grid.width, self.grid.height, shape)

    def at(self, x, y):
        """(N) bool of places (N) and (N) in px of the grid, to a pixel of the overview."""
        height, width = self.overview.shape
        rows, columns = y * height / self.grid.height, x * width / self.grid.width
        return self.overview[rows.clip(0, height - 1).astype(int), columns.clip(0, width - 1).astype(int)]


def state_of(file):
    """[[name, size, time]] of all files that a raster is made of, sources of a VRT and world files among them; of one
    in an archive those of the archive. Empty of what is on a server."""
    try:
        with rasterio.open(str(file)) as source:
            names = source.files
    except (RasterioError, UnicodeError):
        names = []
    states = []
    for name in dict.fromkeys([str(file), *names]):
        path = Path("/" + name.split("/", 2)[2].lstrip("/")) if name.startswith("/vsi") else Path(name)
        path = next((part for part in (path, *path.parents) if part.is_file()), None)
        if path:
            states.append([name, path.stat().st_size, path.stat().st_mtime_ns])
    return states


# Features of a map ---------------------------------------------------------------------------------------------------

class MapFeatures:
    """The cells of a GeoMap, a block at a time, float16, kept beside it where a folder is given.

    network: a CellNetwork. weights: the file of its weights.
    """

    def __init__(self, geo, network, weights, folder):
        self.geo, self.network, self.cell = geo, network, network.cell
        key = json.dumps([geo.identity, hashlib.sha256(Path(weights).read_bytes()).hexdigest()])
        self.folder = None
        if folder:
            self.folder = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
            make_folder(self.folder, "--cache")
            write_text(self.folder / "map.json", key)
        self.in_memory = {}

    def block(self, row, column):
        """The cells (C, h, w), float16, and the mask (1, h, w), bool, of a block."""
        name = f"{row}_{column}"
        file = self.folder and self.folder / f"{name}.npz"
        if file and file.is_file():
            try:
                with np.load(file, allow_pickle=False) as kept:
                    return kept["cells"], kept["mask"]
            except (BadZipFile, ValueError, EOFError, KeyError):
                file.unlink()                           # damaged: made again
        if name in self.in_memory:
            return self.in_memory[name]
        top, left = row * BLOCK, column * BLOCK
        bottom, right = min(self.geo.height, top + BLOCK), min(self.geo.width, left + BLOCK)
        # Around it as much as has a say in its cells, so that blocks give what the whole would.
        upper, first = max(0, top - HALO), max(0, left - HALO)
        image, shown = self.geo.read(first, upper, min(self.geo.width, right + HALO) - first,
                                     min(self.geo.height, bottom + HALO) - upper)
        whole = map_of(self.network, image, shown)
        rows = slice((top - upper) // self.cell, -(-(bottom - upper) // self.cell))
        columns = slice((left - first) // self.cell, -(-(right - first) // self.cell))
        block = whole.cells[:, rows, columns].half().cpu().numpy(), whole.mask[:, rows, columns].bool().cpu().numpy()
        if file:
            content = io.BytesIO()
            np.savez(content, cells=block[0], mask=block[1])
            write_bytes(file, content.getbuffer())
        else:
            self.in_memory[name] = block
            if len(self.in_memory) > IN_MEMORY:
                self.in_memory.pop(next(iter(self.in_memory)))
        return block

    def window(self, left, top, right, bottom):
        """The Map of a window of the grid, cut at the grid's edges, its own at multiples of a cell that hold it."""
        left, top = (max(0, int(edge) // self.cell * self.cell) for edge in (left, top))
        right, bottom = (min(size, int(np.ceil(edge / self.cell)) * self.cell)
                         for size, edge in ((self.geo.width, right), (self.geo.height, bottom)))
        rows = []
        for row in range(top // BLOCK, -(-bottom // BLOCK)):
            blocks = [self._part_of_block(row, column, left, top, right, bottom)
                      for column in range(left // BLOCK, -(-right // BLOCK))]
            rows.append([np.concatenate(parts, 2) for parts in zip(*blocks)])
        cells, mask = (np.concatenate(parts, 1) for parts in zip(*rows))
        device = self.network.device
        return Map(torch.from_numpy(cells).to(device).float(), torch.from_numpy(mask).to(device).float(), self.cell,
                   (left, top), finer=self.finer)

    def finer(self, x, y, half):
        """The Map of the network's finer cells within `half` px of (x, y), from the pixels: they are not kept."""
        left, top = (max(0, int(middle - half - HALO) // self.cell * self.cell) for middle in (x, y))
        right, bottom = (min(size, int(middle + half + HALO)) for middle, size in
                         ((x, self.geo.width), (y, self.geo.height)))
        finer = map_of(self.network.finer, *self.geo.read(left, top, right - left, bottom - top))
        return replace(finer, origin=(left, top)).part(x, y, half)

    def _part_of_block(self, row, column, left, top, right, bottom):
        """What of a block lies within a window."""
        cells, mask = self.block(row, column)
        upper, first = row * BLOCK, column * BLOCK
        inside = np.s_[:, max(0, top - upper) // self.cell:-(-(bottom - upper) // self.cell),
                       max(0, left - first) // self.cell:-(-(right - first) // self.cell)]
        return cells[inside], mask[inside]

    def windows(self, side, area):
        """Windows that together hold every place of a query of `side` px in area (left, top, right, bottom)."""
        left, top, right, bottom = area
        step = max(AT_ONCE * BLOCK, side)
        corners = [(x, y) for y in np.arange(top, bottom, step) for x in np.arange(left, right, step)]
        for x, y in tqdm(corners, desc="map", leave=False, disable=None):
            yield self.window(x, y, min(x + step + side, right), min(y + step + side, bottom))
