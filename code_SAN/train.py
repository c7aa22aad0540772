"""Semantics-aligned learning: an encoder from which the optical image of the place can be drawn.

    python code_SAN/train.py --data_path data/S1S2align200 --recipe cpu
    python code_SAN/train.py --data_path data/S1S2align200 --recipe cpu --decoder_triplet
    python code_SAN/train.py --data_path data/S1S2align200 --recipe cpu --reconstruction_only --result_path FIRST
    python code_SAN/train.py --data_path data/S1S2align200 --recipe cpu --init FIRST --decoder FIRST

The decoder is left out at test time; test.py shows what it draws. What it gives: docs/san.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from decoder import block_vectors, decoder_triplet, gradient_shares, reconstruction_loss
from drawings import build_decoder, draw_split, save_decoder
from shared import options
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet
from shared.model import build_model
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import InputError, run_script
from shared.run import Run


def arguments():
    # From scratch, at 1 the reconstruction is half a percent of the gradient; at 100 it drowns the triplet loss.
    parser = options.training(__doc__, cpu={"lambda_reconstruction": 10.0})
    group = parser.add_argument_group("decoder")
    group.add_argument("--draw", choices=("optical", "self"), default="optical",
                       help="from either modality the optical image of the place, or each image itself")
    group.add_argument("--lambda_reconstruction", type=options.above_zero, default=1.0)
    group.add_argument("--decoder_triplet", action="store_true", help="triplet constraints on the decoder's maps")
    group.add_argument("--margin_decoder", type=options.not_negative, default=0.3)
    group.add_argument("--lr_decoder", type=options.above_zero, default=1e-3, help="of its own Adam")
    group.add_argument("--reconstruction_only", action="store_true", help="a first stage; nothing is evaluated")
    group.add_argument("--decoder", metavar="RUN", help="begin with the decoder of a finished run, too")
    args = parser.parse_args()
    if args.stages != 5:
        raise InputError(f"--stages {args.stages}: the decoder draws from the maps of all five")
    return args


def train(args):
    run = Run(args, __file__)
    if run.finished:
        return

    model = build_model(args, run.device)
    pairs, evaluation = load_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    decoder = build_decoder(model, args.decoder).to(run.device, memory_format=torch.channels_last)
    model.embedding.requires_grad_(not args.reconstruction_only)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    decoder_optimizer = torch.optim.Adam(decoder.parameters(), args.lr_decoder)
    decoder_schedule = build_schedule(decoder_optimizer, args.schedule, args.epochs, steps)
    network, draw = run.parallelize(model), run.parallelize(decoder)
    run.resume(model=model, decoder=decoder, optimizer=optimizer, schedule=schedule,
               decoder_optimizer=decoder_optimizer, decoder_schedule=decoder_schedule)

    for epoch in run.epochs():
        model.train()
        decoder.train()
        figures = {}
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            with run.autocast():
                pool5, fc, maps = network(opt, sar, with_maps=True)     # 2B x 512: optical, SAR; five of 2B x c x h x w
                images, drawn = draw(maps, opt.shape[-2:])              # 2B x 3 x S x S; four of 2B x c x h x w
            terms = {"reconstruction": args.lambda_reconstruction * reconstruction_loss(images, opt, sar, args.draw)}
            if args.decoder_triplet:
                vectors = [gather(block, kinds=2) for block in block_vectors(drawn)]
                terms["decoder_triplet"] = decoder_triplet(vectors, args.margin_decoder)
            if not args.reconstruction_only:
                fc = gather(fc, kinds=2)                        # of all devices, if there are several
                terms["triplet"] = cross_modal_triplet(fc, kinds=2, margin=args.margin)
            if run.step == steps - 1:
                figures = gradient_shares(terms, maps[-1])       # at layer4, of whose maps the embedding is made

            run.optimize(sum(terms.values()), optimizer, schedule, [(decoder_optimizer, decoder_schedule)])
            run.record(**terms)
        if epoch + 1 == args.epochs and run.is_first_process:
            file = run.folder / "pictures" / f"drawn_{'validation' if args.validate else 'test'}.png"
            figures.update(draw_split(model, decoder, evaluation, run.device, run.autocast, file))
            save_decoder(decoder, run.folder)
        if args.reconstruction_only:
            run.end_epoch(model, None, schedule, figures=figures)
        else:
            run.end_epoch(model, evaluation, schedule, {"triplet": 2 * args.margin}, figures)


if __name__ == "__main__":
    run_script(train, arguments)
