"""Training tiles that a run did not see: those that it held out, or all, each by a half that was not trained on it."""
import itertools
from dataclasses import dataclass
from pathlib import Path

from shared.plumbing.errors import InputError
from shared.plumbing.run_files import read_settings
from tiles import Tiles

THE_SPLIT = ("validate", "other_half", "data", "data_path", "data_set")
# Half of the tiles have half of the steps an epoch.
HOW_LONG = ("epochs", "eval_every", "seed")


@dataclass
class Unseen:
    """Tiles, and the run that did not see them."""
    run: Path
    tiles: Tiles


def add_halves(parser):
    parser.add_argument("--halves", nargs=2, type=Path, metavar="RUN",
                        help="two runs of the recipe of --run, trained with --validate 0.5 and with --validate 0.5 "
                             "--other_half, each asked for the tiles that it did not see (default: the tiles that "
                             "--run itself held out)")


def unseen_by(run, halves, tiles):
    """[Unseen]: of the training Tiles, those that `run` held out; with halves, two folders, those that each held out.

    Raises InputError where the run held nothing out, or the halves are not of its recipe, or not all tiles' halves.
    """
    folders = halves or [run]
    settings = [read_settings(folder) for folder in folders]
    for folder, its in zip(folders, settings):
        require_all_regions(folder, its)
        if not its.get("validate"):
            raise InputError(f"{folder} held no training tiles out: give a run with --validate, or --halves A B, two "
                             "runs of its recipe with --validate 0.5 and with --validate 0.5 --other_half")
    if halves:
        _check_halves(run, folders, settings)
    unseen = [Unseen(folder, tiles.hold_out(its["validate"], its.get("other_half", False))[1])
              for folder, its in zip(folders, settings)]
    if halves:
        names = sorted(itertools.chain(*(part.tiles.names for part in unseen)))
        if names != sorted(tiles.names):
            raise InputError(f"--halves {halves[0]} {halves[1]} held {len(names)} tiles out, {len(set(names))} of them "
                             f"different, of {len(tiles)}: give one trained with --validate 0.5 and one with "
                             "--validate 0.5 --other_half")
    return unseen


def require_all_regions(run, settings):
    """InputError where a run of these settings learned from some regions alone."""
    if settings.get("region"):
        raise InputError(f"{run} was trained on the regions {' '.join(settings['region'])} alone, and tiles do not "
                         "tell theirs: give a run of all")


def _check_halves(run, halves, settings):
    """InputError where the halves were trained otherwise than each other, or than the run, but for the split."""
    for folder, its, other, others, but in (
            (halves[1], settings[1], halves[0], settings[0], THE_SPLIT),
            (halves[0], settings[0], run, read_settings(run), THE_SPLIT + HOW_LONG)):
        differing = [f"{name} {others.get(name)} there, {its.get(name)} here" for name in sorted(its | others)
                     if name not in but and its.get(name) != others.get(name)]
        # A run of before it noted what images it learned from is taken for one of the same.
        if "data" in its and "data" in others and its["data"].get("train") != others["data"].get("train"):
            differing.append("other training images")
        if differing:
            raise InputError(f"--halves: {folder} was not trained as {other} was ({'; '.join(differing)}): give runs "
                             "of one recipe")
