"""ARN: what two regions have in common, told apart from what is each one's own.

    R="--data_path data/S1S2align200 --region T14RNT --target_region T11SLT T11SMT --windows --recipe cpu"
    python code_ARN/train.py $R
    python code_ARN/train.py $R --no_private                 without private branches
    python code_ARN/train.py $R --unsupervised               without the source's pairs
    python code_ARN/train.py $R --unsupervised --no_private  reconstruction alone

The common branch is the network's own; what is private, and the decoder, are left out at test time. What it gives:
docs/arn.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from branches import REGIONS, Branches, contrastive_loss, difference_loss, of_regions, reconstruction_loss
from shared import options
from shared.adapting.unpaired import load_target
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model, channels_of, start_from
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run
from shared.views import random_part


def arguments():
    parser = options.adaptation(__doc__)
    group = parser.add_argument_group("common and private")
    group.add_argument("--unsupervised", action="store_true", help="leave out triplet and contrastive loss")
    group.add_argument("--no_private", action="store_true", help="leave out the private branches")
    group.add_argument("--lambda_contrastive", type=options.not_negative, default=0.01)
    group.add_argument("--lambda_reconstruction", type=options.not_negative, default=2.0)
    group.add_argument("--lambda_difference", type=options.not_negative, default=1500.0)
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
    target = load_target(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(f"{describe(pairs, evaluation)}; {target.describe()}")

    inputs, outputs = channels_of(model)[-2:]
    branches = Branches(model.shared_stages[-1], inputs, outputs, private=not args.no_private)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head, extra=branches)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network, separate = run.parallelize(model), run.parallelize(branches.to(run.device))
    run.resume(model=model, branches=branches, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        branches.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            target_opt, target_sar, _, _ = run.draw_unpaired(target)
            images = random_part((opt, target_opt, sar, target_sar), args.part, run.generator)
            with run.autocast():                                # rows: optical of both regions, SAR of both
                pool5, fc, maps = network(torch.cat(images[:2]), torch.cat(images[2:]), with_maps=True)
                base, common = of_regions(maps[-2]), of_regions(maps[-1])       # before the last stage, after it
                separated = [separate(*both, region) for *both, region in zip(base, common, REGIONS)]
            terms = {}
            for i, (private, drawn) in enumerate(separated):
                reconstruction = reconstruction_loss(drawn, base[i])
                terms[f"reconstruction_{REGIONS[i]}"] = args.lambda_reconstruction * reconstruction
                if private is not None:
                    difference = difference_loss(common[i], private)
                    terms[f"difference_{REGIONS[i]}"] = args.lambda_difference * difference
            if not args.unsupervised:
                fc_source, _ = of_regions(gather(fc, kinds=4))  # of all devices, if there are several
                terms["triplet"] = cross_modal_triplet(fc_source, margin=args.margin)
                terms["contrastive"] = args.lambda_contrastive * contrastive_loss(fc_source)

            run.optimize(sum(terms.values()), optimizer, schedule)
            run.record(**terms)
        run.end_epoch(model, evaluation, schedule, {} if args.unsupervised else {"triplet": 2 * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
