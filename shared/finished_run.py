# For every test.py, and the tools that open a run.
"""A finished run, opened to be tested: its model, the data set, and where the figures go."""
import json
import sys
from pathlib import Path

from shared.dataset import describe_gallery, load_splits
from shared.model import load_model
from shared.plumbing import distributed
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.embeddings import made_by, save_embeddings
from shared.plumbing.errors import InputError
from shared.plumbing.files import write_text
from shared.plumbing.packed import outputs_of
from shared.plumbing.run_files import format_metrics, read_settings, seconds_of
from shared.reading.fingerprint import fingerprint
from shared.reading.layouts import find_data, list_split
from shared.reading.readers import flags_of, readers_of_run
from shared.run import summary


# What of a test's command line does not change its figures: where things are, and how they are computed.
NOT_THE_FIGURES = ("run", "data_path", "result_path", "save_embeddings", "device", "amp", "workers", "store", "compile")


class FinishedRun:
    """The plumbing of one test. See code/test.py for how it is used.

    args: as options.testing's parser gives them. `tested` says that --result_path holds the figures already.
    Raises InputError where --run is no finished run.
    """

    def __init__(self, args):
        self.args, self.run, self.folder, self.row = args, args.run, outputs_of(args.run), args.result_path
        self.tested = bool(self.row) and is_tested(self.row)
        if self.tested:
            settings = read_settings(self.run)
            require_row_of(self.row, self.run, self._path_of(settings), self._asked(settings))
            print_row(self.row)
            return
        self.device = distributed.start(choose_device(args.device))
        self.is_first_process = distributed.rank() == 0
        self.autocast = autocast(self.device, args.amp)
        self.model, self.img_size = load_model(args.run, self.device)
        if args.compile:
            self.model.compile()
        self.settings = read_settings(args.run)

    def _path_of(self, settings):
        """The data set to test on: --data_path, or the one that the run was evaluated on (its own, or its target)."""
        return self.args.data_path or settings.get("target_path") or settings["data_path"]

    def _regions_of(self, settings):
        """The regions of that data set to test on: all of --data_path, else those that the run was evaluated on."""
        return None if self.args.data_path else settings.get("target_region")

    def _asked(self, settings):
        return {**asked_of(self.args), "regions": self._regions_of(settings)}

    def load_pairs(self, split="test", img_size=None):
        """The split that the run was evaluated on (of its own data set, or its target), or of --data_path.

        img_size: default the run's.
        """
        self.data_path, self.split = self._path_of(self.settings), split
        is_own = self.args.data_path is None and not self.settings.get("target_path")
        self.readers = readers_of_run(self.args.run, self.args, is_own)
        pairs, = load_splits(self.data_path, (split,), img_size or self.img_size, self.args.workers, self.args.store,
                             self.readers)
        pairs = pairs.of_regions(self._regions_of(self.settings), "--target_region")
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
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "test.json", json.dumps({**metrics, **origin}, indent=1))
            return
        settings = {**self.settings, **origin, "run": str(self.run), "asked": self._asked(self.settings)}
        write_row(self.row, settings, metrics, seconds_of(self.run), pairs, found)

    def save_embeddings(self, query, gallery, pairs, **flags):
        """Write the embeddings of a split to embeddings/ in the run's folder (shared/plumbing/packed.py: outputs_of).

        flags: what, besides --tta, they depend on that is no part of the run.
        """
        if not self.is_first_process:
            return
        folder = self.folder / "embeddings"
        source = made_by(self.run, tta=self.args.tta, **flags_of(self.readers), **flags)
        listing = list_split(find_data(self.data_path), self.split, [])
        sar = {name: image for name, (_, image) in listing.sar.items()}
        sar_rows = rows_of(pairs.sar_names, sar, pairs.sar_place, pairs.positions)
        save_embeddings(folder, "sar", [query], sar_rows, source)
        opt_rows = rows_of(pairs.names, listing.opt, slice(None), pairs.positions)
        save_embeddings(folder, "opt", [gallery], opt_rows, source)

    def close(self):
        """Wait for the other processes, and leave them."""
        distributed.wait()
        distributed.stop()


