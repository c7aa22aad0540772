r"""What filters do to SAR and optical images, to their similarity, and to retrieval.

    python tools/compare_filters.py --data_path data/S1S2align200
    python tools/compare_filters.py --data_path data/S1S2align200 --run results/S1S2align200/triplet/seed0 \
        --trained results/S1S2align200/filter-guided/seed0 --trained results/S1S2align200/filter-lee/seed0

For no filter and for each of shared/filters.py, on a sample of test pairs: structural similarity and gradient
correlation of optical and SAR (both filtered), edge preservation index, strength of edges left and equivalent number of
looks of SAR, milliseconds for an image; with --run also top-1 and mAP of that run when the whole test split is
filtered, and with --trained those of runs whose pseudo-modal images a filter made (--filter NAME of code_Aux and
code_Adv; mean of several of one filter), on unfiltered test images. Prints a table and writes filters.md, filters.csv
and a picture strip of one place, to --out (default: results/DATA/filters).
"""
import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ and tools/ are

from shared import options
from shared.dataset import load_splits, map_images, to_float
from shared.evaluate import embed, evaluate, search
from shared.filters import FILTERS
from shared.model import load_model
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_rows, write_text
from shared.plumbing.run_files import read_settings
from shared.reading.readers import readers_of, readers_of_run
from tools.figures import panels, save

COLUMNS = ("filter", "ssim", "gradient_correlation", "epi", "edges_left", "enl", "ms")
RETRIEVAL = ("top1", "mAP")                             # FC, in percent
TRAINED = ("trained_top1", "trained_mAP", "trained_runs")
DIGITS = {"ssim": 3, "gradient_correlation": 3, "epi": 3, "edges_left": 3}              # behind the point; else 2
FLAT = 16                                               # side of the windows in which looks are counted, in px


# The figures ---------------------------------------------------------------------------------------------------

def grey(images):
    """(B, 3, H, W) float -> (B, H, W) float32, ITU-R BT.601's luma, in 0 to 255."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).mul(255).numpy().astype(np.float32)


def similarity(opt, sar):
    """Mean structural similarity of grey images (B, H, W), in -1 to 1; OpenCV's.

    Source: Wang et al., "Image Quality Assessment", TIP 2004.
    """
    return float(np.mean([cv2.quality.QualitySSIM_compute(a, b)[0][0] for a, b in zip(opt, sar)]))


def gradients(image):
    return np.hypot(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1))


def correlation(a, b):
    """Pearson's, of two arrays; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 1e-9 else 0.0


def gradient_correlation(opt, sar):
    """Mean over the images (B, H, W) of the correlation of their gradient magnitudes (Sobel)."""
    return float(np.mean([correlation(gradients(a), gradients(b)) for a, b in zip(opt, sar)]))


def edge_preservation(before, after):
    """Mean correlation of the Laplacians before and after: 1 keeps every edge, weakened maybe.

    Source: Sattar et al., "Image Enhancement Based on a Nonlinear Multiscale Method", TIP 1997.
    """
    pairs = [[cv2.Laplacian(image, cv2.CV_32F) for image in pair] for pair in zip(before, after)]
    return float(np.mean([correlation(a, b) for a, b in pairs]))


def edges_left(before, after):
    """What is left of the mean gradient magnitude (Sobel) of images (B, H, W): 1 leaves edges as they were, 0 none."""
    return float(np.mean([gradients(b).mean() / max(gradients(a).mean(), 1e-9) for a, b in zip(before, after)]))


def flattest(images, side=FLAT):
    """(B, 2): upper left pixel of the window that varies least of each optical image (B, H, W), off the border."""
    corners = []
    for image in images:
        mean, square = (cv2.blur(x, (side, side), anchor=(0, 0))[:-side, :-side] for x in (image, image * image))
        corners.append(np.unravel_index(np.argmin(square - mean * mean), mean.shape))
    return np.array(corners)


def looks(sar, corners, side=FLAT):
    """Median equivalent number of looks, mean^2 / variance, in one window of each image (B, H, W)."""
    windows = np.stack([image[i:i + side, j:j + side] for image, (i, j) in zip(sar, corners)]).astype(np.float64)
    return float(np.median(windows.mean((1, 2)) ** 2 / np.maximum(windows.var((1, 2)), 1e-9)))


def compare(name, apply, opt, sar, corners):
    """One row of the table and the filtered images, optical and SAR. opt, sar: (B, 3, H, W) in [0, 1]."""
    start = time.perf_counter()
    new_sar = apply(sar, opt)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(sar)
    new_opt = apply(opt, sar)
    before, a, b = grey(sar), grey(new_opt), grey(new_sar)
    row = {"filter": name, "ssim": similarity(a, b), "gradient_correlation": gradient_correlation(a, b),
           "epi": edge_preservation(before, b), "edges_left": edges_left(before, b), "enl": looks(b, corners),
           "ms": milliseconds}
    return row, new_opt, new_sar


