"""What a run knows its data by: a fingerprint, not a folder's name, which two data sets may share."""
import hashlib
import json
import os
from pathlib import Path

from shared.plumbing.errors import InputError
from shared.reading.layouts import SUFFIXES, find_data, read_leave_out, require_layout

SPLITS = ("train", "test")
SAMPLE, BYTES = 16, 4096                                # files of a split of which a part is read, and how much


def fingerprint(root, split):
    """The images of a split in one line: how many files, how many names are left out, and a hash.

    The hash is of all names and sizes, and of a few bytes out of SAMPLE files, since crops that are not compressed have
    one size whatever they show. So little is read that 100,000 files take about a second. Names count from the data
    set's folder on: one that was moved, or copied elsewhere, keeps its fingerprint.
    """
    sizes = {f"{modality}_ori_{split}.pt": root / f"{modality}_ori_{split}.pt" for modality in ("opt", "sar")}
    sizes = {name: file.stat().st_size for name, file in sizes.items() if file.is_file()}
    if (root / split).is_dir():
        _add_sizes(root / split, split, sizes)
    names, left_out = sorted(sizes), sorted(read_leave_out(root, split))
    lines = [f"{name} {sizes[name]}" for name in names] + [f"without {name}" for name in left_out]
    digest = hashlib.blake2b("\n".join(lines).encode(errors="surrogateescape"), digest_size=8)
    for i in range(0, len(names), max(1, len(names) // SAMPLE)):
        digest.update(_middle_of(root / names[i], sizes[names[i]]))
    return f"{len(names)} files, {len(left_out)} names left out, {digest.hexdigest()}"


def _add_sizes(folder, prefix, sizes):
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):              # what a desktop leaves: .DS_Store, ._x.png
                continue
            if entry.is_dir():
                _add_sizes(entry.path, f"{prefix}/{entry.name}", sizes)
            elif entry.name.lower().endswith(SUFFIXES):
                sizes[f"{prefix}/{entry.name}"] = _size_of(entry)


# A link that leads nowhere, or a file that may not be read: what reads the images names it, with all the others.

def _size_of(entry):
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _middle_of(path, size):
    """Some bytes of a file, not of its header, which all may share."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, size - BYTES) // 2)
            return file.read(BYTES)
    except OSError:
        return b""


def fingerprints(data_path, target_path=None, validate=0.0):
    """{split: fingerprint} of what a run reads, and {"target train", "target test"} where --target_path is given.

    With --validate the test split is not read. InputError where there is no such folder, or no data set in it.
    """
    root = find_data(data_path)
    require_layout(root)
    splits = {"train": fingerprint(root, "train")}
    if target_path:
        target = find_data(target_path)
        return {**splits, **{f"target {split}": fingerprint(target, split) for split in SPLITS}}
    return splits if validate else {**splits, "test": fingerprint(root, "test")}


def has_begun(folder):
    """Whether the run of a folder has left anything that took time."""
    return any((folder / name).is_file() for name in ("checkpoint.pt", "weights.pt", "metrics.json"))


def require_own_results(results, data_path):
    """InputError where results/ROW/SEED hold runs of other training images than those of data_path: for run.sh."""
    here = fingerprint(find_data(data_path), "train")
    for file in sorted(Path(results).glob("*/seed*/args.json")):
        settings = json.loads(file.read_text())
        there = settings.get("data", {}).get("train", here)
        if has_begun(file.parent) and there != here:
            raise InputError(f"{results} holds runs of another data set of this name, {settings['data_path']} "
                             f"({there}); this is {data_path} ({here}): rename the folder of one of them, "
                             f"or move {results} away")


def differing_data(ours, theirs):
    """What differs in the data of two runs, a phrase for each split. ours, theirs: their args.json."""
    phrases = []
    for split in sorted(ours["data"].keys() | theirs["data"].keys()):
        here, there = ours["data"].get(split), theirs["data"].get(split)
        path = "target_path" if split.startswith("target") else "data_path"
        if here != there:
            phrases.append(f"{split} images of {theirs.get(path)} there ({there or 'none'}), "
                           f"of {ours.get(path)} here ({here or 'none'})")
    return phrases
