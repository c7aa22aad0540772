"""Auxiliary training: the triplet loss over optical, SAR and the pseudo-modal images of both.

    python code_Aux/train.py --data_path data/SN6align200                           by channel exchange, the default
    python code_Aux/train.py --data_path data/demo --guided_filter --recipe cpu     from scratch on a CPU
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.adapting.generated import true_and_generated, with_generated
from shared.dataset import describe, load_data, steps_per_epoch
from shared.filters import pseudo_modal
from shared.losses import cross_modal_triplet
from shared.model import build_model
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run


def arguments():
    parser = options.training(__doc__, cpu=options.PSEUDO_MODAL_RATES)
    options.add_pseudo_modal(parser)
    args = parser.parse_args()
    args.channel_exchange = args.channel_exchange or not (args.filter or args.generated)
    return args


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    pairs, evaluation = load_data(args)
    if args.generated:
        pairs = with_generated(pairs, args.generated, args.workers)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            (opt, opt_pseudo), (sar, sar_pseudo) = true_and_generated(opt), true_and_generated(sar)
            opt_pseudo = pseudo_modal(opt_pseudo, args.channel_exchange, args.filter, run.generator, guide=sar)
            sar_pseudo = pseudo_modal(sar_pseudo, args.channel_exchange, args.filter, run.generator, guide=opt)
            with run.autocast():                                # 4B x 512: optical, pseudo-optical, SAR, pseudo-SAR
                fc = network(torch.cat([opt, opt_pseudo]), torch.cat([sar, sar_pseudo])).fc
            fc = gather(fc, kinds=4)                            # of all devices, if there are several
            triplet = cross_modal_triplet(fc, kinds=4, margin=args.margin)

            run.optimize(triplet, optimizer, schedule)
            run.record(triplet=triplet)
        run.end_epoch(model, evaluation, schedule, collapsed={"triplet": 12 * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
