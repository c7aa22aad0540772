"""A finished run in three lines: embed images, search among them, locate one on a map. hubconf.py gives it."""
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from shared.dataset import decode_images, showing_nothing
from shared.evaluate import embed, first_answers
from shared.mapping.locator import ROTATIONS, Locator, circle_about
from shared.mapping.maps import MapFeatures, georeference_of
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, several
from shared.reading.raster import open_raster, read_window
from shared.reading.readers import readers_of_run

MODALITIES = ("sar", "opt")
BESIDE = "+proj=aeqd +lat_0=0 +lon_0=0 +datum=WGS84 +units=m +no_defs"          # of a map in memory, of no place


class Retriever:
    """A finished run. Images are paths, PIL images, NumPy arrays or tensors, one or a list or a batch of them.

    Bytes are taken as they are. An array of one channel and other numbers (dB, amplitude, 16 bits) is stretched as a
    file's are (docs/data.md); three channels of floats in [0, 1] are a picture, as torchvision has it. Arrays are
    (H, W), (H, W, 3) or (3, H, W); of complex numbers the magnitude counts.
    run: the folder of a finished run, or a packed file. device: a name of torch's, or auto. amp: as --amp takes it.
    Raises InputError where the run is none, or the device is not there.
    """

    def __init__(self, run, device="auto", amp="auto"):
        self.run, self.device = Path(run), choose_device(device)
        self.autocast = autocast(self.device, amp)
        self.readers = readers_of_run(self.run, is_own_data=False)
        self.model, self.img_size = load_model(self.run, self.device)
        self.locator = None

    def embed(self, images, modality):
        """(N, D) float32 on the CPU, of length 1: the FC vectors of square images, `sar` or `opt`, which are resized to
        the run's size. Beyond bytes SAR images are stretched each by itself, optical ones all alike.

        InputError that names every image that cannot be used.
        """
        if modality not in MODALITIES:
            raise InputError(f"modality {modality!r}: give one of {', '.join(MODALITIES)}")
        if getattr(images, "ndim", 0) == 4:
            images = list(images)                                     # a batch
        images = images if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise InputError(f"there is no {modality} image to embed")
        with ExitStack() as stack:
            files = [Path(stack.enter_context(as_file(image, number))) for number, image in enumerate(images)]
            reader = self.readers[modality]
            if modality == "opt":
                reader = reader.measured_on(files)                    # a map's tiles by one stretch
            decoded = decode_images(files, self.img_size, 1, reader)
        if modality == "sar" and (empty := showing_nothing(decoded)):
            raise several(f"{len(empty)} image(s) cannot be used:",
                          [f"{name_of(images[i], i)}: shows nothing that could be found, every pixel is alike"
                           for i in empty])
        return embed(self.model, decoded, modality, self.device, self.autocast)["FC"]

    def search(self, query, gallery, k=5):
        """The k best optical images of each SAR image: scores (N, k) float32 and rows (N, k) int64, on the CPU.

        query: SAR images; gallery: optical images; or of each what embed() gave. k: at most as many as the gallery has.
        """
        query, gallery = (images if isinstance(images, torch.Tensor) and images.ndim == 2 and images.is_floating_point()
                          else self.embed(images, modality)
                          for images, modality in ((query, "sar"), (gallery, "opt")))
        if query.shape[1] != gallery.shape[1]:
            raise InputError(f"the query has vectors of {query.shape[1]} numbers, the gallery of {gallery.shape[1]}: "
                             "embed both by this run")
        if not 1 <= k <= len(gallery):
            raise InputError(f"k {k}: the gallery has {len(gallery)} images; give 1 to {len(gallery)}")
        scores, rows = first_answers(query.to(self.device), gallery, k)
        return scores.cpu(), rows.cpu()

    def open_map(self, image, resolution=None, cache=None, mask=None):
        """An OpenMap for locate(): what was worked out of it is used again for the next query.

        image: a georeferenced file; or any other image, with its resolution in metres a pixel. cache: a folder that
        keeps the map's features from one process to the next. mask: an image of the same kind, georeferenced or of the
        map's size; where it is zero nothing is looked for. InputError where it is no map that can be used.
        """
        require_above_zero(resolution=resolution)
        if isinstance(image, (str, Path)) and resolution:
            with open_raster(image, "map") as source:
                if georeference_of(source):
                    raise InputError(f"map {image} tells its resolution itself: leave resolution out")
        if self.locator is None:
            self.locator = Locator(self.run, self.device, self.autocast, self.readers)
        stack = ExitStack()
        file = stack.enter_context(as_file(image, "map", resolution))
        if mask is not None:
            mask = stack.enter_context(as_file(mask, "map_mask", resolution))
        geo = self.locator.open_map(file, mask)
        return OpenMap(self.locator.features_of(geo, cache), resolution, stack)

    def locate(self, query, map, resolution=None, rotation="known", prior=None, radius=None, mask=None):
        """Where on an optical map a SAR image lies: a dictionary.

        query: a SAR image; a georeferenced file is seen north up. map: a georeferenced file, or an OpenMap.
        resolution: metres of a pixel of a query without a georeference. rotation: known (its upper edge is north), 15
        (to within so many degrees), or unknown. prior: (x, y) in the map's coordinates, and radius, in metres: where
        its middle lies at most so far away. mask: an image of the query's size, whose zeros are not looked at.
        Returns {"status": located, ambiguous, not on this map, too little texture, too much nodata or resolution does
        not fit (docs/use.md), "reason": words or ""}; where there is an answer also "x", "y": the middle, in the
        map's coordinates (of an image without a georeference px from its upper left corner), "longitude", "latitude"
        (of georeferenced maps), "rotation": degrees clockwise from north, "probability", "score": the cosine,
        "radius": metres within which the truth lies in nine of ten such cases, "alternatives": [{"x", "y", "rotation",
        "score", "probability"}] of the next best.
        InputError where the query, the map or the prior cannot be used.
        """
        if str(rotation) not in ROTATIONS:
            raise InputError(f"rotation {rotation!r}: give one of {', '.join(ROTATIONS)}")
        if (prior is None) != (radius is None):
            raise InputError("prior and radius go together: give both, or neither")
        if prior is not None and (np.shape(prior) != (2,) or not all(is_number(part) for part in prior)):
            raise InputError(f"prior {prior!r}: give (x, y) in the map's coordinates")
        require_above_zero(resolution=resolution, radius=radius)
        if resolution is None and not isinstance(query, (str, Path)):
            raise InputError("the query is an image in memory: give its resolution in metres a pixel")
        opened = map if isinstance(map, OpenMap) else self.open_map(map)
        geo = opened.features.geo
        with ExitStack() as stack:
            file = stack.enter_context(as_file(query, "query"))
            if mask is not None:
                mask = stack.enter_context(as_file(mask, "query_mask"))
            asked = self.locator.open_query(file, resolution, geo, mask)
            circle = None
            if prior is not None:
                circle = circle_about(*geo.from_map(*opened.from_pixel(*prior)), radius, geo, prior)
            location = self.locator.locate(asked, opened.features, ROTATIONS[str(rotation)], circle)
        found = {"status": location.status, "reason": location.reason}
        if not location.answers:
            return found
        first, *others = (opened.place_of(answer) for answer in location.answers)
        return {**found, **first, "radius": location.radius, "alternatives": others}