def filtered_retrieval(model, apply, pairs, args, device):
    """RETRIEVAL figures of a model when all images of the pairs are filtered."""
    mixed = autocast(device, args.amp)
    query = embed(model, map_images(apply, pairs.sar), "sar", device, mixed)
    gallery = embed(model, map_images(apply, pairs.opt), "opt", device, mixed)
    metrics = evaluate(search(query, gallery, pairs, device), pairs)["FC"]
    return {figure: metrics[figure] for figure in RETRIEVAL}


def trained_retrieval(folders):
    """Filter -> its columns of TRAINED, from the metrics of finished runs.

    Raises InputError where a run is not finished, was trained with no filter, or was not evaluated on the test split.
    """
    values = {}
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise InputError(f"--trained {folder} holds no finished run")
        name = read_settings(folder).get("filter")
        metrics = json.loads((folder / "metrics.json").read_text())
        if not name:
            raise InputError(f"--trained {folder} was trained without --filter: leave it out")
        if metrics["evaluated_on"] != "test":
            raise InputError(f"--trained {folder} was evaluated on held-out training tiles: leave it out")
        values.setdefault(name, []).append([metrics["FC"][figure] for figure in RETRIEVAL])
    return {name: dict(zip(TRAINED, (*np.mean(figures, 0).tolist(), len(figures))))
            for name, figures in values.items()}


def markdown(rows, columns):
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        cells = [format_cell(row.get(name, "-"), digits=DIGITS.get(name, 2)) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(value, digits):
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def write_strip(strip, file):
    """One place under every filter, optical above SAR. strip: [(name, optical, SAR)], images (3, H, W)."""
    figure, axes = panels(len(strip), 2, width=0.9, height=1.05)
    for i, (name, *images) in enumerate(strip):
        for axis, image, modality in zip(axes[i::len(strip)], images, ("optical", "SAR")):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[], ylabel=modality if i == 0 else "")
        axes[i].set_title(name, fontsize=5)
    save(figure, file)


def note(run, trained):
    """What the columns are, below the table."""
    text = ("ssim, gradient_correlation: of optical and SAR, both filtered. epi, edges_left, enl: of SAR, against the "
            "unfiltered image and in the flattest window of the optical one. ms: for one image, of the sample's size.")
    if run:
        text += (f" top1, mAP: of {run} when the test split is filtered; not of guided-by-other, whose guide is the "
                 "truth.")
    if trained:
        text += (" trained_top1, trained_mAP: of runs whose pseudo-modal images the filter made, test images "
                 "unfiltered.")
    return text


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--run", type=Path, help="a run whose retrieval is measured on filtered test images")
    parser.add_argument("--trained", type=Path, action="append", default=[],
                        help="a run trained with --filter; may be given several times")
    parser.add_argument("--sample", type=options.positive, default=100, help="pairs to measure the images on")
    parser.add_argument("--img_size", type=options.positive, default=200,
                        help="of the sample; retrieval takes the run's")
    parser.add_argument("--out", type=Path)
    options.add_reading(parser)
    options.add_device(parser)
    return parser.parse_args()


def main(args):
    device = choose_device(args.device)
    out = args.out or Path("results") / Path(args.data_path).name / "filters"
    trained = trained_retrieval(args.trained)
    if args.run:
        model, run_size = load_model(args.run, device)
        of_run = readers_of_run(args.run, args, is_own_data=False)
        run_pairs, = load_splits(args.data_path, ("test",), run_size, args.workers, readers=of_run)
    pairs, = load_splits(args.data_path, ("test",), args.img_size, args.workers, readers=readers_of(args))

    sample = torch.randperm(len(pairs.sar), generator=torch.Generator().manual_seed(0))[:args.sample]
    cpu = torch.device("cpu")
    opt, sar = to_float(pairs.opt[pairs.sar_place[sample]], cpu), to_float(pairs.sar[sample], cpu)
    corners = flattest(grey(opt))
    rows, strip = [], []
    for name, apply in FILTERS.items():
        row, new_opt, new_sar = compare(name, apply, opt, sar, corners)
        if args.run and not apply.needs_other:                        # the other image is the truth: a query has none
            row.update(filtered_retrieval(model, apply, run_pairs, args, device))
        row.update(trained.get(name, {}))
        rows.append(row)
        strip.append((name, new_opt[0], new_sar[0]))
        figures = [f"{key} {value:.3f}" if isinstance(value, float) else f"{value}:" for key, value in row.items()]
        print(" ".join(figures), flush=True)

    out.mkdir(parents=True, exist_ok=True)
    write_strip(strip, out / "filters")
    columns = [name for name in (*COLUMNS, *RETRIEVAL, *TRAINED) if any(name in row for row in rows)]
    write_rows(out / "filters.csv", columns, rows)
    write_text(out / "filters.md", markdown(rows, columns) + "\n\n" + note(args.run, trained))
    print(f"{out / 'filters.md'}, {out / 'filters.csv'}, {out / 'filters.png'}")


if __name__ == "__main__":
    run_script(main, arguments)
