"""SimSiam: pretraining on images without labels, which leaves behind what --init takes.

    python code_SimSiam/train.py --data_path data/S1S2align200 --windows --recipe cpu
    python code_SimSiam/train.py --data_path data/S1S2align200 --windows --recipe cpu --crops contrastive
    python code_SimSiam/train.py --data_path data/S1S2align200 --windows --recipe cpu --views modalities
    python code/train.py --data_path data/S1S2align200 --recipe cpu --init results/S1S2align200/code_SimSiam/seed0

What it gives: docs/simsiam.md.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch

from crops import Boxes, cut_crops, draw_crops, turn_at_random, vary
from probe import probe
from shared import options
from shared.dataset import describe, load_data, steps_per_epoch
from shared.model import build_model
from shared.plumbing.errors import run_script
from shared.run import Run
from simsiam import SimSiam, output_std, simsiam_loss

# Rows of (optical, SAR, ...) batches that are two views of the same images.
PAIRS_OF_VIEWS = {"crops": ((0, 1), (2, 3)), "modalities": ((0, 1),)}


def arguments():
    # So few steps take a larger rate than the paper's 0.05: docs/simsiam.md.
    cpu = {"arch": "resnet18", "img_size": 96, "batch_size": 64, "epochs": 20, "view_size": 64, "lr": 0.2}
    parser = options.TrainingParser(__doc__, cpu)
    data = options.add_data(parser)
    options.add_validation(data)
    options.add_drawing(data)
    options.add_region(data)
    options.add_target(data)
    options.add_model(parser)
    recipe = options.add_recipe(parser)
    group = parser.add_argument_group("views")
    group.add_argument("--views", choices=tuple(PAIRS_OF_VIEWS), default="crops",
                       help="crops: two of an image, each modality by itself; modalities: the images of a place")
    group.add_argument("--crops", choices=("random", "contrastive"), default="random",
                       help="random resized crops, or contrastive ones: where the network's heat is")
    group.add_argument("--view_size", type=options.positive, metavar="PX",
                       help="side of a crop as it is embedded (default: --img_size)")
    group.add_argument("--box_threshold", type=options.share, default=0.1, metavar="K",
                       help="of contrastive crops: the box is about all whose heat is above it")
    group.add_argument("--alpha", type=options.above_zero, default=0.6,
                       help="of contrastive crops: their middles scatter in the box by Beta(alpha, alpha)")
    group.add_argument("--renewal", type=options.above_zero, default=0.2, metavar="SHARE",
                       help="of contrastive crops: boxes by the network as it was after each such share of the epochs")
    recipe.add_argument("--no_stop_gradient", action="store_true", help="to see it collapse")
    run = options.add_run(parser)
    run.add_argument("--probe_every", type=options.positive, default=5, metavar="EPOCHS",
                     help="ask every so often whose nearest neighbour is the same place")
    options.add_device(run)
    options.add_compile(run)
    options.add_store(run)
    parser.set_defaults(init="none", pooling="avg", lr=0.05, batch_size=256, epochs=100)
    return parser.parse_args()


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = SimSiam(build_model(args, run.device))
    pairs, evaluation = load_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    boxes = Boxes(model.backbone, args.box_threshold, args.renewal)
    optimizer, schedule = build_optimizer(model, args.lr * args.batch_size / 256, args.epochs * steps)
    network = run.parallelize(model.to(run.device))
    run.resume(model=model, boxes=boxes, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        if run.step == 0 and args.crops == "contrastive":
            boxes.renew(model.backbone, epoch, args.epochs)
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            random = np.random.default_rng(int(torch.randint(2 ** 31, (), generator=run.generator)))
            if args.views == "crops":
                opt = views_of(opt, boxes(opt=opt), args, False, random)
                sar = views_of(sar, boxes(sar=sar), args, True, random)
            else:
                opt, sar = [vary(opt, False, random)], [vary(sar, True, random)]
            with run.autocast():
                z, p = network(opt, sar)                        # K x B x 512: batches of optical views, then of SAR
            loss = simsiam_loss(z, p, PAIRS_OF_VIEWS[args.views], not args.no_stop_gradient)

            run.optimize(loss, optimizer, schedule)
            run.record(simsiam=loss, output_std=output_std(z))
        figures = {}
        if (epoch + 1) % args.probe_every == 0 or epoch + 1 == args.epochs:
            figures = probe(model.backbone, evaluation, run.device, run.autocast)
        run.end_epoch(model.backbone, None, schedule, figures=figures)


def views_of(images, boxes, args, is_sar, random):
    """Two views (B, 3, V, V) of each image (B, 3, S, S)."""
    alpha = args.alpha if args.crops == "contrastive" else 1.0
    views = []
    for _ in range(2):
        crops = draw_crops(boxes, alpha, random)
        view = cut_crops(images, crops, args.view_size or args.img_size)
        views.append(vary(turn_at_random(view, random), is_sar, random))
    return views


def build_optimizer(model, lr, steps):
    """SGD (momentum 0.9, weight decay 1e-4) and its schedule: cosine to zero; the predictor's rate stays (section 4.2).
    """
    predictor = list(model.predictor.parameters())
    others = [*model.backbone.backbone_parameters(), *model.projector.parameters()]
    groups = [{"params": others}, {"params": predictor}]
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, weight_decay=1e-4)

    def cosine(step):
        return 0.5 * (1 + math.cos(math.pi * step / steps))

    def constant(step):
        return 1.0
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, [cosine, constant])


if __name__ == "__main__":
    run_script(train, arguments)
