"""HHL: target images that look like their own translation, and like no image of the source.

    R="--data_path data/S1S2align200 --region T14RNT --target_region T11SLT T11SMT --windows --recipe cpu"
    python code_HHL/train.py $R --generated data/generated

--generated: a folder of generate.py (or of any other generator's) with the target's places drawn in the other
modality. What it gives: docs/hhl.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from hhl_loss import hhl_triplet
from shared import options
from shared.adapting.generated import translations_of
from shared.adapting.unpaired import load_target
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model, start_from
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run
from shared.views import random_part


def arguments():
    parser = options.adaptation(__doc__)
    group = parser.add_argument_group("target")
    group.add_argument("--generated", required=True, metavar="FOLDER", help="the target's images in the other modality")
    group.add_argument("--target_images", type=options.positive, default=32,
                       help="of each modality in a batch, beside --batch_size pairs of the source")
    group.add_argument("--lambda_target", type=options.not_negative, default=0.5)
    group.add_argument("--margin_target", type=options.not_negative, default=0.3)
    options.add_part(group)
    return parser.parse_args()


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    if args.start:
        start_from(model, args.start)
    pairs, evaluation = load_data(args)
    target = translations_of(load_target(args), args.generated, args.workers)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(f"{describe(pairs, evaluation)}; {target.describe()}")

    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            target_opt, target_sar, _, _ = run.draw_unpaired(target, args.target_images)    # T x 6 x S x S
            target_opt, drawn_sar = target_opt.split(3, 1)      # each image, and what was drawn from it
            target_sar, drawn_opt = target_sar.split(3, 1)
            sizes = [len(opt), len(target_opt), len(drawn_opt)]
            images = opt, target_opt, drawn_opt, sar, target_sar, drawn_sar
            images = random_part(images, args.part, run.generator)
            with run.autocast():
                fc = network(torch.cat(images[:3]), torch.cat(images[3:])).fc
            (opt, target_opt, drawn_opt), (sar, target_sar, drawn_sar) = (half.split(sizes) for half in fc.chunk(2))

            source = gather(torch.cat([opt, sar]), kinds=2)     # of all devices, if there are several
            triplet = cross_modal_triplet(source, margin=args.margin)
            of_opt = hhl_triplet(target_opt, drawn_sar, target_sar, sar, args.margin_target)
            of_sar = hhl_triplet(target_sar, drawn_opt, target_opt, opt, args.margin_target)
            invariance = args.lambda_target * (of_opt + of_sar)

            run.optimize(triplet + invariance, optimizer, schedule)
            run.record(triplet=triplet, invariance=invariance)
        run.end_epoch(model, evaluation, schedule, {"triplet": 2 * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
