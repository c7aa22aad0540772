# For every script: its flags.
"""The flags that scripts share, the same words everywhere. Defaults: the author's recipe.

A method's own flags stand in its folder, where they are used.
"""
import argparse
import math
from pathlib import Path

from shared.backbones import BACKBONES, PACKAGES, TIMM, check_arch
from shared.filters import FILTERS
from shared.model import INPUTS, POOLINGS
from shared.plumbing.device import AMPS
from shared.plumbing.errors import InputError
from shared.plumbing.image_store import STORES
from shared.reading.tones import SCALES
from shared.views import VIEWS

# --recipe cpu: trains from scratch on a CPU in minutes.
CPU_RECIPE = {"arch": "resnet18", "img_size": 96, "init": "none", "schedule": "cosine", "lr": 0.1, "lr_head": 0.1,
              "batch_size": 48, "epochs": 20}
# With pseudo-modal images twelve triplet terms are summed instead of two, and it takes half of the rates: the best of
# three on held-out tiles; at 0.1 models with stages of their own collapse (docs/answers.md).
PSEUDO_MODAL_RATES = {"lr": 0.05, "lr_head": 0.05}
# code_Con's own recipe, and what of it --recipe cpu sets otherwise; methods that adapt it to a region start from it.
CONTRASTIVE_DEFAULTS = {"pooling": "grid", "optim": "adamw", "schedule": "cosine", "lr": 3e-4, "lr_head": 1e-3,
                        "batch_size": 64}
CONTRASTIVE_CPU = {"pooling": "cells", "stages": 3, "lr": 2e-3, "lr_head": 2e-3, "batch_size": 64, "layer4_stride": 2,
                   "specify_num": 1, "epochs": 110}


class TrainingParser(argparse.ArgumentParser):
    """A parser whose flag --recipe chooses the defaults of the others.

    cpu: what --recipe cpu sets, names of flags to values. parse_args() also gives `defaults`, the value of every flag
    of which neither the command line nor the recipe says anything.
    """

    def __init__(self, description, cpu):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)
        self.cpu = cpu
        self.pseudo_modal = ()                          # flags that ask for pseudo-modal images

    def parse_args(self, arguments=None):
        args = super().parse_args(arguments)
        defaults = {name: self.get_default(name) for name in vars(args)}
        if args.recipe == "cpu":
            self.set_defaults(**self.cpu)
            if any(getattr(args, name) for name in self.pseudo_modal):
                self.set_defaults(**PSEUDO_MODAL_RATES)
            args = super().parse_args(arguments)
        if getattr(args, "other_half", False) and not args.validate:
            self.error("--other_half holds out what --validate would train on: give --validate, too")
        args.defaults = defaults
        return args


def training(description, cpu=()):
    """The parser of a train.py. Its flags land in args.json of the run's folder.

    cpu: what --recipe cpu sets otherwise here than CPU_RECIPE, or besides, {flag: value}.
    """
    cpu = {**CPU_RECIPE, **dict(cpu)}
    parser = TrainingParser(description, cpu)
    data = add_data(parser)
    add_validation(data)
    add_drawing(data)
    add_region(data)
    add_target(data)
    add_model(parser)
    loss = parser.add_argument_group("triplet loss")
    loss.add_argument("--margin", type=not_negative, default=0.5, help="in squared L2 distance")

    recipe = add_recipe(parser)
    recipe.add_argument("--optim", choices=("sgd", "adamw"), default="sgd")
    recipe.add_argument("--lr_head", type=not_negative, default=0.025, help="of the embedding")
    recipe.add_argument("--schedule", choices=("step", "cosine"), default="step",
                        help="step: divided by ten every 20 epochs; cosine: to zero, after a warm-up over a tenth of "
                             "the steps")

    run = add_run(parser)
    run.add_argument("--eval_every", type=positive, default=10,
                     help="evaluate every so many epochs; the last one is what counts")
    add_device(run)
    add_compile(run)
    add_store(run)
    return parser


def add_data(parser):
    """The flags of any train.py that say what is read. Returns their group."""
    group = parser.add_argument_group("data")
    group.add_argument("--data_path", required=True,
                       help="the data set's folder, looked up here, then under the home directory")
    group.add_argument("--img_size", type=positive, default=200,
                       help="side of an image in px: crops are resized to it, windows have it")
    add_reading(group)
    return group


