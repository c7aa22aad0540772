"""Make one file of a finished run, for others to use: what they read of its folder, the weights in float16.

    python tools/pack.py --run results/NAME --out models/NAME.pt

The file is taken wherever --run names a run (code_Con/test.py, code_Match/test.py, tools/search.py, tools/locate.py,
tools/worlds.py ...), and by --init and --start. Convolutions and matrices are kept in float16, vectors (batch norm) in
float32; all is float32 again when it is read. What args.json names as data sets becomes data/NAME, since a path of one
machine says nothing on another, and it tells the side of the crops (`crop`), which is the scale that the run learned
at. It is data, never code: torch.load(file, weights_only=True) reads it.
"""
import argparse
import hashlib
import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared.mapping.calibration import CALIBRATION, load_calibration
from shared.mapping.cells import load_cell_network
from shared.mapping.finer_cells import FINER, load_finer
from shared.model import load_model
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import load_tensors, make_folder, write_bytes
from shared.plumbing.packed import TEXTS, WEIGHTS, has_file, require_run, text_of
from shared.plumbing.run_files import read_settings, seconds_of
from shared.reading.layouts import crop_of
from shared.reading.readers import readers_of_run


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a finished run")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="must not be there yet")
    parser.add_argument("--data_path", help="what the run learned from, where that has moved")
    return parser.parse_args()


def main(args):
    if args.run.is_file():
        raise InputError(f"--run {args.run} is a file: give the folder of a run")
    if args.out.exists():
        raise InputError(f"--out {args.out} is there already: give another name, or move it away")
    make_folder(args.out.parent, "--out")
    content = io.BytesIO()
    torch.save(pack(args.run, args.data_path), content)
    write_bytes(args.out, content.getvalue())
    calibrated = "calibrated" if has_file(args.run, CALIBRATION) else f"without {CALIBRATION}, which positions need"
    print(f"{args.out}: {len(content.getvalue()) / 2 ** 20:.2f} MiB, {calibrated}\n"
          f"sha256 {hashlib.sha256(content.getvalue()).hexdigest()}")


def pack(folder, data_path=None):
    """The dictionary of shared/plumbing/packed.py of a finished run.

    data_path: of its data set (default: as its args.json has it). InputError where a part of the run cannot be used.
    """
    model, _ = load_model(folder, torch.device("cpu"))  # what is damaged is not handed on
    finer = load_finer(folder, model)
    readers_of_run(folder)
    seconds_of(folder)
    if has_file(folder, CALIBRATION):
        load_calibration(folder, load_cell_network(folder, torch.device("cpu"), nullcontext)[0])
    settings = read_settings(folder)
    settings["crop"] = crop_of(data_path or settings["data_path"])
    saved = load_tensors(require_run(folder, "--run"), "--run")
    texts = {name: text_of(folder, name) for name in TEXTS if has_file(folder, name)}
    packed = {WEIGHTS: {**saved, "model": halved(saved["model"])}, **texts,
              "args.json": json.dumps(elsewhere(settings), indent=1)}
    if finer:
        learned = finer.saved()
        packed[FINER] = {**learned, "decoders": halved(learned["decoders"])}
    return packed


def halved(state):
    """A state dict with its convolutions and matrices in float16. InputError where one has numbers beyond that."""
    half = {name: tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor
            for name, tensor in state.items()}
    beyond = [name for name, tensor in half.items() if not tensor.isfinite().all()]
    if beyond:
        raise InputError(f"{', '.join(beyond)}: not finite in float16; train the run again")
    return half


def elsewhere(settings):
    """A run's arguments with the paths of data sets as they are on any machine."""
    paths = {name: f"data/{Path(settings[name]).resolve().name}" for name in ("data_path", "target_path")
             if settings.get(name)}
    return {**settings, **paths}


if __name__ == "__main__":
    run_script(main, arguments)
