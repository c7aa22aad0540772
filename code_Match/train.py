"""Train a dense matcher: the position and rotation of a SAR query on an optical map, among all positions at once.

    python code_Match/train.py --data_path data/S1S2align200
    python code_Match/train.py --data_path data/S1S2align200 --recipe cpu             30 minutes on two cores

Learns from windows anywhere in the training tiles, and calibrates on those held out how far an answer can be trusted.
The idea, the papers and what they gave: docs/match.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from calibrate import calibrate
from position_loss import cut_queries, displaced_nll, draw_rotations
from tiles import load_tiles
from shared import options
from shared.calibration import CALIBRATION
from shared.dataset import steps_per_epoch
from shared.localization import ROTATION_STEP
from shared.matcher import GRAIN, STRIDE, Matcher, correlate, load_matcher
from shared.optimizers import build_schedule
from shared.plumbing.device import choose_device
from shared.plumbing.errors import InputError, run_script
from shared.reading import readers_of
from shared.run import Run

PX_OF_A_WINDOW = 200                                    # an epoch has as many windows as the tiles have such crops


def arguments():
    parser = options.TrainingParser(__doc__, cpu={"epochs": 36})
    options.add_validation(options.add_data(parser))
    recipe = options.add_recipe(parser)
    recipe.add_argument("--query", type=options.positive, default=128, metavar="PX", help="side of a query in training")
    recipe.add_argument("--rotations", type=options.positive, default=2,
                        help="at how many rotations a query is tried in training, the true one among them")
    recipe.add_argument("--displacement", type=options.not_negative, default=3.0, metavar="PX",
                        help="how far the images of a pair are displaced against each other, standard deviation")
    recipe.add_argument("--calibration", type=options.positive, default=160, metavar="QUERIES",
                        help="to calibrate on, at each size and uncertainty of the rotation, at least one of each tile")
    run = options.add_run(parser)
    options.add_device(run)
    options.add_compile(run)
    parser.set_defaults(img_size=256, validate=0.2, batch_size=8, epochs=100, lr=2e-3)
    args = parser.parse_args()
    if args.query > args.img_size or args.query % GRAIN:
        raise InputError(f"--query {args.query}: choose a multiple of {GRAIN} up to --img_size {args.img_size}")
    if not args.validate:
        raise InputError("--validate 0: a matcher is calibrated on training tiles that are held out; choose a share "
                         "above 0")
    return args


def train(args):
    run = Run(args, __file__)
    kept, held_out = load_tiles(args.data_path, "train", args.workers, readers_of(args)).hold_out(args.validate)
    if len(held_out) < 2:
        raise InputError(f"--validate {args.validate}: 1 tile(s) held out, and calibration looks for each query on "
                         "another tile, too; choose a larger share")
    if not run.finished:
        fit(run, args, kept)
    if not (run.folder / CALIBRATION).is_file():
        device = choose_device(args.device)
        model = load_matcher(run.folder, device)
        calibrate(model, held_out, args.calibration, device, run.autocast).save(run.folder / CALIBRATION)


def fit(run, args, tiles):
    crops = [max(1, tile.shape[0] // PX_OF_A_WINDOW) * max(1, tile.shape[1] // PX_OF_A_WINDOW) for tile in tiles.opt]
    windows = tiles.windows(args.img_size, places=sum(crops))
    steps = steps_per_epoch(windows, args.batch_size)
    run.log(windows.describe())

    model = Matcher().to(run.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.01)
    schedule = build_schedule(optimizer, "cosine", args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        model.train()
        for opt, sar, _ in run.batches(windows, epoch):                         # B x 3 x S x S in [0, 1]
            rotations = draw_rotations(len(opt), args.rotations, ROTATION_STEP / 2, run.generator)
            views, masks, cell = cut_queries(sar, args.query, rotations, run.generator)
            with run.autocast():
                maps, queries = network(opt, views.flatten(0, 1))               # B x C x S/2 x S/2, BK x C x q/2 x q/2
            scores = correlate(queries, masks.flatten(0, 1), maps)              # BK x B x h x w, of every window
            logits = model.logits(scores).unflatten(0, (len(opt), args.rotations))
            position = displaced_nll(logits, cell, args.displacement / STRIDE)

            run.optimize(position, optimizer, schedule)
            run.record(position=position)
        run.end_epoch(model, None, schedule)


if __name__ == "__main__":
    run_script(train, arguments)
