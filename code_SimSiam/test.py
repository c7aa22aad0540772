"""What a pretrained backbone knows, and where its contrastive crops would be cut.

    python code_SimSiam/test.py --run results/NAME

Prints whose nearest neighbour is the same place among the test places, nothing trained, and draws, in the run's folder,
pictures/boxes.png: what the network's heat puts boxes about, in optical and in SAR images.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from crops import boxes_of, look
from probe import probe
from shared import options
from shared.dataset import hold_out, load_splits, to_float
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_figure, write_text
from shared.plumbing.packed import outputs_of
from shared.plumbing.run_files import read_settings
from shared.reading.readers import readers_of_run

# Of the boxes that are drawn, with their colours.
THRESHOLDS = {0.05: "#0072B2", 0.1: "#E69F00", 0.2: "#D55E00", 0.3: "#CC79A7", 0.6: "#009E73"}
NAMES = {"opt": "optical", "sar": "SAR"}
AT_ONCE = 64                                            # images


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run")
    parser.add_argument("--data_path", help="another data set than the run's own")
    parser.add_argument("--validation", action="store_true",
                        help="the training tiles that --run held out instead of the test places: for making choices")
    parser.add_argument("--places", type=options.positive, default=6, help="how many are drawn")
    options.add_reading(parser)
    options.add_device(parser)
    options.add_store(parser)
    return parser.parse_args()


def test(args):
    settings = read_settings(args.run)
    if args.validation and not settings["validate"]:
        raise InputError(f"--validation: {args.run} was trained without --validate and held nothing out")
    device = choose_device(args.device)
    precision = autocast(device, args.amp)
    model, img_size = load_model(args.run, device)
    data_path, split = args.data_path or settings["data_path"], "train" if args.validation else "test"
    readers = readers_of_run(args.run, args, args.data_path is None)
    pairs, = load_splits(data_path, (split,), img_size, args.workers, args.store, readers)
    if args.validation:
        _, pairs = hold_out(pairs, settings["validate"], settings.get("other_half", False))

    model.eval()
    figures = probe(model, pairs, device, precision)
    print(f"{len(pairs)} places, chance {100 / len(pairs):.2f}%")
    shares = ", ".join(f"{name} {value:.2f}%" for name, value in figures.items())
    print(f"nearest neighbour is the same place: {shares}")
    folder = outputs_of(args.run)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "test.json", json.dumps({**figures, "data_path": str(data_path), "split": split}, indent=1))
    for modality, images in pairs.images.items():
        shares = areas_of_boxes(model, images, modality, device)
        text = ", ".join(f"k {threshold}: {100 * share:.0f}%" for threshold, share in zip(THRESHOLDS, shares))
        print(f"{NAMES[modality]}: boxes cover on average {text} of the image")
    draw_boxes(model, pairs, args.places, device, folder / "pictures/boxes.png")


@torch.no_grad()
def areas_of_boxes(model, images, modality, device):
    """For each of THRESHOLDS the mean area of the boxes, in [0, 1]. images: (N, S, S, 3) uint8 of `opt` or `sar`."""
    areas = []
    for portion in images.split(AT_ONCE):
        heat = look(model, **{modality: to_float(portion, device)})
        boxes = [boxes_of(heat, threshold) for threshold in THRESHOLDS]
        areas.append(torch.stack([(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in boxes], 1))
    return torch.cat(areas).mean(0).tolist()


@torch.no_grad()
def draw_boxes(model, pairs, count, device, file):
    """Optical images above, SAR below, each with its heat and the boxes at THRESHOLDS."""
    rows = torch.linspace(0, len(pairs) - 1, min(count, len(pairs))).long()
    figure = Figure(figsize=(1.6 * len(rows), 3.6), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    for line, (modality, images) in zip(axes, pairs.images.items()):
        heat = look(model, **{modality: to_float(images[rows], device)})
        size = heat.shape[-1]
        for k, axis in enumerate(line):
            axis.imshow(images[rows[k]].numpy())
            axis.imshow(heat[k].cpu(), cmap="inferno", alpha=0.35)
            for threshold, colour in THRESHOLDS.items():
                top, left, bottom, right = (boxes_of(heat[k:k + 1], threshold)[0] * size).tolist()
                axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, linewidth=1.5,
                                         edgecolor=colour, label=f"k {threshold}"))
            axis.set(xticks=(), yticks=())
    figure.legend(handles=axes[0, 0].patches, loc="outside lower center", ncols=len(THRESHOLDS), frameon=False)
    write_figure(file, figure)
    print(file)


if __name__ == "__main__":
    run_script(test, arguments)
