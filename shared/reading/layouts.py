"""The layouts in which a data set may lie, each with one short reader.

A reader takes (root, split, problems) and returns a Listing; what is wrong is appended to `problems`, naming the
file. A new layout is a reader, what tells it, and an entry of LAYOUTS; nothing else knows layouts apart.
"""
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from shared.plumbing.errors import InputError, several
from shared.plumbing.files import load_tensors, read_rows
from shared.reading.raster import SUFFIXES, Reader


@dataclass
class Listing:
    """What a layout says of one split, before an image is decoded.

    opt: place name -> image. sar: SAR name -> (place name, image). positions: place name -> (x, y) in metres.
    An image is a Path or a TensorRow.
    """
    opt: dict = field(default_factory=dict)
    sar: dict = field(default_factory=dict)
    positions: dict = field(default_factory=dict)

    def without(self, left_out):
        """The same less the places and SAR images named there, a set; a place takes its SAR images along."""
        opt = {name: image for name, image in self.opt.items() if name not in left_out}
        sar = {name: (place, image) for name, (place, image) in self.sar.items() if not {name, place} & left_out}
        return Listing(opt, sar, self.positions)


@dataclass(frozen=True)
class TensorRow:
    """One image of a tensor file. images: all of them, a tensor (N, 3, H, W) or (N, H, W, 3)."""
    file: Path
    images: object
    row: int
    scale: float

    def __str__(self):
        return f"{self.file}, row {self.row}"

    def read(self):
        """(H, W, 3) uint8."""
        image = self.images[self.row]
        if image.shape[2] != 3:
            image = image.permute(1, 2, 0)
        return (image.float() * self.scale).round().byte().numpy()


def read_folders(root, split, problems):
    """DATA/{train,test}/{opt,sar}/NAME.png|jpg|tif; NAME__STRIP where several SAR strips saw a place."""
    opt, sar = (list_images(root / split / modality, problems) for modality in ("opt", "sar"))
    listing = Listing(opt)
    for name, file in sar.items():
        before_strip = name.rpartition("__")[0]
        place = name if name in opt or not before_strip else before_strip
        listing.sar[name] = place, file
    return listing


def read_cmpc(root, split, problems):
    """SN6-CMPC: {train,test}/imgs/{opt,sar}/FILE and annotations/{opt,sar}/*.json.

    An annotation is {"id": int, "pos": {"x": float, "y": float}, "file_path": "FILE"}.
    """
    listing = Listing()
    for modality in ("opt", "sar"):
        folder = root / split / "annotations" / modality
        files = sorted(folder.glob("*.json"))
        if not files:
            problems.append(f"{folder}: there is no annotation (*.json) in it")
        for file in files:
            try:
                note = json.loads(file.read_text())
                place = str(int(note["id"]))
                position = float(note["pos"]["x"]), float(note["pos"]["y"])
                image = root / split / "imgs" / modality / note["file_path"]
            except (ValueError, KeyError, TypeError) as error:
                form = '{"id": int, "pos": {"x": float, "y": float}, "file_path": "FILE"}'
                problems.append(f"{file}: not an annotation {form} ({error!r})")
                continue
            if not image.is_file():
                problems.append(f"{file}: names {image}, which is not there")
            elif modality == "sar":
                listing.sar[f"{place}__{image.stem}"] = (place, image)
            elif place in listing.opt:
                problems.append(f"{file}: {listing.opt[place].name} has the same id {place}")
            else:
                listing.opt[place], listing.positions[place] = image, position
    return listing


def read_tensors(root, split, problems):
    """The author's tensors: {opt,sar}_ori_{train,test}.pt, uint8 or float, row i of both one place.

    (N, 3, H, W) or (N, H, W, 3), in [0, 1] or [0, 255].
    """
    import torch                                        # here, since it takes seconds and other layouts need none
    rows = {}
    for modality in ("opt", "sar"):
        file = root / f"{modality}_ori_{split}.pt"
        try:
            images = load_tensors(file, "--data_path")
        except InputError as error:
            problems.append(str(error))
            continue
        if not isinstance(images, torch.Tensor) or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
            what = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
            problems.append(f"{file}: {what}; expected a tensor (N, 3, H, W) or (N, H, W, 3)")
            continue
        low, high = (value.item() for value in images.aminmax())
        if not (low >= 0 and high <= 255):
            problems.append(f"{file}: values from {low:.3g} to {high:.3g}; "
                            "keep the images before normalisation, in [0, 1] or [0, 255]")
            continue
        scale = 255.0 if images.is_floating_point() and high <= 1 else 1.0
        rows[modality] = {f"{i:06d}": TensorRow(file, images, i, scale) for i in range(len(images))}
    return Listing(rows.get("opt", {}), {name: (name, row) for name, row in rows.get("sar", {}).items()})


