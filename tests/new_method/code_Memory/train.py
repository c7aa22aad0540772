"""A made-up method, to show what a folder can do by itself: see tests/test_new_method.py."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from exemplars import Decoder, Memory
from shared import options
from shared.adapting.unpaired import load_unpaired
from shared.dataset import load_data, load_training_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.errors import run_script
from shared.run import Run


def arguments():
    parser = options.training(__doc__)
    group = parser.add_argument_group("memory")
    group.add_argument("--pretrain", action="store_true", help="by drawing alone; nothing is evaluated")
    group.add_argument("--lambda_memory", type=options.not_negative, default=0.1)
    group.add_argument("--unpaired_path", help="a data set whose training images are used without their pairs")
    return parser.parse_args()


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    if args.pretrain:
        pairs, evaluation = load_training_data(args), None
    else:
        pairs, evaluation = load_data(args)
    target = load_unpaired(args.unpaired_path, args.img_size, args.workers) if args.unpaired_path else None
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(pairs.describe() + (f"; {target.describe()}" if target else ""))

    memory, decoder = Memory(len(pairs)), Decoder(channels=128)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head, extra=decoder)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, memory=memory, decoder=decoder, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):
            with run.autocast():
                pool5, fc, maps = network(opt, sar, with_maps=True)
                drawn = decoder(maps[2], torch.cat([opt, opt]))
            terms = {"drawn": drawn}
            if not args.pretrain:
                terms["triplet"] = cross_modal_triplet(fc, margin=args.margin)
                terms["memory"] = args.lambda_memory * memory(fc, places)
                memory.update(fc, places)
            if target:
                target_opt, target_sar, opt_rows, sar_rows = run.draw_unpaired(target)
                with run.autocast():
                    target_fc = network(target_opt, target_sar).fc
                terms["spread"] = target_fc.mean(0).square().sum()

            run.optimize(sum(terms.values()), optimizer, schedule)
            run.record(**terms)
        run.end_epoch(model, evaluation, schedule)


if __name__ == "__main__":
    run_script(train, arguments)
