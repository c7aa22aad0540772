"""What the prepare scripts of data/ share: an output folder that an interrupted run can go on with."""
import json

import cv2

from shared.plumbing.errors import InputError
from shared.plumbing.files import write_bytes, write_rows, write_text


def open_output(out, settings, folders):
    """Make OUT and its folders, or check that it was begun with the same settings: crops of two ways must not mix."""
    file = out / "prepared.json"
    settings = json.loads(json.dumps(settings))
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise InputError(f"{out} holds what was prepared from another source or with other arguments: "
                         "give another folder, or remove it")
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings))


def write_png(file, image):
    """Write (H, W) or (H, W, 3) uint8, RGB, unless the file is there already."""
    if not file.exists():
        write_bytes(file, cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes())


def write_pairs_csv(out, columns, rows):
    """pairs.csv, sorted; written last, so that where it is the set is whole."""
    write_rows(out / "pairs.csv", columns, sorted(rows, key=lambda row: (row["split"], row["id"])))
    counts = {split: sum(row["split"] == split for row in rows) for split in ("train", "test")}
    print(f"{out}: {counts['train']} training and {counts['test']} test places")
