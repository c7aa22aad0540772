"""Every flag of the training and test scripts, the same words everywhere. Defaults: the author's recipe."""
import argparse
from pathlib import Path

from shared.device import AMPS
from shared.filters import FILTERS
from shared.image_store import STORES
from shared.losses import CONTRASTIVE, CRITICS, MODAL
from shared.model import ARCHS, POOLINGS
from shared.test_time import TEST_TIME


def training(description, pseudo_modal=False, adversarial=False, contrastive=False):
    """The parser of a train.py. Its flags land in args.json of the run's folder."""
    parser = _parser(description)

    data = parser.add_argument_group("data")
    data.add_argument("--data_path", required=True, help="the data set's folder, looked up here, then under the home directory")
    data.add_argument("--img_size", type=_positive, default=200, help="images are resized to this many pixels")
    data.add_argument("--no_normalize", action="store_true", help="leave out ImageNet's mean and standard deviation")
    data.add_argument("--windows", action="store_true", help="train on windows drawn anywhere in DATA/train_tiles, at any of the eight symmetries")
    data.add_argument("--symmetries", action="store_true", help="train on the crops at any of the eight symmetries of the square, both images of a pair alike")
    data.add_argument("--validate", type=_share, default=0.0, metavar="SHARE",
                      help="hold out this share of the training tiles and evaluate on them, never on the test split: for making choices")

    model = parser.add_argument_group("model")
    model.add_argument("--arch", choices=ARCHS, default="resnet50")
    model.add_argument("--init", default="imagenet", help="imagenet, none, or the file of a torchvision state dict")
    model.add_argument("--specify_num", type=int, choices=range(6), default=0,
                       help="how many of the five stages exist once for each modality")
    model.add_argument("--pooling", choices=POOLINGS, default="max", help="of layer4's maps: max or average of the whole image, or averages in a 3 x 3 grid and the max")
    model.add_argument("--layer4_stride", type=int, choices=(1, 2), default=1, help="1 keeps the resolution, 2 is torchvision's")

    loss = parser.add_argument_group("loss")
    if contrastive:
        loss.add_argument("--loss", choices=CONTRASTIVE, default="triplet",
                          help="triplet: batch-hard; the last three are pytorch-metric-learning's (requirements-losses.txt)")
        loss.add_argument("--temperature", type=_above_zero, default=0.05, help="of InfoNCE, to begin with: it is learned")
        loss.add_argument("--label_smoothing", type=_share, default=0.0)
        loss.add_argument("--hard_negatives", type=_positive, default=0, metavar="K", help="batches of places beside the K that look most like them (default: random batches)")
        loss.add_argument("--chunk", type=_positive, metavar="PAIRS",
                          help="embed so many pairs at a time, for batches that do not fit the memory (default: the whole batch)")
    loss.add_argument("--margin", type=float, default=0.5, help="of the triplet loss, in squared L2 distance")
    if pseudo_modal:
        loss.add_argument("--channel_exchange", action="store_true",
                          help="pseudo-modal images by channel exchange" + ("" if adversarial else " (the default where neither is asked for)"))
        loss.add_argument("--filter", choices=[name for name in FILTERS if name != "none"], help="pseudo-modal images by a filter; with both, filter then exchange")
        loss.add_argument("--guided_filter", action="store_const", dest="filter", const="guided", help="the author's: --filter guided")
    if adversarial:
        loss.add_argument("--adv", choices=CRITICS, default="wasserstein")
        loss.add_argument("--lambda_adv", type=float, default=0.01, help="weight of the adversarial loss")
        loss.add_argument("--lr_critic", type=float, default=1e-3)
        loss.add_argument("--critic_steps", type=_positive, help="critic steps for each model step (default: 5, with the classifier 1)")
        loss.add_argument("--modal_loss", choices=MODAL, help="one more term between the modalities' embeddings: mse of the two of a place, mmd or coral of the two sets")
        loss.add_argument("--lambda_modal", type=float, default=1.0, help="weight of --modal_loss; with --lambda_adv 0 it stands alone beside the triplet loss")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch_size", type=_positive, default=24, help="pairs in a batch")
    recipe.add_argument("--epochs", type=_positive, default=60)
    recipe.add_argument("--optim", choices=("sgd", "adamw"), default="sgd")
    recipe.add_argument("--lr", type=float, default=0.0025, help="of the backbone")
    recipe.add_argument("--lr_head", type=float, default=0.025, help="of the embedding")
    recipe.add_argument("--schedule", choices=("step", "cosine"), default="step",
                        help="step: divided by ten every 20 epochs; cosine: to zero, after a warm-up over a tenth of the steps")
    recipe.add_argument("--seed", type=int, default=0)

    run = parser.add_argument_group("run")
    run.add_argument("--result_path", help="the run's folder (default: results/<data set>/<script folder>/seed<seed>)")
    run.add_argument("--fresh", action="store_true", help="start over where the folder holds a run")
    run.add_argument("--eval_every", type=_positive, default=10, help="evaluate every so many epochs; the last one is what counts")
    _add_machine(run)
    if contrastive:                                                  # not the author's recipe but that of code_Con
        parser.set_defaults(pooling="grid", optim="adamw", schedule="cosine", lr=3e-4, lr_head=1e-3, batch_size=64)
    return parser


def testing(description):
    """The parser of a test.py."""
    parser = _parser(description)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run")
    parser.add_argument("--data_path", help="another data set than the run's own")
    parser.add_argument("--tta", choices=TEST_TIME, default="none",
                        help="embed each image as several views: joined (flip, the eight symmetries) or averaged (pseudo-modal images)")
    parser.add_argument("--result_path", type=Path, help="write the figures there, as a row of the table (default: test.json in the run's folder)")
    parser.add_argument("--save_embeddings", action="store_true", help="write the embeddings to the run's folder, as .npy")
    _add_machine(parser)
    return parser


def _parser(description):
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def _add_machine(group):
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:1 ...")
    group.add_argument("--amp", choices=AMPS, default="auto", help="mixed precision; auto takes what the device computes natively")
    group.add_argument("--compile", action="store_true", help="torch.compile the network: slow to begin, faster after")
    group.add_argument("--workers", type=_positive, default=2, help="threads that decode images")
    group.add_argument("--store", choices=STORES, default="auto", help="decoded images in memory, or on disk beside the data set; auto: in memory where they fit")


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _above_zero(text):
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
