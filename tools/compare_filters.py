"""What filters do to SAR and optical images, to their similarity, and to retrieval.

    python tools/compare_filters.py --data_path data/S1S2align200
    python tools/compare_filters.py --data_path data/S1S2align200 --run results/S1S2align200/triplet/seed0 \\
        --trained results/S1S2align200/filter-guided/seed0 --trained results/S1S2align200/filter-lee/seed0

For each filter of shared/filters.py, on a sample of test pairs: structural similarity and gradient correlation of optical and SAR (both
filtered), edge preservation index, strength of edges left and equivalent number of looks of SAR, milliseconds for an image; with --run also top-1 and mAP of
that run when the whole test split is filtered, and with --trained those of runs whose pseudo-modal images a filter made (--filter NAME of
code_Aux and code_Adv; mean of several of one filter), on unfiltered test images. Prints a table and writes filters.md, filters.csv and a picture strip of one
place, to --out (default: results/DATA/filters).
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

from shared.dataset import load_splits, map_images, to_float
from shared.device import AMPS, autocast, choose_device
from shared.errors import InputError, run_script
from shared.evaluate import embed, evaluate
from shared.files import write_rows, write_text
from shared.filters import FILTERS
from shared.run import load_model
from tools.figures import panels, save

COLUMNS = ("filter", "ssim", "gradient_correlation", "epi", "edges_left", "enl", "ms")
RETRIEVAL = ("top1", "mAP")                             # FC, in percent
TRAINED = ("trained_top1", "trained_mAP", "trained_runs")
FLAT = 16                                               # side of the windows in which looks are counted, in px


# The figures ---------------------------------------------------------------------------------------------------

def grey(images):
    """(B, 3, H, W) float -> (B, H, W) float32, ITU-R BT.601's luma, in 0 to 255."""
    return (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).mul(255).numpy().astype(np.float32)


def similarity(opt, sar):
    """Mean structural similarity of grey images (B, H, W), in -1 to 1. Wang et al., "Image Quality Assessment", TIP 2004; OpenCV's."""
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
    """Mean correlation of the Laplacians before and after: 1 keeps every edge, weakened maybe. Sattar et al., "Image Enhancement Based on a Nonlinear Multiscale Method", TIP 1997."""
    return float(np.mean([correlation(cv2.Laplacian(a, cv2.CV_32F), cv2.Laplacian(b, cv2.CV_32F)) for a, b in zip(before, after)]))


def edges_left(before, after):
    """What is left of the mean gradient magnitude (Sobel) of images (B, H, W): 1 leaves edges as strong as they were, 0 none."""
    return float(np.mean([gradients(b).mean() / max(gradients(a).mean(), 1e-9) for a, b in zip(before, after)]))


def flattest(images, side=FLAT):
    """(B, 2): upper left pixel of the window of each optical image (B, H, W) that varies least, away from the border."""
    found = []
    for image in images:
        mean, square = (cv2.blur(x, (side, side), anchor=(0, 0))[:-side, :-side] for x in (image, image * image))
        found.append(np.unravel_index(np.argmin(square - mean * mean), mean.shape))
    return np.array(found)


def looks(sar, corners, side=FLAT):
    """Median equivalent number of looks, mean^2 / variance, in one window of each image (B, H, W)."""
    windows = np.stack([image[i:i + side, j:j + side] for image, (i, j) in zip(sar, corners)]).astype(np.float64)
    return float(np.median(windows.mean((1, 2)) ** 2 / np.maximum(windows.var((1, 2)), 1e-9)))


def compare(name, opt, sar, corners):
    """One row of the table and the filtered SAR images. opt, sar: (B, 3, H, W) in [0, 1]."""
    apply = FILTERS[name]
    start = time.perf_counter()
    new_sar = apply(sar, opt)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(sar)
    new_opt = apply(opt, sar)
    a, b = grey(new_opt), grey(new_sar)
    return {"filter": name, "ssim": similarity(a, b), "gradient_correlation": gradient_correlation(a, b),
            "epi": edge_preservation(grey(sar), b), "edges_left": edges_left(grey(sar), b), "enl": looks(b, corners), "ms": milliseconds}, new_opt, new_sar


