"""A finished run, opened to be tested: its model, the data set, and where the figures go."""
import io
import json
from pathlib import Path

import numpy as np

from shared.dataset import describe_gallery, load_splits
from shared.evaluate import format_metrics
from shared.model import load_model
from shared.plumbing import distributed
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_bytes, write_rows, write_text
from shared.run import summary


class FinishedRun:
    """The plumbing of one test. See code/test.py for how it is used.

    args: as options.testing's parser gives them. `tested` says that --result_path holds the figures already.
    Raises InputError where --run is no finished run.
    """

    def __init__(self, args):
        self.args, self.folder, self.row = args, args.run, args.result_path
        self.tested = bool(self.row) and is_tested(self.row)
        if self.tested:
            return
        self.device = distributed.start(choose_device(args.device))
        self.is_first_process = distributed.rank() == 0
        self.autocast = autocast(self.device, args.amp)
        self.model, self.img_size = load_model(args.run, self.device)
        if args.compile:
            self.model.compile()
        self.settings = read_settings(args.run)

    def load_pairs(self, split="test", img_size=None):
        """The split that the run was evaluated on (of its own data set, or its target), or of --data_path.

        img_size: default the run's.
        """
        own = self.settings.get("target_path") or self.settings["data_path"]
        self.data_path = self.args.data_path or own
        regions = None if self.args.data_path else self.settings.get("target_region")
        pairs, = load_splits(self.data_path, (split,), img_size or self.img_size, self.args.workers, self.args.store)
        pairs = pairs.of_regions(regions, "--target_region")
        if self.is_first_process:
            print(describe_gallery(pairs))
        return pairs

    def write(self, pairs, metrics, found):
        """Print the figures and keep them: in the run's test.json, or in --result_path as a row of the table.

        metrics: as evaluate gives them. found: as retrievals gives it.
        """
        if not self.is_first_process:
            return
        origin = {"data_path": str(self.data_path), "tta": self.args.tta}
        if not self.row:
            print(format_metrics(metrics))
            write_text(self.folder / "test.json", json.dumps({**metrics, **origin}, indent=1))
            return
        seconds = json.loads((self.folder / "metrics.json").read_text())["seconds"]
        settings = {**self.settings, **origin, "run": str(self.folder)}
        write_row(self.row, settings, metrics, seconds, pairs, found)

    def save_embeddings(self, query, gallery, pairs):
        """Write the embeddings of a split to embeddings/ in the run's folder."""
        if not self.is_first_process:
            return
        folder = self.folder / "embeddings"
        save_embeddings(folder, query, named_rows(pairs.sar_names, pairs.sar_place, pairs.positions), "sar")
        save_embeddings(folder, gallery, named_rows(pairs.names, slice(None), pairs.positions), "opt")

    def close(self):
        """Wait for the other processes, and leave them."""
        distributed.wait()
        distributed.stop()


def is_tested(row):
    """Whether a row of the table has its figures already; they are printed then."""
    file = row / "metrics.json"
    if not file.is_file():
        return False
    print(f"{row} is finished\n{format_metrics(json.loads(file.read_text()))}")
    return True


def write_row(row, settings, metrics, seconds, pairs, found):
    """Print the figures on the test split, and keep them in the folder `row`, as a row of the table.

    settings: for its args.json. metrics: as evaluate gives them. seconds: of training. found: as retrievals gives it.
    """
    print(format_metrics(metrics))
    row.mkdir(parents=True, exist_ok=True)
    write_text(row / "args.json", json.dumps(settings, indent=1))
    write_text(row / "retrieval.json", json.dumps(found))
    write_text(row / "metrics.json", summary(metrics, seconds, pairs, "test"))


def read_settings(folder):
    """The arguments of a run, as its args.json holds them. InputError where there are none."""
    file = Path(folder) / "args.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): it tells how the run was made; bring it back")


def named_rows(names, places, positions):
    """[{"name", "x_m", "y_m"}], the positions where they are known. positions: (P, 2), or None."""
    if positions is None:
        return [{"name": name} for name in names]
    return [{"name": name, "x_m": x, "y_m": y} for name, (x, y) in zip(names, positions[places].tolist())]


def save_embeddings(folder, embeddings, rows, modality):
    """Write embeddings as folder/MODALITY_FC.npy and so on, (N, D) float32, and rows (name and more) as MODALITY.csv.

    embeddings: {"FC": (N, D), "POOL5": (N, C)}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for feature, array in embeddings.items():
        content = io.BytesIO()
        np.save(content, array.numpy())
        write_bytes(folder / f"{modality}_{feature}.npy", content.getbuffer())
    write_rows(folder / f"{modality}.csv", list(dict.fromkeys(name for row in rows for name in row)), rows)
    print(f"{len(rows)} embeddings in {folder}/{modality}_*.npy")
