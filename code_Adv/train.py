"""Adversarial learning between the modalities' embeddings, with or without pseudo-modal images.

    python code_Adv/train.py --data_path data/SN6align200
    python code_Adv/train.py --data_path data/SN6align200 --channel_exchange --guided_filter
    python code_Adv/train.py --data_path data/SN6align200 --modal_loss mmd --lambda_adv 0
    python code_Adv/train.py --data_path data/demo --adv classifier --arch resnet18 --img_size 96 --init none \\
        --schedule cosine --lr 0.1 --lr_head 0.1 --batch_size 48 --epochs 20        from scratch on a CPU
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch

from shared import options
from shared.dataset import describe, load_data, steps_per_epoch
from shared.distributed import gather
from shared.errors import run_script
from shared.filters import pseudo_modal
from shared.losses import CRITICS, MODAL, critic_step, cross_modal_triplet
from shared.optimizers import build_optimizer, build_schedule
from shared.run import Run, build_model


def train():
    args = options.training(__doc__, pseudo_modal=True, adversarial=True).parse_args()
    auxiliary = args.channel_exchange or args.filter
    kinds = 4 if auxiliary else 2
    run = Run(args)

    pairs, evaluation = load_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    model = build_model(args, run.device)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    critic = CRITICS[args.adv]().to(run.device)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.lr_critic, betas=critic.betas, weight_decay=5e-4)
    network = run.parallelize(model)
    run.resume(model=model, optimizer=optimizer, schedule=schedule, critic=critic, critic_optimizer=critic_optimizer)

    for epoch in run.epochs():
        model.train()
        for opt, sar in run.batches(pairs, epoch):                    # B x 3 x S x S in [0, 1]
            if auxiliary:
                opt_pseudo = pseudo_modal(opt, args.channel_exchange, args.filter, run.generator, guide=sar)
                sar_pseudo = pseudo_modal(sar, args.channel_exchange, args.filter, run.generator, guide=opt)
                opt, sar = torch.cat([opt, opt_pseudo]), torch.cat([sar, sar_pseudo])
            with run.autocast():                                      # kinds x B x 512: optical (and pseudo-), SAR (and pseudo-)
                pool5, fc = network(opt, sar)
            fc = gather(fc, kinds=kinds)                              # of all devices, if there are several
            fc_opt, fc_sar = fc.chunk(kinds)[0], fc.chunk(kinds)[kinds // 2]

            # The critic's steps: its weights alone move.
            for _ in range(args.critic_steps or critic.steps):
                critic_loss = critic_step(critic, critic_optimizer, fc_opt, fc_sar)

            # The model's step: the critic's weights collect a gradient, which its next step throws away.
            triplet = cross_modal_triplet(fc, kinds=kinds, margin=args.margin)
            adversarial = critic.model_loss(fc_opt, fc_sar)
            terms = {"triplet": triplet, "adversarial": adversarial}
            if args.modal_loss:
                terms["modal"] = MODAL[args.modal_loss](fc_opt, fc_sar)
            loss = triplet + args.lambda_adv * adversarial + args.lambda_modal * terms.get("modal", 0)

            optimizer.zero_grad()
            run.scaler.scale(loss).backward()
            run.scaler.step(optimizer)
            run.scaler.update()
            schedule.step()
            run.record(**terms, critic=critic_loss)
        run.end_epoch(model, evaluation, schedule.get_last_lr()[0], collapsed={"triplet": kinds * (kinds - 1) * args.margin})


if __name__ == "__main__":
    run_script(train)
