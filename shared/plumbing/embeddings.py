"""Embeddings kept on disk, and what they were made of, so that no others are taken for them.

FOLDER/MODALITY_FC.npy and MODALITY_POOL5.npy: (N, D) float32. MODALITY.csv: a row for each image, its name and any of
file, x_m, y_m. MODALITY.json: the run's weights, the flags that change an embedding, and the images' names, sizes and
times. It is written last: without it a folder is not whole. MODALITY is opt or sar.
"""
import hashlib
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from shared.plumbing.errors import InputError
from shared.plumbing.files import read_rows, write_rows, write_text
from shared.plumbing.packed import require_run

FLOAT32 = np.dtype(np.float32)
ROWS_AT_ONCE = 8192
REMEDY = ("embed the images again (tools/search.py --gallery IMAGES --save_embeddings FOLDER, or test.py "
          "--save_embeddings)")


def made_by(run, **flags):
    """What tells the embeddings of a run from others: its weights, and the flags that change an embedding."""
    return {"weights": hashlib.sha256(require_run(run, "--run").read_bytes()).hexdigest(), **flags}


def fingerprint(files):
    """A hash of the names, sizes and times of files, in their order. OSError where one is not there."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        state = os.stat(file)
        digest.update(os.fsencode(f"{Path(file).name}\n{state.st_size} {state.st_mtime_ns}\n"))
    return digest.hexdigest()


def rows_not_finite(embeddings):
    """The rows of (N, D) floats that hold NaN or infinity, a list of their numbers."""
    finite = torch.cat([portion.isfinite().all(1) for portion in embeddings.split(ROWS_AT_ONCE)])
    return (~finite).nonzero().flatten().tolist()


# Written -------------------------------------------------------------------------------------------------------------

def save_embeddings(folder, modality, portions, rows, source):
    """Write embeddings as they come, and rows, each with its name, its file and more.

    portions: yields {"FC": (n, D), "POOL5": (n, C)}, float32 on the CPU, of len(rows) images together. source: as
    made_by gives it. What was there before stays until the last portion is written.
    Raises InputError where the folder cannot be written, or the disk has no room.
    """
    note = folder / f"{modality}.json"
    text = json.dumps({"made_by": source, "images": fingerprint([row["file"] for row in rows])}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as parts:
            written = _write_arrays(folder, modality, portions, len(rows), parts)
            note.unlink(missing_ok=True)
            for beside, file in written.items():
                os.replace(beside, file)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})")
    write_rows(folder / f"{modality}.csv", list(dict.fromkeys(name for row in rows for name in row)), rows)
    write_text(note, text)
    print(f"{len(rows)} embeddings in {folder}/{modality}_*.npy")


def _write_arrays(folder, modality, portions, count, parts):
    """Write each feature beside its file: {beside: file}. parts: an ExitStack that removes what is still beside."""
    outs = {}
    for portion in portions:
        if not outs:
            size = 4 * count * sum(array.shape[1] for array in portion.values())
            if shutil.disk_usage(folder).free < size:
                raise InputError(f"{folder}: {size / 1e9:.1f} GB of embeddings do not fit on the disk: free some")
            outs = {feature: _begin(folder / f"{modality}_{feature}.npy.part", (count, array.shape[1]), parts)
                    for feature, array in portion.items()}
        for feature, array in portion.items():
            outs[feature].write(array.numpy().tobytes())
    for out in outs.values():
        out.flush()
        os.fsync(out.fileno())
    return {out.name: folder / f"{modality}_{feature}.npy" for feature, out in outs.items()}


def _begin(beside, shape, parts):
    parts.callback(beside.unlink, missing_ok=True)
    out = parts.enter_context(open(beside, "wb"))
    header = {"descr": np.lib.format.dtype_to_descr(FLOAT32), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out


# Read ----------------------------------------------------------------------------------------------------------------

def holds_embeddings(folder, modality):
    return (folder / f"{modality}.json").is_file() or any(folder.glob(f"{modality}_*.npy"))


def read_embeddings(folder, modality, feature, source):
    """(embeddings (N, D) float32, a memory map; N rows) as save_embeddings wrote them.

    source: what they have to be made by. Where their images are gone they are taken as they are; an image that has
    changed, or a part of them gone, is an error.
    Raises InputError where they are not whole, were made by another run or with other flags, or hold NaN.
    """
    try:
        return _read(folder, modality, feature, source)
    except ValueError as error:
        raise InputError(f"{folder} {error}: {REMEDY}")


def reuse_embeddings(folder, modality, feature, source, files):
    """The same, without the rows, of these very images; None, and said why, where they have to be made again.

    Raises InputError where the folder holds a file of that name that is not of embeddings.
    """
    if not holds_embeddings(folder, modality):
        foreign = folder / f"{modality}.csv"
        if foreign.exists():
            raise InputError(f"{foreign} is there already and not of embeddings: give another folder, or move it away")
        return None
    try:
        return _read(folder, modality, feature, source, files)[0]
    except ValueError as error:
        print(f"{folder} {error}: they are made again")
        return None


def _read(folder, modality, feature, source, files=None):
    """ValueError says what is wrong with them."""
    try:
        note = json.loads((folder / f"{modality}.json").read_text())
        theirs, images = dict(note["made_by"]), note["images"]
        array = np.load(folder / f"{modality}_{feature}.npy", mmap_mode="c", allow_pickle=False)
        rows = read_rows(folder / f"{modality}.csv", errors="surrogateescape")
    except (OSError, EOFError, ValueError, KeyError, TypeError, InputError) as error:
        raise ValueError(f"holds no whole embeddings ({error})")
    if array.ndim != 2 or array.dtype != FLOAT32 or not rows or "name" not in rows[0]:
        raise ValueError(f"holds no embeddings in {modality}_{feature}.npy, or no names in {modality}.csv")
    if len(rows) != len(array):
        raise ValueError(f"holds {len(array)} embeddings, and {len(rows)} names in {modality}.csv")
    differing = ["other weights"] if theirs.get("weights") != source["weights"] else []
    for name in sorted({*theirs, *source} - {"weights"}):
        there, here = theirs.get(name, "not given"), source.get(name, "not given")
        if there != here:
            differing.append(f"--{name} {there} there, {here} here")
    if differing:
        raise ValueError(f"holds embeddings that were made otherwise ({'; '.join(differing)})")
    _check_images(files or [row.get("file") or "" for row in rows], images)
    embeddings = torch.from_numpy(array)
    bad = rows_not_finite(embeddings)
    if bad:
        raise ValueError(f"holds NaN or infinity in {len(bad)} embedding(s), first in that of {rows[bad[0]]['name']}")
    return embeddings, rows


def _check_images(files, images):
    missing = sum(not os.path.exists(file) for file in files)
    if 0 < missing < len(files):
        raise ValueError(f"holds embeddings of {len(files)} images, of which {missing} are no longer there")
    if missing:
        print("the images are not here: their embeddings are taken as they are")
    elif fingerprint(files) != images:
        raise ValueError("holds embeddings of images that have changed since, or of others")
