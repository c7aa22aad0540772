"""One reader for every raster: which bands, which pixels show something, in what tones (docs/data.md).

rasterio (GDAL) opens all but plain PNG and JPEG, which OpenCV decodes faster.
"""
import io
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("GDAL_CACHEMAX", "128")          # MiB; by default a twentieth of the memory, whatever the raster

import cv2
import numpy as np
import rasterio
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from shared.plumbing.errors import InputError
from shared.reading.nodata import is_all_or_nothing, undeclared_nodata, without_specks
from shared.reading.tones import Stretch, Tones, evenly, measure_stretch

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".jp2", ".vrt")
PLAIN = (".png", ".jpg", ".jpeg")
SAMPLE = 32                                             # files that a common stretch is measured on
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


# Opening --------------------------------------------------------------------------------------------------------

REMOTE = {"http": "/vsicurl/http", "https": "/vsicurl/https", "ftp": "/vsicurl/ftp", "s3": "/vsis3/", "gs": "/vsigs/"}


def gdal_path(file):
    """A path or address as GDAL has it, whatever opens it: https://… is /vsicurl/https://…, s3://… is /vsis3/…."""
    scheme, separator, rest = str(file).partition("://")
    if not separator or scheme not in REMOTE:
        return str(file)
    return REMOTE[scheme] + (rest if REMOTE[scheme].endswith("/") else separator + rest)


def open_raster(file, flag=None):
    """The dataset that GDAL opens, whatever the path's form. InputError with GDAL's reason; flag: that named it."""
    named = f"{flag} {file}" if flag else str(file)
    try:
        return rasterio.open(str(file))
    except UnicodeError:
        raise InputError(f"{named} has a name that is not UTF-8: rename it")
    except RasterioError as error:
        if "No such file" in str(error) and not Path(file).exists():
            raise InputError(f"{named} is not there: mend the path")
        raise InputError(f"{named} cannot be opened ({reason_of(error)}): give a raster that GDAL reads, whole and "
                         "with all the files that it names")


def name_of(source):
    """A dataset's name as the user gave it."""
    return source.name.removeprefix("vrt://").partition("?bands=")[0]


def reason_of(error):
    """GDAL's words for what went wrong, in one line."""
    reason = str(error.__cause__ or error).strip()
    return reason.splitlines()[0] if reason else type(error).__name__


def choose_bands(source, modality, bands=None):
    """The numbers, from 1, of the bands that are shown: three, or one.

    Those asked for; else by the file's colour interpretation; else, of SAR, the band described as VV, all of three, or
    the first; of optical images the first three, or the first. InputError where there are no such bands.
    """
    if bands:
        if max(bands) > source.count:
            raise InputError(f"{source.name} has {source.count} band(s), no band {max(bands)}: mend --bands, or "
                             "--sar_bands")
        return tuple(bands)
    colours = {interpretation: number for number, interpretation in enumerate(source.colorinterp, 1)}
    if {ColorInterp.red, ColorInterp.green, ColorInterp.blue} <= colours.keys():
        return tuple(colours[colour] for colour in (ColorInterp.red, ColorInterp.green, ColorInterp.blue))
    if modality == "sar":
        vv = [number for number, words in enumerate(source.descriptions, 1) if words and "VV" in words.upper()]
        if vv or source.count != 3:
            return (vv[0] if vv else 1,)
    return (1, 2, 3) if source.count >= 3 else (1,)


class Opened(NamedTuple):
    """An open dataset, the numbers in it of the bands that are shown and of its alpha or None, and words for both."""
    source: object
    numbers: tuple
    alpha: int
    words: str


