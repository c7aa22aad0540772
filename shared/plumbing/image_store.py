"""Where decoded images are kept: in memory where they fit, else in a memory map beside the data set."""
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text
from shared.plumbing.ram import free_memory

STORES = ("auto", "memory", "disk")


def fits_in_memory(size):
    """Whether `size` bytes are at most half of the memory that is free."""
    return size <= free_memory() / 2


def keep_images(images, img_size, store, file, decode, how=""):
    """The decoded images, (N, S, S, 3) uint8.

    images: what is decoded (Paths or TensorRows). store: auto, memory or disk. file: of the memory map, if there is
    one. decode: fills an array of that shape and returns whether all went well; how: words for the way it does. A
    memory map is made once, and again when the way or one of the images has changed (names, sizes and times are kept
    beside it).
    Raises InputError where the memory map cannot be written.
    """
    shape = (len(images), img_size, img_size, 3)
    size = int(np.prod(shape))
    if store == "memory" or (store == "auto" and fits_in_memory(size)):
        array = np.empty(shape, np.uint8)
        decode(array)
        return array
    signature, made_of = Path(f"{file}.json"), json.dumps({"images": _signature(images), "shape": shape, "how": how})
    if not (file.is_file() and signature.is_file() and signature.read_text().strip() == made_of):
        beside = Path(f"{file}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(file.parent).free < size:            # a full disk would end a memory map with a signal
                raise InputError(f"{file}: {size / 1e9:.1f} GB of decoded images do not fit on the disk: "
                                 "free some, or --store memory")
            array = np.memmap(beside, np.uint8, "w+", shape=shape)
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}): "
                             "give a --data_path that can be written to, or --store memory")
        whole = decode(array)
        array.flush()
        del array                                                     # Windows moves and removes no open file
        if not whole:
            beside.unlink()
            return np.empty((0, *shape[1:]), np.uint8)
        signature.unlink(missing_ok=True)
        os.replace(beside, file)
        write_text(signature, made_of)
    return np.memmap(file, np.uint8, "c", shape=shape)


def _signature(images):
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        file = getattr(image, "file", image)
        state = file.stat()
        digest.update(f"{image} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
