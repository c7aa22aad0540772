"""Adapting to a region without pairs, the simple ways: what the published methods have to beat.

    R="--data_path data/S1S2align200 --region T14RNT --target_region T11SLT T11SMT --windows --recipe cpu"
    python code_Adapt/train.py $R --coral 1                  covariances of source and target embeddings alike
    python code_Adapt/train.py $R --critic 0.001             a critic between the target's modalities, as code_Adv's
    python code_Adapt/train.py $R --pseudo_pairs 1           the target's mutual nearest neighbours as pairs
    python code_Adapt/train.py $R --restyle                  the source's pairs in the target's colours
    python code_Adapt/train.py $R --restyle --tone_pairs 1   and target images with themselves in random tones

--start RUN begins with a network that was trained on the source. Three ways train nothing: test.py --batchnorm target,
--whiten and --querybank. What it gives: docs/regions.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from pseudo_pairs import PseudoPairs
from restyle import restyle
from shared import options
from shared.adapting.unpaired import load_target
from shared.critics import CRITICS, critic_step
from shared.dataset import describe, load_data, steps_per_epoch
from shared.losses import cross_modal_triplet, modal_coral
from shared.model import build_model, embedding_width, start_from
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.run_files import side_of_part
from shared.run import Run
from shared.views import random_part
from tone_pairs import pairs_of_tones


def arguments():
    parser = options.adaptation(__doc__)
    group = parser.add_argument_group("ways to adapt")
    group.add_argument("--coral", type=options.above_zero, metavar="WEIGHT",
                       help="covariances of the source's and the target's embeddings alike, for each modality")
    group.add_argument("--critic", type=options.above_zero, metavar="WEIGHT",
                       help="a Wasserstein critic between the target's optical and SAR embeddings")
    group.add_argument("--pseudo_pairs", type=options.above_zero, metavar="WEIGHT",
                       help="the triplet loss on the target's mutual nearest neighbours, found anew each epoch")
    group.add_argument("--restyle", action="store_true",
                       help="the source's images with the means and deviations of the target's")
    group.add_argument("--tone_pairs", type=options.above_zero, metavar="WEIGHT",
                       help="the triplet loss on target images and themselves in random tones for the other modality")
    options.add_part(group)
    args = parser.parse_args()
    if not any((args.coral, args.critic, args.pseudo_pairs, args.restyle, args.tone_pairs)):
        raise InputError("nothing to adapt by: give --coral, --critic, --pseudo_pairs, --restyle or --tone_pairs")
    return args


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

    pseudo_pairs = PseudoPairs(target)
    critic = CRITICS["wasserstein"](embedding_width(model, side_of_part(args.part, args.img_size)))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=critic.betas, weight_decay=5e-4)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, pseudo_pairs=pseudo_pairs, critic=critic, critic_optimizer=critic_optimizer,
               optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        if run.step == 0 and args.pseudo_pairs:
            pseudo_pairs.renew(model, run.device, run.autocast)
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            target_opt, target_sar, _, _ = run.draw_unpaired(target)
            if args.pseudo_pairs:
                target_opt, target_sar = pseudo_pairs.replace(target_opt, target_sar, run.generator)
            images = random_part((opt, target_opt, sar, target_sar), args.part, run.generator)
            opt, target_opt, sar, target_sar = images
            if args.restyle:
                opt, sar = restyle(opt, target_opt), restyle(sar, target_sar)
            opt_images, sar_images = [opt, target_opt], [sar, target_sar]
            if args.tone_pairs:
                toned_opt, toned_sar = pairs_of_tones(target_opt, target_sar, run.generator)
                opt_images.append(toned_opt)
                sar_images.append(toned_sar)
            with run.autocast():                                # kinds x B x D: optical of both regions (...), SAR
                fc = network(torch.cat(opt_images), torch.cat(sar_images)).fc
            kinds = len(opt_images)                             # of each modality
            of_opt, of_sar = (half.chunk(kinds) for half in gather(fc, kinds=2 * kinds).chunk(2))
            fc_opt, target_fc_opt, *toned_fc_opt = of_opt
            fc_sar, target_fc_sar, *toned_fc_sar = of_sar

            terms = {"triplet": cross_modal_triplet(torch.cat([fc_opt, fc_sar]), margin=args.margin)}
            if args.coral:
                alike = modal_coral(fc_opt, target_fc_opt) + modal_coral(fc_sar, target_fc_sar)
                terms["coral"] = args.coral * alike
            if args.critic:
                for _ in range(critic.steps):                   # the critic's weights alone move
                    critic_step(critic, critic_optimizer, target_fc_opt, target_fc_sar)
                terms["critic"] = args.critic * critic.model_loss(target_fc_opt, target_fc_sar)
            if args.pseudo_pairs:
                terms["pseudo_pairs"] = args.pseudo_pairs * pseudo_pairs.loss(target_fc_opt, target_fc_sar, args.margin)
            if args.tone_pairs:
                toned_triplet = cross_modal_triplet(torch.cat(toned_fc_opt + toned_fc_sar), margin=args.margin)
                terms["tone_pairs"] = args.tone_pairs * toned_triplet

            run.optimize(sum(terms.values()), optimizer, schedule)
            run.record(**terms)
        figures = {"pairs_found": len(pseudo_pairs)} if args.pseudo_pairs else {}
        run.end_epoch(model, evaluation, schedule, {"triplet": 2 * args.margin}, figures)


if __name__ == "__main__":
    run_script(train, arguments)