@dataclass(frozen=True)
class Layout:
    """is_there: whether a folder has this layout. read: its reader."""
    is_there: object
    read: object


def _has_folders(root):
    return (root / "train").is_dir() or (root / "test").is_dir()


def _has_annotations(root):
    return (root / "train/annotations").is_dir() or (root / "test/annotations").is_dir()


def _has_tensors(root):
    return (root / "opt_ori_train.pt").is_file() or (root / "opt_ori_test.pt").is_file()


# The first that is there; SN6-CMPC has the folders, too.
LAYOUTS = (Layout(_has_annotations, read_cmpc), Layout(_has_tensors, read_tensors), Layout(_has_folders, read_folders))


def layout_of(root):
    """The Layout that a folder has, or None where it holds no data set."""
    return next((layout for layout in LAYOUTS if layout.is_there(root)), None)


def require_layout(root):
    """The Layout that a folder has. InputError where it holds no data set."""
    layout = layout_of(root)
    if layout is None:
        guide = root / "README.md"
        how = f"{guide} says how it is made ready" if guide.is_file() else "docs/data.md has the layouts"
        raise InputError(f"--data_path {root} holds no data set, neither a folder train or test nor the author's "
                         f"tensors: {how}")
    return layout


def list_split(root, split, problems):
    """The Listing of a split, whatever the layout."""
    return require_layout(root).read(root, split, problems)


def find_data(data_path):
    """The data set's folder: as given, else under the home directory. InputError where there is none.

    A folder without data, such as data/SN6align200 with its prepare script alone, gives way to one that has some.
    """
    roots = [root for root in (Path(data_path).expanduser(), Path.home() / data_path) if root.is_dir()]
    if not roots:
        raise InputError(f"--data_path {data_path}: there is no such folder here or under the home directory; "
                         "python data/demo/prepare.py makes pairs to try with")
    return next((root for root in roots if layout_of(root)), roots[0])


def read_image(image, reader=Reader("opt")):
    """Decode a Path or a TensorRow to (H, H, 3) uint8 RGB; one channel is repeated. reader: of its modality.

    Raises InputError where that fails, or the image is not square.
    """
    array = read_any_image(image, reader)
    if array.shape[0] != array.shape[1]:
        raise InputError(f"{image}: {array.shape[1]} x {array.shape[0]} px; crop it to a square")
    return array


def read_any_image(image, reader=Reader("opt")):
    """The same for an image of any shape, (H, W, 3)."""
    return image.read() if isinstance(image, TensorRow) else reader.read(image)[0]


METRES = ("x_m", "y_m", "size_m")                       # columns of pairs.csv that hold numbers


def read_pairs_csv(root, split=None):
    """DATA/pairs.csv, optional: place name -> its row (split, id, and any of region, tile, x_m, y_m, size_m).

    split: its places alone, or None for all. Metres are floats, and left out where the file leaves them empty.
    Raises InputError where the file is no CSV with the columns split and id, or a metre is no number.
    """
    file = root / "pairs.csv"
    rows = _read_csv(file, split)
    for name, row in rows.items():
        for column in METRES:
            text = row.pop(column, None)
            if text in (None, ""):
                continue
            try:
                row[column] = float(text)
            except ValueError:
                row[column] = math.nan
            if not math.isfinite(row[column]):
                raise InputError(f"{file}: {column} of {name} is {text!r}; "
                                 "give metres with a decimal point, or leave it empty")
    return rows


TILE_METRES = ("left", "top", "right", "bottom")        # columns of tiles.csv that hold numbers


