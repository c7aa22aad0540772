"""A georeferenced map, read in windows: any GeoTIFF, as north-up pixels of the size that the matcher learned from."""
import hashlib
import json
import os
from pathlib import Path

os.environ.setdefault("GDAL_CACHEMAX", "128")          # MiB; by default a twentieth of the memory, whatever the map

import numpy as np
import rasterio
import torch
from pyproj import CRS, Transformer
from pyproj.aoi import AreaOfInterest
from pyproj.database import query_utm_crs_info
from rasterio.enums import Resampling
from rasterio.errors import RasterioIOError
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from tqdm import tqdm

from shared.localization import Map, map_features
from shared.matcher import GRAIN, HALO, STRIDE
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text

BLOCK = 1024                                            # px a side that are read and embedded at once
IN_MEMORY = 32                                          # blocks of 4 MiB, where they are not kept beside the map
LEVELS = (2, 98)                                        # percentiles that become black and white, beyond 8 bits


class GeoMap:
    """A map as its file holds it, seen on a north-up grid of `metres` a pixel in `crs`.

    The grid's crs is the map's own where that counts in metres, else the UTM zone of its middle. Positions are (x, y)
    in px of the grid, from its upper left corner, as in shared/localization.py.
    Raises InputError where the file is no map: no raster, no CRS, one band, nothing but nodata.
    """

    def __init__(self, file, metres):
        self.file = Path(file)
        try:
            self.source = rasterio.open(file)
        except RasterioIOError as error:
            raise InputError(f"--map {file} cannot be read as a raster ({str(error).splitlines()[0]}): give a GeoTIFF")
        source = self.source
        if source.crs is None:
            raise InputError(f"--map {file} has no CRS: georeference it (gdal_translate -a_srs -a_ullr)")
        if source.count < 3:
            raise InputError(f"--map {file} has {source.count} band(s): give an optical map of three, red, green, blue")
        self.map_crs = CRS.from_user_input(source.crs)
        self.crs = self.map_crs if _counts_in_metres(self.map_crs) else _utm_of(source)
        left, bottom, right, top = transform_bounds(source.crs, self.crs, *_bounds(source))
        self.metres = metres
        self.width, self.height = (max(1, round(side / metres)) for side in (right - left, top - bottom))
        self.transform = from_origin(left, top, metres, metres)
        self.own_metres = (abs(source.transform.determinant) ** 0.5 if self.crs == self.map_crs else
                           ((right - left) * (top - bottom) / (source.width * source.height)) ** 0.5)
        has_mask = source.nodata is not None or source.colorinterp[-1].name == "alpha"
        resampling = Resampling.average if metres > 1.5 * self.own_metres else Resampling.bilinear
        self.grid = WarpedVRT(source, crs=self.crs, transform=self.transform, width=self.width, height=self.height,
                              resampling=resampling, add_alpha=not has_mask)
        self.levels = self._levels()
        self._to_map = Transformer.from_crs(self.crs, self.map_crs, always_xy=True)
        self._to_lonlat = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)

    def _levels(self):
        """(low, high) of each of the three bands, that become 0 and 255."""
        scale = max(1, max(self.width, self.height) // 1000)
        shape = max(1, self.height // scale), max(1, self.width // scale)
        image = self.grid.read((1, 2, 3), out_shape=(3, *shape))
        shown = self.grid.dataset_mask(out_shape=shape) > 0
        if not shown.any():
            raise InputError(f"--map {self.file} holds nothing but nodata: give a map that shows something")
        if image.dtype == np.uint8:
            return np.zeros(3), np.full(3, 255.0)
        low, high = np.nanpercentile(image[:, shown].astype(float), LEVELS, axis=1)
        return low, np.maximum(high, low + 1e-6)

    def read(self, left, top, width, height):
        """((h, w, 3) uint8, (h, w) bool where there is map) of a window of the grid, within it."""
        window = Window(left, top, width, height)
        image = self.grid.read((1, 2, 3), window=window).transpose(1, 2, 0)
        shown = self.grid.dataset_mask(window=window) > 0
        if image.dtype != np.uint8:
            low, high = self.levels
            scaled = (np.nan_to_num(image.astype(float)) - low) / (high - low)
            image = (255 * scaled).clip(0, 255).astype(np.uint8)
        return image * shown[..., None], shown

    def to_map(self, x, y):
        """Px of the grid -> coordinates in the map's CRS."""
        return self._to_map.transform(*(self.transform * (x, y)))

    def to_lonlat(self, x, y):
        return self._to_lonlat.transform(*(self.transform * (x, y)))

    def from_crs(self, x, y, crs):
        """Coordinates in any CRS -> px of the grid."""
        x, y = Transformer.from_crs(crs, self.crs, always_xy=True).transform(x, y)
        return ~self.transform * (x, y)


class MapFeatures:
    """The matcher's features of a GeoMap, a block at a time, kept beside it where a folder is given.

    Kept as bytes: a component of a unit vector, -1 to 1, becomes -127 to 127.
    """

    def __init__(self, geo, model, weights, folder, device, autocast):
        self.geo, self.model, self.device, self.autocast = geo, model, device, autocast
        self.rows, self.columns = -(-geo.height // BLOCK), -(-geo.width // BLOCK)
        status = geo.file.stat()
        key = json.dumps([str(geo.file.resolve()), status.st_size, status.st_mtime, geo.metres,
                          hashlib.sha256(Path(weights).read_bytes()).hexdigest()])
        self.folder = None
        if folder:
            self.folder = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:16]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "map.json", key)
        self.in_memory = {}

    def block(self, row, column):
        """The int8 features (C, h, w) and the mask (1, h, w) of a block."""
        name = f"{row}_{column}"
        file = self.folder and self.folder / f"{name}.npz"
        if file and file.is_file():
            with np.load(file, allow_pickle=False) as kept:
                return kept["features"], kept["mask"]
        if name in self.in_memory:
            return self.in_memory[name]
        top, left = row * BLOCK, column * BLOCK
        bottom, right = min(self.geo.height, top + BLOCK), min(self.geo.width, left + BLOCK)
        # Around it as much as has a say in its cells, so that blocks give what the whole would.
        upper, first = max(0, top - HALO), max(0, left - HALO)
        image, shown = self.geo.read(first, upper, min(self.geo.width, right + HALO) - first,
                                     min(self.geo.height, bottom + HALO) - upper)
        whole = map_features(self.model, image, self.device, self.autocast, shown)
        rows = slice((top - upper) // STRIDE, -(-(bottom - upper) // STRIDE))
        columns = slice((left - first) // STRIDE, -(-(right - first) // STRIDE))
        features = (whole.features[:, rows, columns] * 127).round().to(torch.int8).cpu().numpy()
        block = features, whole.mask[:, rows, columns].bool().cpu().numpy()
        if file:
            beside = file.with_suffix(".part.npz")
            np.savez(beside, features=block[0], mask=block[1])
            beside.replace(file)
        else:
            self.in_memory[name] = block
            if len(self.in_memory) > IN_MEMORY:
                self.in_memory.pop(next(iter(self.in_memory)))
        return block

    def window(self, left, top, width, height):
        """The Map of a window of the grid, cut at the grid's edges and begun at a multiple of GRAIN px."""
        left, top = (max(0, int(edge) // GRAIN * GRAIN) for edge in (left, top))
        right, bottom = min(self.geo.width, left + int(width)), min(self.geo.height, top + int(height))
        rows = []
        for row in range(top // BLOCK, -(-bottom // BLOCK)):
            blocks = [self.block(row, column) for column in range(left // BLOCK, -(-right // BLOCK))]
            rows.append([np.concatenate(parts, 2) for parts in zip(*blocks)])
        features, mask = (np.concatenate(parts, 1) for parts in zip(*rows))
        down, across = (top % BLOCK) // STRIDE, (left % BLOCK) // STRIDE
        cells = np.s_[:, down:down + -(-(bottom - top) // STRIDE), across:across + -(-(right - left) // STRIDE)]
        features = torch.from_numpy(features[cells].astype(np.float32) / 127).to(self.device)
        return Map(features, torch.from_numpy(mask[cells].astype(np.float32)).to(self.device), (left, top))

    def windows(self, side, area):
        """Windows that together hold every place of a query of `side` px in area (left, top, right, bottom)."""
        left, top, right, bottom = area
        step = max(BLOCK, side)
        corners = [(x, y) for y in np.arange(top, bottom, step) for x in np.arange(left, right, step)]
        for x, y in tqdm(corners, desc="map", leave=False, disable=None):
            yield self.window(x, y, min(step + side, right - x) + GRAIN, min(step + side, bottom - y) + GRAIN)


def _counts_in_metres(crs):
    return crs.is_projected and all(axis.unit_conversion_factor == 1 for axis in crs.axis_info[:2])


def _utm_of(source):
    west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *_bounds(source))
    longitude, latitude = (west + east) / 2, (south + north) / 2
    area = AreaOfInterest(longitude, latitude, longitude, latitude)
    zones = query_utm_crs_info(datum_name="WGS 84", area_of_interest=area)
    if not zones:
        raise InputError(f"--map lies at {longitude:.2f}, {latitude:.2f}, where there is no UTM zone: give it in a "
                         "projection that counts in metres")
    return CRS.from_epsg(zones[0].code)


def _bounds(source):
    """(left, bottom, right, top) of a raster however it is turned."""
    corners = [source.transform * corner for corner in
               ((0, 0), (source.width, 0), (0, source.height), (source.width, source.height))]
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)
