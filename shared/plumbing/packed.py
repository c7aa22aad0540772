"""A finished run is a folder, or one file that holds what others read of it: tools/pack.py makes one of the other.

The file is a dictionary of tensors and text, read with weights_only=True: {"weights.pt": as in the folder, but
convolutions and matrices in float16, "finer.pt": the same of it where there is one, "args.json": its text, and so on
for those of TEXTS that the run has}.
"""
import errno
import os
from pathlib import Path

from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors

WEIGHTS = "weights.pt"
SHIPPED = Path(__file__).resolve().parents[2] / "models/sentinel.pt"  # models/README.md
TEXTS = ("args.json", "metrics.json", "reading.json", "calibration.json")


def is_packed(saved):
    """Whether what a file holds is a packed run."""
    return isinstance(saved, dict) and isinstance(saved.get(WEIGHTS), dict) and "args.json" in saved


def unpack(file, flag="--run"):
    """The dictionary that a packed run is. InputError where the file is none."""
    saved = load_tensors(file, flag)
    if not is_packed(saved):
        raise InputError(f"{flag} {file} is no packed run, as tools/pack.py makes them: give such a file, or the "
                         "folder of a run")
    return saved


def require_run(folder, flag):
    """The file that holds the weights of a finished run: its weights.pt, or the packed file that it is.

    InputError where the folder holds none.
    """
    if folder.is_file():
        return folder
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "args.json").is_file():
            raise InputError(f"{flag} {folder} holds an unfinished run: the command that began it goes on")
        state = "holds no run" if folder.is_dir() else "is not there"
        raise InputError(f"{flag} {folder} {state}: give the folder of a finished run of a train.py, or a file that "
                         "tools/pack.py made")
    return file


def has_file(run, name):
    """Whether a run, a folder or a packed file, has a file of that name."""
    run = Path(run)
    return name in unpack(run) if run.is_file() else (run / name).is_file()


def text_of(run, name):
    """The text of a file of a run, which is a folder or a packed file. OSError where it has none or cannot be read."""
    run = Path(run)
    if not run.is_file():
        return (run / name).read_text()
    saved = unpack(run)
    if name not in saved:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{run}, {name}")
    return saved[name]


def outputs_of(run):
    """The folder for what is made of a run where no flag names one: its own; of a packed file NAME.pt results/NAME."""
    run = Path(run)
    return Path("results") / run.stem if run.is_file() else run