def read_tiles_csv(root, split):
    """DATA/tiles.csv, optional: tile name -> (left, top, right, bottom) in metres, y growing to the north.

    Raises InputError where the file is no CSV with the columns split, tile and these four, or one holds no number.
    """
    file = root / "tiles.csv"
    corners = {}
    for name, row in _read_csv(file, split, key="tile").items():
        try:
            corners[name] = tuple(float(row[column]) for column in TILE_METRES)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: tile {name} has no number in one of {', '.join(TILE_METRES)}; give metres")
    return corners


def read_leave_out(root, split):
    """DATA/leave_out.csv, optional, written by tools/check_data.py: names (of places or SAR images) to leave out."""
    return set(_read_csv(root / "leave_out.csv", split))


def _read_csv(file, split, key="id"):
    if not file.is_file():
        return {}
    rows = read_rows(file)
    if rows and not {"split", key} <= rows[0].keys():
        raise InputError(f"{file}: the first line must name the columns split and {key}")
    return {row[key]: row for row in rows if split in (None, row["split"])}


def check_ids(root, split, listing, problems):
    """Hold the ids of pairs.csv and leave_out.csv against the images of a split, a Listing of all of them.

    Appended to `problems`: ids that differ from an image's name by leading zeros alone, since a spreadsheet takes 0001
    for the number 1; and a pairs.csv none of whose ids is an image's. Returned as sentences, since there may be a
    reason: other ids of no image (a part of the images was copied, a bad one removed), and places without a row of
    pairs.csv, each of which counts as a tile of its own, also where --validate holds out.
    """
    names, notes = listing.opt.keys() | listing.sar.keys(), []
    pairs, leave_out = root / "pairs.csv", root / "leave_out.csv"
    if not names:
        return notes
    eaten, unknown = compare_ids(leave_out, split, _read_csv(leave_out, split).keys(), names)
    problems.extend(eaten)
    notes.extend(unknown)
    ids = _read_csv(pairs, split).keys()
    eaten, unknown = compare_ids(pairs, split, ids, names)
    if ids and not ids & names and not eaten:
        eaten = [f"{pairs}: none of its {len(ids)} ids of {split} is the name of an image "
                 f"(an id: {min(ids)}, an image: {min(names)})"]
    if eaten:
        problems.extend(eaten)
        return notes
    notes.extend(unknown)
    without = listing.opt.keys() - ids
    if without and pairs.is_file():
        notes.append(f"{pairs}: {len(without)} of {len(listing.opt)} places of {split} have no row, and each counts as "
                     f"a tile of its own (the first: {min(without)})")
    return notes


def compare_ids(file, split, ids, names):
    """The ids of a CSV that are no name: ([sentence] of leading zeros, [sentence] of others), each empty or of one."""
    by_number = {name.lstrip("0"): name for name in sorted(names - ids)}
    eaten, unknown = [], []
    for name in sorted(ids - names):
        (eaten if name.lstrip("0") in by_number else unknown).append(name)
    zeros, others = [], []
    if eaten:
        zeros.append(f"{file}: {len(eaten)} of {len(ids)} ids of {split} differ from an image's name by leading zeros "
                     f"({eaten[0]} for {by_number[eaten[0].lstrip('0')]}), as a spreadsheet leaves them: "
                     "write them as the files are named")
    if unknown:
        others.append(f"{file}: {len(unknown)} of {len(ids)} ids of {split} are of no image (the first: {unknown[0]})")
    return zeros, others


def list_images(folder, problems):
    """The images of a folder by name, without the suffix."""
    if not folder.is_dir():
        problems.append(f"{folder}: there is no such folder")
        return {}
    files = {}
    for file in sorted(folder.iterdir()):
        # "._x.png" is what a Mac leaves beside x.png on a foreign disk: no image.
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            if file.stem in files:
                problems.append(f"{file}: {files[file.stem].name} has the same name")
            files[file.stem] = file
    if not files:
        problems.append(f"{folder}: there is no image ({', '.join(SUFFIXES)}) in it")
    return files


def crop_of(data_path, split="train"):
    """Side in px of a data set's crops, as their files hold them. InputError where there are none."""
    problems = []
    listing = list_split(find_data(data_path), split, problems)
    if not listing.opt:
        raise several(f"{data_path} holds no {split} images, whose side tells at which scale a run has learned:",
                      problems)
    return len(read_image(next(iter(listing.opt.values()))))