def add_reading(group):
    """The flags of every script that reads images: what shared/reading/readers.py makes Readers of."""
    group.add_argument("--bands", type=bands, metavar="R,G,B",
                       help="bands of the optical images, from 1: three, or one (default: by their colour "
                            "interpretation, else the first three)")
    group.add_argument("--sar_bands", type=bands, metavar="BAND",
                       help="of the SAR images: one, or three (default: VV, all of three, or the first)")
    group.add_argument("--scale", choices=SCALES,
                       help="what SAR numbers beyond bytes are: decibels, amplitude (linear) or power; auto takes the "
                            "logarithm where that makes them more symmetric (default: auto)")


def add_validation(group):
    """The flags that say to evaluate on training tiles that are held out."""
    group.add_argument("--validate", type=share, default=0.0, metavar="SHARE",
                       help="hold out this share of the training tiles and evaluate on them, never on the test split: "
                            "for making choices")
    group.add_argument("--other_half", action="store_true",
                       help="with --validate, train on what it would hold out, and hold the rest out")


def add_drawing(group):
    """The flags that say how training images are drawn."""
    group.add_argument("--windows", action="store_true",
                      help="train on windows drawn anywhere in DATA/train_tiles, at any of the eight symmetries")
    group.add_argument("--symmetries", action="store_true",
                      help="train on the crops at any of the eight symmetries of the square, both images of a pair "
                           "alike")


def add_region(group):
    """The flag that says where to train."""
    group.add_argument("--region", nargs="+", metavar="NAME",
                       help="train on the places of these regions of pairs.csv alone (default: all)")


def add_target(group):
    """The flags that say where to evaluate, if that is not the ground that is trained on."""
    group.add_argument("--target_path", metavar="DATA", help="evaluate on another data set than is trained on")
    add_target_region(group)


def add_target_region(group):
    """The flag that says at which test places to evaluate."""
    group.add_argument("--target_region", nargs="+", metavar="NAME",
                       help="evaluate on the test places of these regions alone (default: all)")


def add_model(parser):
    """The flags of a pseudo-siamese network: what build_model reads."""
    group = parser.add_argument_group("model")
    group.add_argument("--no_normalize", action="store_true",
                       help="leave out the mean and standard deviation that go with the published weights, ImageNet's")
    group.add_argument("--arch", type=architecture, default="resnet50",
                       help=f"{', '.join(BACKBONES)}, or {TIMM}NAME, a network of timm (docs/pretrained.md)")
    group.add_argument("--input", choices=tuple(INPUTS), default="rgb",
                       help="what the network sees: the image, oriented gradients of it (shared/structure.py), or both")
    group.add_argument("--init", default="imagenet",
                       help="the backbone's weights: imagenet, none, the folder of a finished run, the file of a state "
                            f"dict, or what a package holds ({', '.join(PACKAGES)}: docs/pretrained.md)")
    group.add_argument("--specify_num", type=int, choices=range(6), default=0,
                       help="how many of the stages exist once for each modality")
    group.add_argument("--stages", type=int, choices=range(1, 6), default=5,
                       help="how many of the five stages there are: fewer see less far, and keep a finer grid")
    group.add_argument("--pooling", choices=POOLINGS, default="max",
                       help="of the last stage's maps: max or average of the whole image; averages in a 3 x 3 grid "
                            "and the max; or none, and an embedding of each cell by itself")
    group.add_argument("--layer4_stride", type=int, choices=(1, 2), default=1,
                       help="of the last stage: 1 keeps the resolution, 2 is the network's own")


def add_recipe(parser):
    """The flags of any train.py that say how it learns. Returns their group."""
    group = parser.add_argument_group("recipe")
    group.add_argument("--recipe", choices=("author", "cpu"), default="author",
                       help=f"the defaults of all other flags. author: as they stand here. cpu: "
                            f"{as_flags(parser.cpu)}")
    group.add_argument("--batch_size", type=positive, default=24, help="pairs in a batch")
    group.add_argument("--epochs", type=positive, default=60)
    group.add_argument("--lr", type=not_negative, default=0.0025, help="of the backbone")
    group.add_argument("--seed", type=not_negative_integer, default=0)
    return group