def open_bands(file, modality, bands=None, flag=None):
    """Open a raster with the chosen bands alone, and its alpha: as Opened.

    Alpha is a band that the file calls so, or the fourth of bytes, and that is all or nothing but for a hundredth of
    the pixels. InputError as of open_raster and choose_bands.
    """
    source = open_raster(file, flag)
    chosen = choose_bands(source, modality, bands)
    words = f"band{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} of {source.count}, {source.dtypes[0]}"
    named = [number for number, colour in enumerate(source.colorinterp, 1) if colour == ColorInterp.alpha]
    perhaps = named or ([4] if source.count == 4 and source.dtypes[0] == "uint8" else [])
    small = tuple(max(1, side // max(1, max(source.shape) // 1024)) for side in source.shape)
    alpha = [number for number in perhaps if number not in chosen
             and is_all_or_nothing(read_window(source, number, out_shape=small))]
    if set(source.indexes) != {*chosen, *alpha}:        # an alpha that is none, too, would be taken for a mask
        source.close()
        if "?" in str(file):
            raise InputError(f"{flag or 'the file'} {file} has a ? in its name, and GDAL then takes all of its bands: "
                             "rename it")
        source = open_raster(f"vrt://{gdal_path(file)}?bands={','.join(map(str, (*chosen, *alpha)))}", flag)
        chosen, alpha = tuple(range(1, len(chosen) + 1)), [len(chosen) + 1] if alpha else []
    return Opened(source, chosen, alpha[0] if alpha else None, words)


def palette_of(source):
    """(256 or 65536, 3) uint8: the colours that the numbers of a dataset's first band stand for."""
    colours = np.zeros((np.iinfo(source.dtypes[0]).max + 1, 3), np.uint8)
    for number, colour in source.colormap(1).items():
        colours[number] = colour[:3]
    return colours


def read_window(source, *arguments, **settings):
    """source.read(...); InputError with GDAL's reason where a file is broken or lacks a part."""
    try:
        return source.read(*arguments, **settings)
    except (RasterioError, MemoryError) as error:
        raise InputError(f"{name_of(source)} cannot be read ({reason_of(error)}): it is damaged, or lacks a file")


def open_mask(file, flag):
    """The dataset of a mask. InputError where it has more than a band."""
    source = open_raster(file, flag)
    if source.count != 1:
        raise InputError(f"{flag} {file} has {source.count} bands: give one of a single band, zero where nothing is to "
                         "be looked at")
    return source


def read_mask(source, **settings):
    """(H, W) bool: where the dataset of a mask is neither zero nor nodata. settings: as read() takes them."""
    values = read_window(source, 1, **settings)
    is_nodata = values == source.nodata if source.nodata is not None else False
    return np.isfinite(values) & (values != 0) & ~np.asarray(is_nodata)


def as_numbers(bands):
    """Bands as floats or bytes: of complex numbers the magnitude."""
    if np.iscomplexobj(bands):
        bands = np.abs(bands)
    return bands if bands.dtype == np.uint8 else bands.astype(np.float32)


# A whole image ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Reader:
    """Reads the images of one modality alike.

    modality: opt or sar. bands: their numbers, one or three, or None, see choose_bands. scale: one of SCALES. tones:
    what numbers beyond bytes are brought to. stretch: one for all images; None: each by itself. Bytes stay as they are.
    """
    modality: str
    bands: tuple = None
    scale: str = "auto"
    tones: Tones = Tones()
    stretch: Stretch = None

    def measured_on(self, files):
        """The same with one stretch for all, measured on a sample of the files, if it has none; bytes need none."""
        if self.stretch:
            return self
        values = []
        for file in evenly([file for file in files if isinstance(file, (str, Path))], SAMPLE):
            try:
                bands, shown, _ = self.read_bands(file)
            except InputError:
                continue                                # whoever reads all of them says so
            if shown.any() and self._is_stretched(bands):
                values.append(bands[:, shown][:, ::16].astype(np.float32))
        if not values or len({len(each) for each in values}) > 1:
            return self
        return replace(self, stretch=measure_stretch(np.concatenate(values, 1), self.modality, self.scale))

    def measured_in(self, bands, shown):
        """The same with a stretch measured in (C, H, W) numbers, of which `shown` counts, if it has none."""
        if self.stretch or not self._is_stretched(bands):
            return self
        values = bands[:, shown].astype(np.float32)
        return replace(self, stretch=measure_stretch(values, self.modality, self.scale))

    def read(self, file):
        """((H, W, 3) uint8, (H, W) bool: what is shown). InputError where the file cannot be read."""
        bands, shown, _ = self.read_bands(file)
        return self.to_bytes(bands, shown), shown

    def to_bytes(self, bands, shown):
        """(C, H, W) numbers, of which `shown` counts, -> (H, W, 3) uint8."""
        if not self._is_stretched(bands):
            pixels = bands.transpose(1, 2, 0)
            return np.repeat(pixels, 3, 2) if len(bands) == 1 else np.ascontiguousarray(pixels)
        if not shown.any():
            return np.zeros((*shown.shape, 3), np.uint8)
        return self.measured_in(bands, shown).stretch.apply(bands, self.tones)

    def _is_stretched(self, bands):
        return bands.dtype != np.uint8 or self.scale in ("linear", "power")

    def read_bands(self, file):
        """((C, H, W) uint8 or float32, (H, W) bool shown, words for what was taken): one band, or red, green, blue."""
        is_plain = Path(file).suffix.lower() in PLAIN and Path(file).is_file()
        bands, shown, words = _decode(Path(file), self.bands) if is_plain else self._read_raster(file, self.bands)
        nodata = undeclared_nodata(bands)
        if nodata is not None:
            shown &= ~without_specks((bands == nodata).all(0))
            words += f", {nodata:g} along the border taken for nodata"
        return bands, shown, words

    def _read_raster(self, file, bands):
        source, numbers, alpha, words = open_bands(file, self.modality, bands)
        with source:
            if source.colorinterp[0] == ColorInterp.palette:
                return palette_of(source)[read_window(source, 1)].transpose(2, 0, 1), source.dataset_mask() > 0, words
            bands = as_numbers(read_window(source, numbers))
            masks = source.read_masks(numbers) > 0
            # Of bytes one band may well be 0, as in a saturated colour, where 0 is nodata.
            shown = masks.any(0) if bands.dtype == np.uint8 else masks.all(0)
            if alpha:
                shown &= read_window(source, alpha) > 0
        return bands, shown & np.isfinite(bands).all(0), words


# How a whole file ends, and what comes last before it. Some decoders fill up what is missing of half a file, without a
# word. A JPEG's thumbnail has an end of its own, before the image's data begin.
ENDS = {b"\x89P": (b"IEND\xaeB`\x82", b"IDAT"), b"\xff\xd8": (b"\xff\xd9", b"\xff\xda")}


def _decode(file, bands):
    """What Reader.read_bands gives, of a PNG or JPEG: OpenCV lets other threads work meanwhile."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})")
    end, before = ENDS.get(content[:2], (b"", b""))
    if content.rfind(end) < content.rfind(before):
        raise InputError(f"{file}: cannot be decoded (the end of the file is missing)")
    array = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if array is None:
        raise InputError(f"{file}: cannot be decoded (empty, damaged or no image)")
    array = np.atleast_3d(array)
    if array.shape[2] > 1:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]      # OpenCV's order is blue, green, red
    if content[:2] == b"\xff\xd8" and Image.open(io.BytesIO(content)).getexif().get(0x0112, 1) != 1:
        array = np.atleast_3d(np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))
    count = array.shape[2]
    shown = np.ones(array.shape[:2], bool)
    if count in (2, 4):
        alpha = array[..., -1]
        shown = alpha > 0 if is_all_or_nothing(alpha) else shown
    if bands and max(bands) > count:
        raise InputError(f"{file} has {count} band(s), no band {max(bands)}: mend --bands, or --sar_bands")
    chosen = bands or ((1, 2, 3) if count >= 3 else (1,))
    words = f"band{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))} of {count}, {array.dtype}"
    return as_numbers(array[..., [number - 1 for number in chosen]].transpose(2, 0, 1)), shown, words
