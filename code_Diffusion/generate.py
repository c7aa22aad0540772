"""Draw each place of a data set in the other modality, and write the images as a data set.

    python code_Diffusion/generate.py --run results/NAME --result_path data/generated

The data set is the run's own, and its regions. DATA/{train,test}/opt holds what was drawn from SAR images,
sar what was drawn from optical ones: for --generated of other scripts, and tools/compare_generated.py.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch
from tqdm import tqdm

from denoiser import MODALITIES, Denoiser, build_scheduler, sample
from shared import options
from shared.adapting.generated import generate
from shared.dataset import to_bytes, to_float
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import load_tensors
from shared.plumbing.packed import require_run
from shared.plumbing.run_files import read_settings

AT_ONCE = 64                                            # images drawn at once


def arguments():
    parser = options.generating(__doc__)
    parser.add_argument("--steps", type=options.positive, default=20, help="of DDIM")
    return parser.parse_args()


def main(args):
    device = choose_device(args.device)
    model, img_size = load_denoiser(args.run)
    model.to(device, memory_format=torch.channels_last).eval()
    mixed, scheduler, generator = autocast(device, args.amp), build_scheduler(), torch.Generator().manual_seed(0)

    def translate(images, modality):
        drawn = []
        for portion in tqdm(images.split(AT_ONCE), desc=f"draw {modality}", leave=False, disable=None):
            wanted = torch.full((len(portion),), MODALITIES.index(modality), device=device)
            with mixed():
                made = sample(model, scheduler, to_float(portion, device), wanted, args.steps, generator)
            drawn.append(to_bytes(made))
        return torch.cat(drawn)

    generate(args, read_settings(args.run), img_size, translate)


def load_denoiser(folder):
    """The Denoiser of a finished run, and its image size. InputError where there is none."""
    file = require_run(folder, "--run")
    saved = load_tensors(file, "--run")
    try:
        model = Denoiser(saved["channels"])
        model.load_state_dict(saved["model"])
        return model, saved["img_size"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{file} is not what code_Diffusion/train.py writes ({str(error).splitlines()[0]})")


if __name__ == "__main__":
    run_script(main, arguments)
