"""Contrastive learning: a layout-keeping embedding, parts of windows from anywhere in the training tiles, AdamW, and a
choice of losses.

    python code_Con/train.py --data_path data/SN6align200 --windows                   for CUDA: never run there yet
    python code_Con/train.py --data_path data/S1S2align200 --windows --recipe cpu     from scratch on a CPU

What each piece gives: docs/contrastive.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from chunks import in_chunks
from contrastive_losses import CONTRASTIVE, AfterInfoNCE, build_contrastive, collapsed_value
from hard_negatives import HardNegatives
from misalign import misaligned, side_to_turn
from shared import options
from shared.dataset import describe, load_data, steps_per_epoch
from shared.model import build_model
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.run_files import side_of_part
from shared.run import Run
from shared.views import random_part, with_shown


def arguments():
    parser = options.training(__doc__, cpu={**options.CONTRASTIVE_CPU, "part": 48, "epochs": 240})
    group = parser.add_argument_group("contrastive")
    group.add_argument("--loss", choices=CONTRASTIVE, default="triplet",
                       help="triplet: batch-hard; the last three are pytorch-metric-learning's "
                            "(requirements-optional.txt)")
    group.add_argument("--temperature", type=options.above_zero, default=0.05,
                       help="of InfoNCE, to begin with: it is learned")
    group.add_argument("--label_smoothing", type=options.share, default=0.0)
    group.add_argument("--hard_negatives", type=options.positive, default=0, metavar="K",
                       help="batches of places beside the K that look most like them (default: random batches)")
    options.add_part(group)
    group.add_argument("--infonce_first", type=options.share, default=0.0, metavar="SHARE",
                       help="InfoNCE instead of --loss in this share of the epochs, the first")
    group.add_argument("--left_out", type=options.share, default=0.0, metavar="SHARE",
                       help="with --input both, leave the image beside its structure out of this share of the images")
    group.add_argument("--toned", type=options.share, default=0.0, metavar="SHARE",
                       help="with --input both, show this share of the images in random tones")
    group.add_argument("--turn", type=options.not_negative, default=0.0, metavar="DEGREES",
                       help="turn one of the two images of each pair by up to so much")
    group.add_argument("--rescale", type=options.share, default=0.0, metavar="SHARE",
                       help="and scale it by up to so much")
    group.add_argument("--chunk", type=options.positive, metavar="PAIRS",
                       help="embed so many pairs at a time, for batches that do not fit the memory (default: the "
                            "whole batch)")
    parser.set_defaults(**options.CONTRASTIVE_DEFAULTS)     # not the author's recipe, but this method's own
    args = parser.parse_args()
    if args.input != "both" and (args.left_out or args.toned):
        raise InputError(f"--left_out and --toned say what stands beside the structure, and --input {args.input} has "
                         "nothing beside it: give --input both, or leave them out")
    if args.turn > 180:
        raise InputError(f"--turn {args.turn:g}: give at most 180 degrees")
    if args.left_out + args.toned > 1:
        raise InputError(f"--left_out {args.left_out} and --toned {args.toned} are more than all images: give less")
    if args.hard_negatives and args.windows:
        raise InputError("--hard_negatives looks for places that were seen before, and --windows draws each but once: "
                         "choose one of them")
    return args


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    part = side_of_part(args.part, args.img_size)
    side = side_to_turn(part, args.turn, args.rescale, args.img_size)
    # Windows no larger than a step needs; the image alone goes on drawing what its figures were measured with.
    pairs, evaluation = load_data(args, window=None if args.input == "rgb" else side)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    negatives = HardNegatives(pairs, args.hard_negatives)
    loss = build_contrastive(args.loss, args.margin, args.temperature, args.label_smoothing)
    collapsed = {"contrastive": collapsed_value(loss, args.batch_size)}
    infonce_epochs = round(args.infonce_first * args.epochs)
    if infonce_epochs:
        infonce = build_contrastive("infonce", temperature=args.temperature, label_smoothing=args.label_smoothing)
        loss = AfterInfoNCE(loss, infonce, infonce_epochs)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head, extra=loss)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, loss=loss, negatives=negatives, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        if run.step == 0:
            negatives.refresh(model, epoch, run.device, run.autocast)
        if infonce_epochs:
            loss.start_epoch(epoch)
        model.train()
        for opt, sar, places in run.batches(pairs, epoch, negatives.order):             # B x 3 x S x S in [0, 1]
            opt, sar = random_part((opt, sar), side, run.generator)                     # B x 3 x side x side
            if args.turn or args.rescale:
                opt, sar = misaligned(opt, sar, part, args.turn, args.rescale, run.generator)   # B x 3 x part x part
            if args.input == "both":
                opt, sar = (with_shown(images, model.mean, args.left_out, args.toned, run.generator)
                            for images in (opt, sar))                                   # B x 6 x part x part
            with run.autocast():                                # 2B x D: optical, SAR
                fc = in_chunks(network, opt, sar, args.chunk or args.batch_size)
            fc = gather(fc, kinds=2)                            # of all devices, if there are several
            contrastive = loss(fc)

            run.optimize(contrastive, optimizer, schedule)
            run.record(contrastive=contrastive)
        run.end_epoch(model, evaluation, schedule, collapsed if epoch >= infonce_epochs else {})


if __name__ == "__main__":
    run_script(train, arguments)
