"""Baseline: a pseudo-siamese ResNet with the cross-modal triplet loss.

    python code/train.py --data_path data/SN6align200            the author's recipe, on CUDA when there is one
    python code/train.py --data_path data/demo --recipe cpu      from scratch on a CPU
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run


def arguments():
    return options.training(__doc__).parse_args()


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    pairs, evaluation = load_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            with run.autocast():
                fc = network(opt, sar).fc                       # 2B x 512: optical, SAR
            fc = gather(fc, kinds=2)                            # of all devices, if there are several
            triplet = cross_modal_triplet(fc, kinds=2, margin=args.margin)

            run.optimize(triplet, optimizer, schedule)
            run.record(triplet=triplet)
        run.end_epoch(model, evaluation, schedule, collapsed={"triplet": 2 * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
