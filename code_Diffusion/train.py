"""A diffusion model between the modalities: optical images drawn from SAR ones, and back.

    python code_Diffusion/train.py --data_path data/S1S2align200 --windows --recipe cpu
    python code_Diffusion/generate.py --run results/S1S2align200/code_Diffusion/seed0 --result_path data/generated
    python code_Aux/train.py --data_path data/S1S2align200 --generated data/generated

What it gives: docs/diffusion.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from denoiser import Denoiser, build_scheduler, noise_loss
from shared import options
from shared.dataset import load_training_data, steps_per_epoch
from shared.optimizers import build_schedule
from shared.plumbing.errors import InputError, run_script
from shared.run import Run


def arguments():
    cpu = {"img_size": 64, "batch_size": 8, "epochs": 30, "lr": 4e-4, "average": 0.99}
    parser = options.TrainingParser(__doc__, cpu)
    data = options.add_data(parser)
    options.add_validation(data)
    options.add_drawing(data)
    options.add_region(data)
    group = parser.add_argument_group("diffusion")
    group.add_argument("--channels", type=options.positive, nargs="+", default=[32, 64, 96, 128],
                       help="of the U-Net's stages, multiples of 32")
    group.add_argument("--average", type=options.share, default=0.999,
                       help="kept is an exponential moving average of the weights, of which so much stays at each step")
    options.add_recipe(parser)
    run = options.add_run(parser)
    options.add_device(run)
    options.add_compile(run)
    options.add_store(run)
    parser.set_defaults(img_size=64, batch_size=32, epochs=200, lr=2e-4)
    args = parser.parse_args()
    if args.img_size % 2 ** (len(args.channels) - 1):
        raise InputError(f"--img_size {args.img_size}: choose a multiple of {2 ** (len(args.channels) - 1)}, by which "
                         f"{len(args.channels)} stages halve it")
    return args


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    pairs = load_training_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(pairs.describe())

    model = Denoiser(args.channels).to(run.device, memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(args.average))
    scheduler = build_scheduler()
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    schedule = build_schedule(optimizer, "cosine", args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, average=average, optimizer=optimizer, schedule=schedule)

    modality = torch.tensor([0, 1], device=run.device).repeat_interleave(args.batch_size)
    for epoch in run.epochs():
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            images, condition = torch.cat([opt, sar]), torch.cat([sar, opt])
            with run.autocast():
                loss = noise_loss(network, scheduler, images, condition, modality, run.generator)

            run.optimize(loss, optimizer, schedule)
            average.update_parameters(model)
            run.record(noise=loss)
        run.end_epoch(average.module, None, schedule)


if __name__ == "__main__":
    run_script(train, arguments)
