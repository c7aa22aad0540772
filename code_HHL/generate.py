"""Draw each place of a data set in the other modality, and write the images as a data set.

    python code_HHL/generate.py --run results/NAME --result_path data/generated

--run: of train_generator.py; its data set, and its regions. DATA/{train,test}/opt holds what was drawn from SAR images,
sar what was drawn from optical ones: for --generated of other scripts, and tools/compare_generated.py.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.adapting.generated import generate
from shared.dataset import to_bytes, to_float
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import load_tensors
from shared.plumbing.packed import require_run
from shared.plumbing.run_files import read_settings
from stargan import MODALITIES, Generator

AT_ONCE = 64                                            # images drawn at once


def arguments():
    return options.generating(__doc__).parse_args()


def main(args):
    device = choose_device(args.device)
    model, img_size = load_generator(args.run)
    model.to(device).eval()
    mixed = autocast(device, args.amp)

    @torch.no_grad()
    def translate(images, modality):
        drawn = []
        for portion in images.split(AT_ONCE):
            wanted = torch.full((len(portion),), MODALITIES.index(modality), device=device)
            with mixed():
                drawn.append(to_bytes(model(to_float(portion, device), wanted)))
        return torch.cat(drawn)

    generate(args, read_settings(args.run), img_size, translate)


def load_generator(folder):
    """The Generator of a finished run, and its image size. InputError where there is none."""
    file = require_run(folder, "--run")
    saved = load_tensors(file, "--run")
    try:
        model = Generator(saved["width"], saved["blocks"])
        model.load_state_dict(saved["model"])
        return model, saved["img_size"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{file} is not what train_generator.py writes ({str(error).splitlines()[0]})")


if __name__ == "__main__":
    run_script(main, arguments)
