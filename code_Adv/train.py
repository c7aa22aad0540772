"""Adversarial learning between the modalities' embeddings, with or without pseudo-modal images.

    python code_Adv/train.py --data_path data/SN6align200
    python code_Adv/train.py --data_path data/SN6align200 --channel_exchange --guided_filter
    python code_Adv/train.py --data_path data/SN6align200 --modal_loss mmd --lambda_adv 0
    python code_Adv/train.py --data_path data/demo --adv classifier --recipe cpu        from scratch on a CPU
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.adapting.generated import true_and_generated, with_generated
from shared.critics import CRITICS, critic_step
from shared.dataset import describe, load_data, steps_per_epoch
from shared.filters import pseudo_modal
from shared.losses import MODAL_LOSSES, cross_modal_triplet
from shared.model import build_model, embedding_width
from shared.optimizers import build_optimizer, build_schedule
from shared.plumbing.distributed import gather
from shared.plumbing.errors import run_script
from shared.run import Run


def arguments():
    # At the rates of --recipe cpu the critic's estimate runs ahead of the model: 0.01 drowns the triplet loss.
    parser = options.training(__doc__, cpu={"lambda_adv": 0.001})
    options.add_pseudo_modal(parser)
    group = parser.add_argument_group("between the modalities")
    group.add_argument("--adv", choices=tuple(CRITICS), default="wasserstein")
    group.add_argument("--lambda_adv", type=options.not_negative, default=0.01,
                       help="weight of the adversarial loss; 0 leaves the critic out")
    group.add_argument("--lr_critic", type=options.above_zero, default=1e-3)
    group.add_argument("--critic_steps", type=options.positive,
                       help="critic steps for each model step (default: 5, with the classifier 1)")
    group.add_argument("--modal_loss", choices=tuple(MODAL_LOSSES),
                       help="one more term: mse of the two embeddings of a place, mmd or coral of the two sets")
    group.add_argument("--lambda_modal", type=options.not_negative, default=1.0,
                       help="weight of --modal_loss; with --lambda_adv 0 it stands alone beside the triplet loss")
    return parser.parse_args()


def train(args):
    auxiliary = args.channel_exchange or args.filter or args.generated
    kinds = 4 if auxiliary else 2
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
    critic = CRITICS[args.adv](embedding_width(model, args.img_size))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.lr_critic, betas=critic.betas, weight_decay=5e-4)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule, critic=critic, critic_optimizer=critic_optimizer)

    for epoch in run.epochs():
        model.train()
        for opt, sar, places in run.batches(pairs, epoch):      # B x 3 x S x S in [0, 1]
            if auxiliary:
                (opt, opt_pseudo), (sar, sar_pseudo) = true_and_generated(opt), true_and_generated(sar)
                opt_pseudo = pseudo_modal(opt_pseudo, args.channel_exchange, args.filter, run.generator, guide=sar)
                sar_pseudo = pseudo_modal(sar_pseudo, args.channel_exchange, args.filter, run.generator, guide=opt)
                opt, sar = torch.cat([opt, opt_pseudo]), torch.cat([sar, sar_pseudo])
            with run.autocast():                                # kinds x B x 512: optical (and pseudo-), SAR (...)
                fc = network(opt, sar).fc
            fc = gather(fc, kinds=kinds)                        # of all devices, if there are several
            fc_opt, fc_sar = fc.chunk(kinds)[0], fc.chunk(kinds)[kinds // 2]

            triplet = cross_modal_triplet(fc, kinds=kinds, margin=args.margin)
            loss, terms = triplet, {"triplet": triplet}
            if args.lambda_adv:
                # The critic's steps: its weights alone move.
                for _ in range(args.critic_steps or critic.steps):
                    critic_loss = critic_step(critic, critic_optimizer, fc_opt, fc_sar)
                # In the model's step the critic's weights collect a gradient, which its next step throws away.
                adversarial = critic.model_loss(fc_opt, fc_sar)
                loss = loss + args.lambda_adv * adversarial
                terms.update(adversarial=adversarial, critic=critic_loss)
            if args.modal_loss:
                modal = MODAL_LOSSES[args.modal_loss](fc_opt, fc_sar)
                loss = loss + args.lambda_modal * modal
                terms.update(modal=modal)

            run.optimize(loss, optimizer, schedule)
            run.record(**terms)
        run.end_epoch(model, evaluation, schedule, collapsed={"triplet": kinds * (kinds - 1) * args.margin})


if __name__ == "__main__":
    run_script(train, arguments)
