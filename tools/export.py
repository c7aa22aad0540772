"""Write a finished run as ONNX, for programs without torch: NAME_sar.onnx and NAME_opt.onnx.

    python tools/export.py --run results/NAME --out onnx

Input `images`: (N, 3, H, W) float32 in [0, 1], of any number and size from 32 px; one channel is repeated.
Normalisation and, with --input structure or both, the oriented gradients are inside. Outputs: `fc`, as
code_Con/test.py compares it: (N, D) of length 1; and, with --pooling cells, `cells` (N, 16, h, w), as tools/locate.py
correlates them. Both are run by onnxruntime, at several sizes, and compared with torch, before they are written. Needs
onnxscript and onnxruntime (requirements-optional.txt).
"""
import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import nn

from shared.model import INPUTS, load_model
from shared.plumbing.errors import InputError, installation, run_script
from shared.plumbing.files import make_folder, write_bytes
from shared.structure import structure_of_any_size

MODALITIES = ("sar", "opt")
SIZES = ((2, 96, 96), (1, 64, 136), (3, 101, 45))       # images, height, width: that the files are compared at
CLOSE = 1e-3                                            # of the largest number: float32, added up in another order


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run, or a packed one (tools/pack.py)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    return parser.parse_args()


def main(args):
    try:
        import onnxruntime
        import onnxscript                               # noqa: F401, torch's exporter needs it
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: {installation()}")
    model, img_size = load_model(args.run, torch.device("cpu"))
    if any(isinstance(module, Conv2dSame) for module in model.modules()):
        raise InputError(f"--run {args.run} has --arch {model.settings['arch']}, whose padding depends on the image's "
                         "size (TensorFlow's): torch's exporter takes forever over that; give a run with another")
    if model.settings["pooling"] == "grid":
        raise InputError(f"--run {args.run} has --pooling grid, whose averages ONNX has of one size alone: give a run "
                         "with --pooling cells, max or avg")
    name = args.run.stem if args.run.is_file() else args.run.resolve().name
    files = {modality: args.out / f"{name}_{modality}.onnx" for modality in MODALITIES}
    there = [str(file) for file in files.values() if file.exists()]
    if there:
        raise InputError(f"{', '.join(there)}: there already; give another --out, or move it away")
    make_folder(args.out, "--out")
    for modality, file in files.items():
        network = OfOneModality(model, modality).eval()
        content = exported(network)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        worst = max(difference(network, session, *size) for size in (*SIZES, (1, img_size, img_size)))
        if worst > CLOSE:
            raise InputError(f"{file}: onnxruntime differs from torch by {worst:.1e} of the largest number; this "
                             "network cannot be exported")
        write_bytes(file, content)
        print(f"{file}: {len(content) / 2 ** 20:.1f} MiB, differs from torch by at most {worst:.0e}")


class OfOneModality(nn.Module):
    """A PseudoSiamese's forward pass for images of one modality, of any size: fc, and cells where it has such."""

    def __init__(self, model, modality):
        super().__init__()
        self.model, self.modality = model, modality
        self.stages = nn.Sequential(*model.stages_of(modality))
        self.has_cells = model.settings["pooling"] == "cells"
        self.names = ["fc", "cells"] if self.has_cells else ["fc"]

    def forward(self, images):
        """images: (N, 3, H, W) float32 in [0, 1]."""
        channels = {"image": (images - self.model.mean) / self.model.std, "structure": structure_of_any_size(images)}
        maps = self.stages(torch.cat([channels[kind] for kind in INPUTS[self.model.settings["input"]]], 1))
        if self.has_cells:
            cells = self.model.embedding(maps)
            return F.normalize(cells.flatten(1)), cells
        return (F.normalize(self.model.embedding(self.model.pool(maps))),)


def exported(network):
    """The bytes of the ONNX of an OfOneModality. InputError where torch's exporter does not know what it does."""
    anything = {0: torch.export.Dim("N", min=1), 2: torch.export.Dim("H", min=32), 3: torch.export.Dim("W", min=32)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(network, (torch.rand(2, 3, 96, 120),), dynamo=True, verbose=False,
                                        dynamic_shapes=(anything,), input_names=["images"], output_names=network.names)
        except torch.onnx.OnnxExporterError as error:
            raise InputError(f"torch's exporter cannot express this {network.model.settings['arch']} "
                             f"({str(error).strip().splitlines()[-1]})")
    return program.model_proto.SerializeToString()


@torch.no_grad()
def difference(network, session, count, height, width):
    """The largest difference between the run's network in torch and onnxruntime, over the largest number, of random
    images."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    asked = {network.modality: images}
    ours = [network.model(**asked).fc.numpy()]
    if network.has_cells:
        ours.append(network.model.cells(**asked).numpy())
    theirs = session.run(network.names, {"images": images.numpy()})
    return max(float(np.abs(one - other).max() / np.abs(one).max()) for one, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    run_script(main, arguments)