def asked_of(args):
    """{flag: value} of what a test's figures depend on besides its data, as a row's args.json keeps it; `test` is the
    script, `network` tells the run's weights from others."""
    asked = {name: value for name, value in vars(args).items() if name not in NOT_THE_FIGURES}
    asked["test"] = "/".join(Path(sys.argv[0]).parts[-2:])
    if getattr(args, "run", None):
        asked["network"] = made_by(args.run)["weights"][:16]
    return json.loads(json.dumps(asked, default=str))


def require_row_of(row, run, data_path, asked):
    """InputError where a row's folder holds the figures of another run, of other data or with other flags.

    run: a folder, or None of a row in which nothing is learned. asked: as asked_of gives it.
    A row of before something was written to its args.json is taken for what is asked for.
    """
    settings, differing = read_settings(row), []
    if run and Path(settings.get("run", run)).resolve() != Path(run).resolve():
        differing.append(f"run {settings['run']} there, {run} here")
    # A row of before flags were kept has the most important ones beside the run's own.
    kept = settings.get("asked", {name: settings[name] for name in ("tta", "method", "img_size") if name in settings})
    if kept.get("network", asked.get("network")) != asked.get("network"):
        differing.append(f"by weights that {run} no longer has")
    for name, here in asked.items():
        if name != "network" and kept.get(name, here) != here:
            differing.append(f"{name} {kept[name]} there, {here} here")
    here = fingerprint(find_data(data_path), "test")
    there = settings.get("tested_data", here)
    if there != here:
        differing.append(f"test images of {settings['data_path']} there ({there}), of {data_path} here ({here})")
    if differing:
        raise InputError(f"{row} holds other figures ({'; '.join(differing)}): give another --result_path, or remove "
                         "that")


def is_tested(row):
    """Whether a row of the table has its figures already. InputError where its folder is no row's."""
    if row.exists() and not row.is_dir():
        raise InputError(f"--result_path {row} is a file: give a folder")
    if (row / "log.txt").is_file():
        raise InputError(f"{row} holds a run, and no figures of a test: give another --result_path")
    tested = (row / "metrics.json").is_file()
    if not tested and (row / "args.json").is_file() and "asked" not in read_settings(row):
        raise InputError(f"{row} holds an args.json that no test has written: give another --result_path")
    return tested


def print_row(row):
    print(f"{row} is finished\n{format_metrics(json.loads((row / 'metrics.json').read_text()))}")


def write_row(row, settings, metrics, seconds, pairs, found):
    """Print the figures on the test split, and keep them in the folder `row`, as a row of the table.

    settings: for its args.json, its data_path among them. metrics: as evaluate gives them. seconds: of training. found:
    as retrievals gives it.
    """
    print(format_metrics(metrics))
    row.mkdir(parents=True, exist_ok=True)
    tested = {"tested_data": fingerprint(find_data(settings["data_path"]), "test")}
    write_text(row / "args.json", json.dumps({**settings, **tested}, indent=1))
    write_text(row / "retrieval.json", json.dumps(found))
    write_text(row / "metrics.json", summary(metrics, seconds, pairs, "test"))


def rows_of(names, images, places, positions):
    """[{"name", "file", "x_m", "y_m"}], the positions where they are known.

    images: {name: Path or TensorRow}. places: the rows of positions, (P, 2) or None.
    """
    files = [Path(getattr(images[name], "file", images[name])).resolve() for name in names]
    rows = [{"name": name, "file": str(file)} for name, file in zip(names, files)]
    if positions is None:
        return rows
    return [{**row, "x_m": x, "y_m": y} for row, (x, y) in zip(rows, positions[places].tolist())]
