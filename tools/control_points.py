"""A located query for other programs: control points on the map, and the query itself with them or warped by them."""
import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import calculate_default_transform, reproject

from shared.plumbing.errors import OutputError
from shared.plumbing.files import written_beside
from shared.reading.raster import open_raster, read_window, reason_of
from tools.tie_points import turned_to

LATTICE = np.linspace(0, 1, 5)
MOST_BENT = 0.25                                        # px up to which five points tell where the query lies
TOLERANCE = 0.02                                        # px of GDAL's own, from one block to the next
GTIFF = {"driver": "GTiff", "compress": "deflate", "tiled": True, "blockxsize": 512, "blockysize": 512,
         "BIGTIFF": "IF_SAFER"}
NO_SIDECARS = {"GDAL_PAM_ENABLED": "NO", "GDAL_TIFF_INTERNAL_MASK": "YES"}


# Points --------------------------------------------------------------------------------------------------------------

def points_of_answer(query, answer, geo):
    """Rows as rows_of_points gives them: the corners of the query's file and its centre, by the answer alone; 5 x 5
    points where an affine transform of these does not tell where the others lie (another projection, orbits)."""
    width, height = query.file_size
    five = np.array([(0, 0), (width, 0), (width, height), (0, height), (width / 2, height / 2)])
    lattice = np.stack(np.meshgrid(width * LATTICE, height * LATTICE), -1).reshape(-1, 2)
    places, more = (_on_map(points, query, answer, geo) for points in (five, lattice))
    plane = np.linalg.lstsq(_with_ones(places - places[4]), five, rcond=None)[0]
    if np.abs(_with_ones(more - places[4]) @ plane - lattice).max() > MOST_BENT:
        five, places = lattice, more
    return [{"map_x": round(x, 7), "map_y": round(y, 7), "column": column, "row": row, "kept": 1,
             "residual": (0.0, 0.0)} for (x, y), (column, row) in zip(places.tolist(), five.tolist())]


def _on_map(pixels, query, answer, geo):
    """(N, 2) px of the query's file -> (N, 2) coordinates in the map's CRS, where its answer puts them."""
    seen = np.array([query.seen_pixel(*pixel) for pixel in pixels])
    return np.array([geo.to_map(*place) for place in turned_to(seen, query.pixels.shape, answer)])


def _with_ones(points):
    return np.column_stack([np.ones(len(points)), points])


# The query itself ----------------------------------------------------------------------------------------------------

def copy_with_points(query_file, rows, crs, file):
    """Write a query as it is in its file, with control points in the place of any georeference: GeoTIFF.

    All bands, numbers, nodata, descriptions, colours, masks and metadata stay; it is read and written block by block.
    rows: as rows_of_points gives them, of which those kept count. crs: pyproj's, of the map.
    InputError where the query cannot be read to its end, OutputError where the copy cannot be written.
    """
    kept = {(row["row"], row["column"]): (row["map_x"], row["map_y"]) for row in rows if row["kept"]}     # each once
    points = [GroundControlPoint(*pixel, *place) for pixel, place in kept.items()]
    with open_raster(query_file, "--query") as source, written_beside(file) as beside, rasterio.Env(**NO_SIDECARS):
        with rasterio.open(beside, "w", width=source.width, height=source.height, gcps=points, crs=crs.to_wkt(),
                           **_settings(source), **GTIFF) as out:
            _describe(source, out)
            has_mask = source.mask_flag_enums[0] == [MaskFlags.per_dataset]       # and no alpha among its bands
            for _, window in out.block_windows(1):
                out.write(read_window(source, window=window), window=window)
                if has_mask:
                    hidden = np.ma.getmaskarray(read_window(source, 1, window=window, masked=True))
                    out.write_mask(~hidden, window=window)
        _require_whole(beside, file)


def warp_by_points(copy, file, thin_plates=False):
    """Write what copy_with_points wrote, warped by its control points onto their CRS: GeoTIFF, north up, its own bands,
    numbers and resolution, bilinear; what has no nodata gets a mask.

    thin_plates: exactly through every control point, rather than by a polynomial. OutputError as above.
    """
    method = {"METHOD": "GCP_TPS"} if thin_plates else {}
    with rasterio.open(copy) as source, written_beside(file) as beside, rasterio.Env(**NO_SIDECARS):
        gcps, crs = source.gcps
        settings, numbers = _settings(source), _numbers(source)
        if settings["nodata"] is None and numbers.kind == "f":
            settings["nodata"] = np.nan
        transform, width, height = calculate_default_transform(crs, crs, source.width, source.height, gcps=gcps,
                                                               **method)
        colours = source.colorinterp
        alpha = colours.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colours else 0
        has_mask = not alpha and settings["nodata"] is None
        how = {"gcps": gcps, "src_crs": crs, "dst_crs": crs, "tolerance": TOLERANCE, **method,
               "resampling": Resampling.nearest if ColorInterp.palette in colours else Resampling.bilinear,
               "src_nodata": settings["nodata"], "dst_nodata": settings["nodata"], "src_alpha": alpha,
               "dst_alpha": alpha or (source.count + 1 if has_mask else 0)}
        with rasterio.open(beside, "w", width=width, height=height, transform=transform, crs=crs, **settings,
                           **GTIFF) as out:
            _describe(source, out)
            for _, window in out.block_windows(1):
                block = np.zeros((source.count + has_mask, window.height, window.width), numbers)
                corner = Affine.translation(window.col_off, window.row_off)
                reproject(rasterio.band(source, list(source.indexes)), block, dst_transform=transform * corner, **how)
                out.write(block[:source.count], window=window)
                if has_mask:
                    out.write_mask(block[-1] != 0, window=window)
        _require_whole(beside, file)


def _settings(source):
    """What a GeoTIFF of a dataset's bands is opened with."""
    dtype = source.dtypes[0] if len(set(source.dtypes)) == 1 else _numbers(source).name
    return {"count": source.count, "dtype": dtype, "nodata": source.nodata}


def _numbers(source):
    """NumPy's type that holds all bands of a dataset; of complex integers it has none."""
    return np.result_type(*("complex64" if dtype == "complex_int16" else dtype for dtype in source.dtypes))


def _describe(source, out):
    """What the bands of a dataset are, for another of the same bands."""
    out.colorinterp = source.colorinterp
    if source.colorinterp[0] == ColorInterp.palette:
        out.write_colormap(1, source.colormap(1))
    out.descriptions, out.units = source.descriptions, source.units
    out.scales, out.offsets = source.scales, source.offsets
    # Of a corner of a pixel control points are, whatever the transform was of.
    out.update_tags(**{name: text for name, text in source.tags().items() if name != "AREA_OR_POINT"})
    for number in source.indexes:
        out.update_tags(number, **source.tags(number))


def _require_whole(beside, file):
    """OutputError where a block cannot be read again: GDAL does not say that the disk was full when it closed."""
    try:
        with rasterio.open(beside) as written:
            for _, window in written.block_windows(1):
                written.read(window=window)
    except RasterioError as error:
        raise OutputError(f"{file} cannot be written ({reason_of(error)}): is the disk full?")