def trained_retrieval(folders):
    """Filter -> its columns of TRAINED, from the metrics of finished runs. Raises InputError where a run is none, or was trained with no filter."""
    found = {}
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise InputError(f"--trained {folder} holds no finished run")
        name = json.loads((folder / "args.json").read_text()).get("filter")
        metrics = json.loads((folder / "metrics.json").read_text())
        if not name or metrics["evaluated_on"] != "test":
            raise InputError(f"--trained {folder} was {'trained without --filter' if not name else 'evaluated on held-out training tiles'}: leave it out")
        found.setdefault(name, []).append([metrics["FC"][figure] for figure in RETRIEVAL])
    return {name: dict(zip(TRAINED, (*np.mean(values, 0).tolist(), len(values)))) for name, values in found.items()}


def markdown(rows, columns):
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        lines.append("| " + " | ".join(format_cell(row.get(name, "-"), digits=3 if name in COLUMNS[1:5] else 2) for name in columns) + " |")
    return "\n".join(lines)


def format_cell(value, digits):
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--run", type=Path, help="a run whose retrieval is measured on filtered test images")
    parser.add_argument("--trained", type=Path, action="append", default=[], help="a run trained with --filter; may be given several times")
    parser.add_argument("--sample", type=int, default=100, help="pairs to measure the images on")
    parser.add_argument("--img_size", type=int, default=200, help="of the sample; retrieval takes the run's")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", choices=AMPS, default="auto")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    device = choose_device(args.device)
    out = args.out or Path("results") / Path(args.data_path).name / "filters"
    trained = trained_retrieval(args.trained)
    model, run_size = load_model(args.run, device) if args.run else (None, None)
    pairs, = load_splits(args.data_path, ("test",), args.img_size, args.workers)
    small, = load_splits(args.data_path, ("test",), run_size, args.workers) if args.run else (None,)

    sample = torch.randperm(len(pairs.sar), generator=torch.Generator().manual_seed(0))[:args.sample]
    opt, sar = (to_float(x, torch.device("cpu")) for x in (pairs.opt[pairs.sar_place[sample]], pairs.sar[sample]))
    corners = flattest(grey(opt))
    rows, strip = [], []
    for name in FILTERS:
        row, new_opt, new_sar = compare(name, opt, sar, corners)
        if args.run and name != "guided-by-other":                    # its guide is the truth, which a query does not have
            query, gallery = (embed(model, map_images(lambda x: FILTERS[name](x, None), images), modality, device, autocast(device, args.amp))
                              for images, modality in ((small.sar, "sar"), (small.opt, "opt")))
            metrics = evaluate(query, gallery, small, device)["FC"]
            row.update({figure: metrics[figure] for figure in RETRIEVAL})
        row.update(trained.get(name, {}))
        rows.append(row)
        strip.append((name, new_opt[0], new_sar[0]))
        print(" ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{value}:" for key, value in row.items()), flush=True)

    out.mkdir(parents=True, exist_ok=True)
    figure, axes = panels(len(strip), 2, width=0.9, height=1.05)
    for i, (name, *images) in enumerate(strip):
        for axis, image, modality in zip(axes[i::len(strip)], images, ("optical", "SAR")):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            axis.set(xticks=[], yticks=[], ylabel=modality if i == 0 else "")
        axes[i].set_title(name, fontsize=5)
    save(figure, out / "filters")
    columns = [name for name in (*COLUMNS, *RETRIEVAL, *TRAINED) if any(name in row for row in rows)]
    write_rows(out / "filters.csv", columns, rows)
    note = ("ssim, gradient_correlation: of optical and SAR, both filtered. epi, edges_left, enl: of SAR, against the unfiltered image and in the flattest window of the "
            "optical one. ms: for one image, of the sample's size." + (f" top1, mAP: of {args.run} when the test split is filtered; not of guided-by-other, whose guide is the truth." if args.run else "")
            + (" trained_top1, trained_mAP: of runs whose pseudo-modal images the filter made, test images unfiltered." if trained else ""))
    write_text(out / "filters.md", markdown(rows, columns) + "\n\n" + note)
    print(f"{out / 'filters.md'}, {out / 'filters.csv'}, {out / 'filters.png'}")


if __name__ == "__main__":
    run_script(main)
