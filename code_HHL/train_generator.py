"""StarGAN between the modalities, trained on images without pairs.

    python code_HHL/train_generator.py --data_path data/S1S2align200 --region T11SLT T11SMT --recipe cpu
    python code_HHL/generate.py --run results/S1S2align200/code_HHL/seed0 --result_path data/generated

Of --region (default: of all training tiles) one half gives optical images, the other SAR images; the pairs are not
used.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.adapting.unpaired import load_unpaired
from shared.dataset import steps_per_epoch
from shared.plumbing.errors import InputError, run_script
from shared.reading.readers import readers_of
from shared.run import Run
from stargan import Discriminator, Generator, discriminator_terms, generator_terms


def arguments():
    cpu = {"img_size": 64, "batch_size": 16, "width": 24, "discriminator_steps": 1, "epochs": 20, "lr": 3e-4}
    parser = options.TrainingParser(__doc__, cpu)
    options.add_region(options.add_data(parser))
    group = parser.add_argument_group("StarGAN")
    group.add_argument("--width", type=options.positive, default=64, help="channels of the first layer")
    group.add_argument("--discriminator_steps", type=options.positive, default=5, help="for each of the generator's")
    group.add_argument("--lambda_modality", type=options.not_negative, default=1.0)
    group.add_argument("--lambda_cycle", type=options.not_negative, default=10.0)
    group.add_argument("--lambda_penalty", type=options.not_negative, default=10.0)
    options.add_recipe(parser)
    run = options.add_run(parser)
    options.add_device(run)
    options.add_compile(run)
    parser.set_defaults(img_size=128, batch_size=16, epochs=200, lr=1e-4)
    args = parser.parse_args()
    if args.img_size % 4:
        raise InputError(f"--img_size {args.img_size}: choose a multiple of 4, by which the generator halves twice")
    return args


class TwoSets:
    """Images without pairs in the place of Pairs in Run.batches: an epoch has as many as the smaller modality."""

    def __init__(self, images):
        self.images, self.readers, self.tones = images, images.readers, images.tones

    def __len__(self):
        return min(len(self.images.opt), len(self.images.sar))

    def order(self, generator):
        return torch.arange(len(self))

    def draw(self, places, generator):
        opt, sar, _, _ = self.images.draw(len(places), generator)
        return opt, sar


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    images = load_unpaired(args.data_path, args.img_size, args.workers, args.seed, args.region, readers_of(args))
    sets = TwoSets(images)
    steps = steps_per_epoch(sets, args.batch_size)
    run.log(images.describe())

    model, discriminator = Generator(args.width), Discriminator(args.img_size, args.width)
    weights = {"modality": args.lambda_modality, "cycle": args.lambda_cycle, "penalty": args.lambda_penalty}
    total = args.epochs * steps
    optimizer = torch.optim.Adam(model.parameters(), args.lr, betas=(0.5, 0.999))
    schedule = second_half_to_zero(optimizer, total)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), args.lr, betas=(0.5, 0.999))
    discriminator_schedule = second_half_to_zero(discriminator_optimizer, total * args.discriminator_steps)
    network = run.parallelize(model.to(run.device))
    run.resume(model=model, discriminator=discriminator, optimizer=optimizer, schedule=schedule,
               discriminator_optimizer=discriminator_optimizer, discriminator_schedule=discriminator_schedule)

    modality = torch.tensor([0, 1], device=run.device).repeat_interleave(args.batch_size)
    for epoch in run.epochs():
        for opt, sar, _ in run.batches(sets, epoch):            # B x 3 x S x S in [0, 1], not of the same places
            for _ in range(args.discriminator_steps):
                others_opt, others_sar, _, _ = run.draw_unpaired(images)
                true = torch.cat([others_opt, others_sar])
                with run.autocast():
                    with torch.no_grad():
                        drawn = network(true, 1 - modality)
                    losing = discriminator_terms(discriminator, true, modality, drawn, run.generator, weights)
                run.optimize(sum(losing.values()), discriminator_optimizer, discriminator_schedule)
            with run.autocast():
                winning = generator_terms(network, discriminator, torch.cat([opt, sar]), modality, weights)
            run.optimize(sum(winning.values()), optimizer, schedule)
            run.record(**{f"discriminator_{name}": value for name, value in losing.items()},
                       **{f"generator_{name}": value for name, value in winning.items()})
        run.end_epoch(model, None, schedule)


def second_half_to_zero(optimizer, steps):
    """The schedule of a constant rate, then linearly to 0 in the second half of the steps."""
    def factor(step):
        return min(1.0, 2 * (1 - step / steps))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


if __name__ == "__main__":
    run_script(train, arguments)
