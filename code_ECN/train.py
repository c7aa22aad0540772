"""ECN: target images classified as themselves, as their translation, and as their neighbours, by a memory of them.

    R="--data_path data/S1S2align200 --region T14RNT --target_region T11SLT T11SMT --windows --recipe cpu"
    python code_ECN/train.py $R --generated data/generated   all three invariances
    python code_ECN/train.py $R --neighbours 1               exemplar invariance alone

--generated: a folder of code_HHL/generate.py (or of any other generator's) with the target's places drawn in the other
modality, for camera invariance. What it gives: docs/ecn.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from memory import ExemplarMemory, invariance_loss, neighbour_weights
from shared import options
from shared.adapting.generated import translations_of
from shared.adapting.unpaired import load_target
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model, embedding_width, start_from
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run


def arguments():
    parser = options.adaptation(__doc__)
    group = parser.add_argument_group("invariances")
    group.add_argument("--generated", metavar="FOLDER",
                       help="camera invariance: the target's images in the other modality")
    group.add_argument("--neighbours", type=options.positive, default=6,
                       help="neighbourhood invariance: an image and its nearest are one; 1 leaves it out")
    group.add_argument("--neighbours_from", type=options.not_negative_integer, default=5, metavar="EPOCH",
                       help="epochs with exemplar and camera invariance alone")
    group.add_argument("--temperature", type=options.above_zero, default=0.05)
    group.add_argument("--keep", type=options.share, default=0.01,
                       help="of a row of the memory, times the epoch: the share that stays when its image is seen")
    group.add_argument("--lambda_target", type=options.share, default=0.3,
                       help="weight of the invariances; the source's triplet loss has the rest of 1")
    group.add_argument("--target_images", type=options.positive, default=32,
                       help="of each modality in a batch, beside --batch_size pairs of the source")
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
    if args.generated:
        target = translations_of(target, args.generated, args.workers)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(f"{describe(pairs, evaluation)}; {target.describe()}")

    width = embedding_width(model, args.img_size)
    memory = ExemplarMemory(len(target.opt) + len(target.sar), width)           # optical images first
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, memory=memory, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        neighbours = args.neighbours if epoch >= args.neighbours_from else 1
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            target_opt, target_sar, opt_rows, sar_rows = run.draw_unpaired(target, args.target_images)
            images = torch.cat([opt_rows, sar_rows + len(target.opt)])          # 2T, rows of the memory
            opt_images, sar_images = [opt, target_opt[:, :3]], [sar, target_sar[:, :3]]
            if args.generated:                                  # T x 6 x S x S: each image, and what was drawn from it
                opt_images.append(target_sar[:, 3:])
                sar_images.append(target_opt[:, 3:])
            sizes = [len(each) for each in opt_images]
            with run.autocast():
                fc = network(torch.cat(opt_images), torch.cat(sar_images)).fc
            (opt, target_opt, *drawn_opt), (sar, target_sar, *drawn_sar) = (half.split(sizes) for half in fc.chunk(2))

            source = gather(torch.cat([opt, sar]), kinds=2)     # of all devices, if there are several
            triplet = cross_modal_triplet(source, margin=args.margin)
            seen = torch.cat([target_opt, target_sar])          # 2T x D
            logits = memory.logits(seen, args.temperature)
            weights = neighbour_weights(logits, images, neighbours)
            terms = {"triplet": (1 - args.lambda_target) * triplet,
                     "exemplar": args.lambda_target * invariance_loss(logits, weights)}
            if args.generated:
                logits = memory.logits(torch.cat(drawn_sar + drawn_opt), args.temperature)
                terms["camera"] = args.lambda_target * invariance_loss(logits, weights)

            run.optimize(sum(terms.values()), optimizer, schedule)
            memory.update(seen, images, min(1.0, args.keep * (epoch + 1)))
            run.record(**terms)
        run.end_epoch(model, evaluation, schedule, {"triplet": 2 * (1 - args.lambda_target) * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
