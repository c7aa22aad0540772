"""Contrastive learning from scratch: a layout-keeping embedding, windows from anywhere in the training tiles, AdamW, a choice of losses.

    python code_Con/train.py --data_path data/SN6align200 --windows         the defaults, meant for CUDA: never run there yet
    python code_Con/train.py --data_path data/S1S2align200 --windows --arch resnet18 --img_size 96 --init none \\
        --layer4_stride 2 --specify_num 1 --lr 2e-3 --lr_head 2e-3 --epochs 48      from scratch on a CPU

What each piece gives: docs/contrastive.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.chunks import in_chunks
from shared.dataset import describe, load_data, steps_per_epoch
from shared.distributed import gather
from shared.errors import run_script
from shared.hard_negatives import HardNegatives
from shared.losses import build_contrastive, collapsed_value
from shared.optimizers import build_optimizer, build_schedule
from shared.run import Run, build_model


def train():
    args = options.training(__doc__, contrastive=True).parse_args()
    run = Run(args)

    pairs, evaluation = load_data(args)
    steps = steps_per_epoch(pairs, args.batch_size)
    run.log(describe(pairs, evaluation))

    model = build_model(args, run.device)
    negatives = HardNegatives(pairs, args.hard_negatives)
    loss = build_contrastive(args.loss, args.margin, args.temperature, args.label_smoothing)
    collapsed = {"contrastive": collapsed_value(loss, args.batch_size)}
    loss.to(run.device)
    optimizer = build_optimizer(model, args.optim, args.lr, args.lr_head, loss)
    schedule = build_schedule(optimizer, args.schedule, args.epochs, steps)
    network = run.parallelize(model)
    run.resume(model=model, loss=loss, negatives=negatives, optimizer=optimizer, schedule=schedule)

    for epoch in run.epochs():
        if run.step == 0:
            negatives.refresh(model, epoch, run.device, run.autocast)
        model.train()
        for opt, sar in run.batches(pairs, epoch, negatives.order):     # B x 3 x S x S in [0, 1]
            with run.autocast():
                pool5, fc = in_chunks(network, opt, sar, args.chunk or args.batch_size)   # 2B x 512: optical, SAR
            fc = gather(fc, kinds=2)                                  # of all devices, if there are several
            contrastive = loss(fc)

            optimizer.zero_grad()
            run.scaler.scale(contrastive).backward()
            run.scaler.step(optimizer)
            run.scaler.update()
            schedule.step()
            run.record(contrastive=contrastive)
        run.end_epoch(model, evaluation, schedule.get_last_lr()[0], collapsed)


if __name__ == "__main__":
    run_script(train)