class OpenMap:
    """A map that was opened. features: its MapFeatures. resolution: of an image without a georeference, or None."""

    def __init__(self, features: MapFeatures, resolution, stack):
        self.features, self.resolution, self.stack = features, resolution, stack

    def from_pixel(self, x, y):
        """The map's coordinates: of an image without a georeference, of its px."""
        return (x * self.resolution, -y * self.resolution) if self.resolution else (x, y)

    def place_of(self, answer):
        geo = self.features.geo
        x, y = geo.to_map(answer.x, answer.y)
        place = {"x": x / self.resolution, "y": -y / self.resolution} if self.resolution else {"x": x, "y": y}
        if not self.resolution:
            place["longitude"], place["latitude"] = map(float, geo.to_lonlat(answer.x, answer.y))
        return {**place, "rotation": float(answer.rotation % 360), "score": answer.score,
                "probability": answer.probability}


def is_number(value):
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def require_above_zero(**values):
    """InputError where one of the values that are given is no number above zero."""
    for name, value in values.items():
        if value is not None and not (is_number(value) and value > 0):
            raise InputError(f"{name} {value!r}: give a number above zero, in metres")


def name_of(image, number):
    return str(image) if isinstance(image, (str, Path)) else f"image {number}"


@contextmanager
def as_file(image, name, resolution=None):
    """A path by which the readers open an image: its own, or one in memory.

    image: a path, a PIL image, an array or a tensor. resolution: metres a pixel, which makes a map of it.
    """
    if isinstance(image, (str, Path)) and not resolution:
        yield str(image)
        return
    bands = bands_of(image)
    count, height, width = bands.shape
    place = {"crs": BESIDE, "transform": from_origin(0, 0, resolution, resolution)} if resolution else {}
    with rasterio.MemoryFile(filename=f"{name}.tif") as memory:
        with memory.open(driver="GTiff", width=width, height=height, count=count, dtype=bands.dtype, **place) as out:
            out.write(bands)
        yield memory.name


def bands_of(image):
    """(C, H, W) uint8 or float32 of a path, a PIL image, an array or a tensor. InputError where it is no image."""
    if isinstance(image, (str, Path)):
        with open_raster(image) as source:
            return read_window(source)
    if isinstance(image, Image.Image):
        image = image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr", "1") else image
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.dtype == bool:
        array = array.astype(np.uint8)                                # a mask
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype.kind not in "uifc" or not array.size:
        raise InputError(f"an image of shape {array.shape} and type {array.dtype}: give (H, W), (H, W, 3) or (3, H, W) "
                         "numbers")
    if array.shape[0] not in (1, 3) and array.shape[2] <= 4:
        array = array.transpose(2, 0, 1)
    if array.shape[0] not in (1, 3, 4):
        raise InputError(f"an image of {array.shape[0]} channels: give one, or three")
    if array.dtype == np.uint8:
        return array
    if np.iscomplexobj(array):
        return array.astype(np.complex64)
    array = array.astype(np.float32)
    if len(array) == 3 and np.nanmin(array) >= 0 and np.nanmax(array) <= 1:
        return np.round(array * 255).astype(np.uint8)                 # as torchvision's to_tensor gives it
    return array