def add_run(parser):
    """The flags of any train.py that say where the run lies. Returns their group."""
    group = parser.add_argument_group("run")
    group.add_argument("--result_path",
                       help="the run's folder (default: results/<data set>/<script folder>/seed<seed>)")
    group.add_argument("--fresh", action="store_true", help="start over where the folder holds a run")
    return group


def adaptation(description, cpu=()):
    """The parser of a train.py that learns from pairs of one region and from another region's images without pairs.

    Its network and recipe are those of code_Con/train.py.
    """
    parser = training(description, cpu={**CONTRASTIVE_CPU, **dict(cpu)})
    parser.add_argument("--start", metavar="RUN",
                        help="begin with the whole network of a finished run, its embedding, too")
    parser.set_defaults(**CONTRASTIVE_DEFAULTS)
    return parser


def add_part(group):
    """The flag that says how much of an image a step sees: what shared/views.py cuts."""
    group.add_argument("--part", type=positive, metavar="PX",
                       help="train on a square part of each image, so large, at a random place (default: all of it); "
                            "for --pooling cells, which do not know the image's size")


def add_pseudo_modal(parser):
    """The flags of auxiliary training; with them, --recipe cpu takes PSEUDO_MODAL_RATES."""
    parser.pseudo_modal = ("channel_exchange", "filter", "generated")
    group = parser.add_argument_group("pseudo-modal images")
    group.add_argument("--channel_exchange", action="store_true", help="by channel exchange")
    group.add_argument("--filter", choices=tuple(FILTERS), help="by a filter; with both, filter then exchange")
    group.add_argument("--guided_filter", action="store_const", dest="filter", const="guided",
                       help="the author's: --filter guided; with pseudo-modal images --recipe cpu takes "
                            + as_flags(PSEUDO_MODAL_RATES))
    group.add_argument("--generated", metavar="FOLDER",
                       help="of what a generator drew of each place (code_HHL/generate.py, code_Diffusion/generate.py) "
                            "instead of the true images; filter and exchange, where asked for, come after")


def testing(description):
    """The parser of a test.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run, or a packed one (tools/pack.py)")
    parser.add_argument("--data_path", help="another data set than the run's own")
    add_reading(parser)
    add_tta(parser)
    parser.add_argument("--result_path", type=Path,
                        help="write the figures there, as a row of the table (default: test.json in the run's folder, "
                             "of a packed one in results/NAME)")
    parser.add_argument("--save_embeddings", action="store_true",
                        help="write the embeddings to the run's folder, as .npy")
    add_device(parser)
    add_compile(parser)
    add_store(parser)
    return parser


def generating(description):
    """The parser of a generate.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run that trained a generator")
    parser.add_argument("--result_path", required=True, type=Path, help="a folder for the images")
    parser.add_argument("--data_path", help="another data set than the run's own")
    add_reading(parser)
    add_device(parser)
    return parser


def add_tta(group):
    """The flag that says as what an image is embedded."""
    group.add_argument("--tta", choices=tuple(VIEWS), default="none",
                       help="embed each image as several views: joined (flip, the eight symmetries) or averaged "
                            "(pseudo-modal images)")


def add_device(group):
    """What every script that embeds images takes."""
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:1 ...")
    group.add_argument("--amp", choices=AMPS, default="auto",
                       help="mixed precision; auto takes what the device computes natively")
    group.add_argument("--workers", type=positive, default=2, help="threads that decode images")


def add_compile(group):
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the network: slow to begin, faster after")


def add_store(group):
    group.add_argument("--store", choices=STORES, default="auto",
                       help="decoded images in memory, or on disk beside the data set; auto: in memory where they fit")


def as_flags(settings):
    """{"lr": 0.1} -> "--lr 0.1"."""
    return " ".join(f"--{name} {value}" for name, value in settings.items())


# Types of flags: what argparse calls with the text, and whose ArgumentTypeError it prints.

def architecture(text):
    """A network that shared/backbones.py has."""
    try:
        check_arch(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error))
    return text


def positive(text):
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative_integer(text):
    """A whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def not_negative(text):
    """A number from 0."""
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def above_zero(text):
    """A number above 0."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text):
    """A number from 0, below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def bands(text):
    """One or three whole numbers from 1, as "4,3,2"."""
    numbers = [positive(part) for part in text.split(",")]
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text} names {len(numbers)} bands, not one or three")
    return numbers
