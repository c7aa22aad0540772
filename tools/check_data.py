"""Look at a data set before a day of training is spent on it.

    python tools/check_data.py DATA                       prints, and writes report.txt and contact.png to results/check_NAME/
    python tools/check_data.py DATA --leave_out           also writes DATA/leave_out.csv, which the dataset honours

Counts and values, missing partners, unreadable files, repetitions, alignment, and a contact sheet. Exits 1 where a test place
is in training, which would make every result untrue, else 0.

Repetitions: equal pixels are found by a hash. Near-identical images: the magnitudes of the low spatial frequencies hardly change
when an image is shifted, recompressed or made brighter, so the nearest neighbours by these are candidates. A candidate counts
when, at the best shift up to 16 px (of 200) and with the best gain and offset, what is left over is small in every part of the image.
Alignment: the correlation of the gradient magnitudes of optical and SAR at shifts up to 16 px. A pair is listed as fitting better
elsewhere when that peak is more than 2 px away, sharp (over 3 standard deviations of the other shifts), and high enough above no shift.
"""
import argparse
import hashlib
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared.dataset import find_data, resize
from shared.errors import InputError, run_script
from shared.files import write_rows, write_text
from shared.layouts import list_split, read_image, read_leave_out, read_pairs_csv

SPLITS, MODALITIES = ("train", "test"), ("opt", "sar")
SMALL = 100                                             # px at which repetitions are looked for
SHIFT = 16                                              # px of 200
EVIDENCE = 0.45                                         # gain in correlation x sharpness of the peak; chosen by eye on real and demo pairs
CHANCE = 12                                             # median distance of a best shift drawn at random within SHIFT
NEIGHBOURS = 5                                          # candidates of an image


class Report:
    """Lines that are printed, and kept for report.txt."""

    def __init__(self):
        self.lines = []

    def __call__(self, line=""):
        print(line, flush=True)
        self.lines.append(line)

    def listing(self, title, items, most=20):
        """A title with the number of items, and the first of them."""
        self(f"{title}: {len(items)}" if items else f"{title}: none")
        for item in items[:most]:
            self(f"  {item}")
        if len(items) > most:
            self(f"  ... and {len(items) - most} more")


def read_all(listing, split, workers):
    """Decode every image of a split once. Yields (modality, name, place, image or the sentence that says what is wrong)."""
    jobs = [("opt", name, name, image) for name, image in sorted(listing.opt.items())]
    jobs += [("sar", name, place, image) for name, (place, image) in sorted(listing.sar.items())]

    def read(job):
        modality, name, place, image = job
        try:
            return modality, name, place, read_image(image)
        except InputError as error:
            return modality, name, place, str(error)

    with ThreadPoolExecutor(workers) as pool:
        # In portions, so that no more than these are held decoded.
        for i in tqdm(range(0, len(jobs), 256), desc=split, disable=None):
            yield from pool.map(read, jobs[i:i + 256])


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def low_frequencies(small):
    """(N, SMALL, SMALL) uint8 -> (N, D) float32 unit vectors that hardly change under shift, brightness or recompression."""
    window = np.hanning(SMALL)[:, None] * np.hanning(SMALL)
    vectors = []
    for i in range(0, len(small), 512):
        images = small[i:i + 512].astype(np.float32)
        images -= images.mean((1, 2), keepdims=True)
        spectrum = np.abs(np.fft.rfft2(images * window))[:, list(range(-12, 13)), :13].reshape(len(images), -1)
        vectors.append(spectrum / np.maximum(np.linalg.norm(spectrum, axis=1, keepdims=True), 1e-6))
    vectors = np.concatenate(vectors).astype(np.float32)
    vectors -= vectors.mean(0)                          # what all images share says nothing
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def correlation(a, b):
    """Correlation of the detail of two small images at the best shift up to SHIFT px of 200: in [-1, 1]. Fast, and a hint only."""
    a, b = (cv2.GaussianBlur(x, (0, 0), 1.0) - cv2.GaussianBlur(x, (0, 0), 5.0) for x in (a.astype(np.float32), b.astype(np.float32)))
    margin = SHIFT * SMALL // 200
    return float(cv2.matchTemplate(b, a[margin:-margin, margin:-margin], cv2.TM_CCOEFF_NORMED).max())


def same_everywhere(a, b):
    """Whether b is a, shifted by up to SHIFT px of 200 and made brighter or darker: what is left over is small in every part.

    a, b: (H, H, 3) uint8. A correlation alone is not enough: two stretches of open water with a piece of coast in the corner
    correlate at 0.97. Here the rest, in any window of a tenth of the side, must be below half the contrast there (or 4 grey levels).
    """
    side = len(a)                                       # at full resolution, where a shift by whole pixels leaves no rest
    reach, window = side * SHIFT // 200, (side // 10, side // 10)
    a, b = (cv2.GaussianBlur(resize(grey(x), side).astype(np.float32), (0, 0), side / 200) for x in (a, b))
    detail = [x - cv2.GaussianBlur(x, (0, 0), side / 20) for x in (a, b)]
    fit = cv2.matchTemplate(detail[1], detail[0][reach:-reach, reach:-reach], cv2.TM_CCOEFF_NORMED)
    down, across = (int(k) - reach for k in np.unravel_index(fit.argmax(), fit.shape))
    a = a[max(0, -down):side - max(0, down), max(0, -across):side - max(0, across)]    # what both show
    b = b[max(0, down):side - max(0, -down), max(0, across):side - max(0, -across)]
    exposed = (a < 245) & (b < 245)                     # a brighter copy has lost what it saturates
    if exposed.mean() < 0.5 or a[exposed].std() == 0:
        return False
    gain, offset = np.polyfit(a[exposed], b[exposed], 1)
    rest = cv2.blur(np.where(exposed, b - gain * a - offset, 0) ** 2, window)
    contrast = cv2.blur(b ** 2, window) - cv2.blur(b, window) ** 2
    return bool((rest <= 0.25 * np.maximum(contrast, 8.0 ** 2)).mean() > 0.998)


def repetitions(keys, small, hashes, read):
    """Pairs of images that show the same: [(key, key, how)]. keys: (split, name). read: key -> the image."""
    found = {}
    by_hash = defaultdict(list)
    for i, digest in enumerate(hashes):
        by_hash[digest].append(i)
    for same in by_hash.values():
        found.update({(same[0], other): "identical" for other in same[1:]})
    vectors = low_frequencies(small)
    for i in range(0, len(vectors), 1024):
        similarity = vectors[i:i + 1024] @ vectors.T
        similarity[np.arange(len(similarity)), i + np.arange(len(similarity))] = -1
        count = min(NEIGHBOURS, len(vectors) - 1)
        candidates = np.argpartition(-similarity, count - 1, axis=1)[:, :count] if count else np.empty((0, 0), int)
        for row, columns in enumerate(candidates):
            for column in columns:
                pair = (min(i + row, int(column)), max(i + row, int(column)))
                if pair not in found and similarity[row, column] > 0.5:
                    fit = correlation(small[pair[0]], small[pair[1]])
                    if fit > 0.7 and same_everywhere(read(keys[pair[0]]), read(keys[pair[1]])):
                        found[pair] = f"near-identical (correlation {fit:.2f})"
    return [(keys[a], keys[b], how) for (a, b), how in sorted(found.items())]


def overlaps(places, rows, size):
    """Pairs of places whose crops overlap: [((split, name), (split, name), share of the crop)]."""
    known = [(key, float(rows[key]["x_m"]), float(rows[key]["y_m"]), float(rows[key].get("size_m") or size or 0))
             for key in places if rows.get(key, {}).get("x_m") not in (None, "")]
    if not known or not any(side for *_, side in known):
        return None
    cell = max(side for *_, side in known)
    grid, found = defaultdict(list), []
    for key, x, y, side in known:
        column, row = int(x // cell), int(y // cell)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                for other, ox, oy, other_side in grid[column + i, row + j]:
                    reach = (side + other_side) / 2
                    wide, high = reach - abs(x - ox), reach - abs(y - oy)
                    if min(wide, high) > 0.01 * side:   # coordinates are rounded
                        found.append((other, key, wide * high / side ** 2))
        grid[column, row].append((key, x, y, side))
    return found


def fit_of_pair(opt, sar):
    """How optical and SAR fit: (correlations at all shifts, (2 SHIFT + 1, 2 SHIFT + 1)), of (H, H, 3) uint8 images at 200 px."""
    edges = []
    for image, sigma in ((opt, 1.0), (sar, 1.5)):       # SAR needs more: speckle has strong gradients
        image = cv2.GaussianBlur(resize(grey(image), 200).astype(np.float32), (0, 0), sigma)
        edges.append(cv2.magnitude(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)))
    return cv2.matchTemplate(edges[1], edges[0][SHIFT:-SHIFT, SHIFT:-SHIFT], cv2.TM_CCOEFF_NORMED)


def alignment(listings, pairs, report):
    """Print how well a sample of pairs is aligned; returns the pairs that fit better elsewhere."""
    shifts, elsewhere = [], []
    for split, name in tqdm(pairs, desc="alignment", disable=None):
        place, image = listings[split].sar[name]
        fits = fit_of_pair(read_image(listings[split].opt[place]), read_image(image))
        row, column = np.unravel_index(fits.argmax(), fits.shape)
        shift, here = (column - SHIFT, row - SHIFT), fits[SHIFT - 1:SHIFT + 2, SHIFT - 1:SHIFT + 2].max()
        deviations = (fits.max() - fits.mean()) / max(fits.std(), 1e-6)
        shifts.append(shift)
        if 2 < max(map(abs, shift)) < SHIFT and deviations > 3 and deviations * (fits.max() - here) > EVIDENCE:
            elsewhere.append(f"{split} {name}: shift {shift[0]:+d}, {shift[1]:+d} px of 200, correlation {fits.max():.2f} there, {here:.2f} here")
    shifts = np.array(shifts)
    across, down = np.median(shifts, 0)
    length = np.abs(shifts).max(1)
    report(f"alignment of {len(pairs)} pairs, in px of 200: median best shift {across:+.0f} across, {down:+.0f} down; median distance {np.median(length):.0f} "
           f"(chance {CHANCE}), {np.median(np.abs(shifts[:, 0])):.0f} across and {np.median(np.abs(shifts[:, 1])):.0f} down; {100 * (length <= 2).mean():.0f}% within 2")
    report.listing("pairs that fit better elsewhere", elsewhere)
    return elsewhere


def contact_sheet(listings, pairs, file, columns=4, side=150):
    """One PNG of pairs, optical beside SAR, names below."""
    width, height, font = 2 * side + 16, side + 24, ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (split, name) in enumerate(pairs):
        place, image = listings[split].sar[name]
        x, y = i % columns * width + 8, i // columns * height + 2
        for k, one in enumerate((listings[split].opt[place], image)):
            sheet.paste(Image.fromarray(read_image(one)).resize((side, side), Image.Resampling.LANCZOS), (x + k * side, y))
        draw.text((x, y + side + 2), f"{split} {name}", fill="black", font=font)
    sheet.save(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the data set's folder, in any layout")
    parser.add_argument("--out", type=Path, help="default: results/check_NAME")
    parser.add_argument("--leave_out", action="store_true", help="write DATA/leave_out.csv: unreadable files, images without partner, repetitions")
    parser.add_argument("--size_m", type=float, help="side of a crop in metres, where pairs.csv has no column size_m")
    parser.add_argument("--sample", type=int, default=200, help="pairs whose alignment is measured")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    root, report = find_data(args.data), Report()
    out = args.out or Path("results") / f"check_{root.resolve().name}"
    out.mkdir(parents=True, exist_ok=True)
    report(f"{root}")

    # Every image once: counts and values, and what repetitions are found by ---------------------------------
    listings, unreadable, partnerless, problems, left_out = {}, [], [], [], []    # left_out: (split, name, reason)
    keys, small, hashes = ({m: [] for m in MODALITIES} for _ in range(3))
    readable, sizes_differ, rows = set(), [], {}
    for split in SPLITS:
        listing = listings[split] = list_split(root, split, problems)
        excluded = read_leave_out(root, split)
        listing.opt = {name: image for name, image in listing.opt.items() if name not in excluded}
        listing.sar = {name: (place, image) for name, (place, image) in listing.sar.items() if not {name, place} & excluded}
        if excluded:
            report(f"{split}: leave_out.csv leaves out {len(excluded)}")
        rows.update({(split, name): {"x_m": x, "y_m": y} for name, (x, y) in listing.positions.items()})
        rows.update({(split, name): row for name, row in read_pairs_csv(root, split).items()})
        seen = {place for place, _ in listing.sar.values()}
        for name, image in listing.opt.items():
            if name not in seen and split == "train":
                partnerless.append(f"{image}: there is no SAR image of this place")
                left_out.append((split, name, "no SAR image"))
        for name, (place, image) in listing.sar.items():
            if place not in listing.opt:
                partnerless.append(f"{image}: there is no optical image of this place")
                left_out.append((split, name, "no optical image"))

        figures = {modality: defaultdict(list) for modality in MODALITIES}
        place_size = {}
        for modality, name, place, image in read_all(listing, split, args.workers):
            if isinstance(image, str):
                unreadable.append(image)
                left_out.append((split, name, "unreadable"))
                continue
            readable.add((split, modality, name))
            figure, pixels = figures[modality], image.reshape(-1, 3)
            figure["size"].append(len(image))
            figure["channels"].append(1 if (pixels == pixels[:, :1]).all() else 3)
            figure["low"].append(pixels.min())
            figure["high"].append(pixels.max())
            figure["sum"].append(pixels.sum(0, dtype=np.float64))
            figure["squares"].append((pixels.astype(np.float32) ** 2).sum(0, dtype=np.float64))
            if place_size.setdefault(place, len(image)) != len(image):
                sizes_differ.append(f"{split} {name}: {len(image)} px, its optical image {place_size[place]}")
            keys[modality].append((split, name))
            small[modality].append(resize(grey(image), SMALL))
            hashes[modality].append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        report(f"{split}: {len(listing.opt)} places, {len(set(listing.opt) - seen)} of them without a SAR image"
               + (" (distractors)" if split == "test" else ""))
        for modality in MODALITIES:
            figure = figures[modality]
            if figure["size"]:
                count = sum(side ** 2 for side in figure["size"])
                mean = sum(figure["sum"]) / count
                std = np.sqrt(np.maximum(sum(figure["squares"]) / count - mean ** 2, 0))
                report(f"  {modality}: {len(figure['size'])} images, {min(figure['size'])} to {max(figure['size'])} px, "
                       f"channels {sorted(set(figure['channels']))}, values {min(figure['low'])} to {max(figure['high'])}, "
                       f"mean {np.round(mean, 1).tolist()}, standard deviation {np.round(std, 1).tolist()}")
    report.listing("folders or files amiss", problems)
    report.listing("missing partners", partnerless)
    report.listing("unreadable files", unreadable, most=len(unreadable))
    report.listing("pairs of different size", sizes_differ)

    # Repetitions --------------------------------------------------------------------------------------------
    leaks = []
    for modality in MODALITIES:
        read = lambda key: read_image(listings[key[0]].opt[key[1]] if modality == "opt" else listings[key[0]].sar[key[1]][1])
        found = repetitions(keys[modality], np.array(small[modality]), hashes[modality], read) if keys[modality] else []
        # Strips of one place are meant to be alike.
        place_of = {(split, name): name if modality == "opt" else listings[split].sar[name][0] for split, name in keys[modality]}
        found = [(a, b, how) for a, b, how in found if (a[0], place_of[a]) != (b[0], place_of[b])]
        for title, wanted in ((f"{modality}: the same image twice within a split", True), (f"{modality}: the same image in train and test", False)):
            report.listing(title, [f"{' '.join(a)} and {' '.join(b)}: {how}" for a, b, how in found if (a[0] == b[0]) == wanted])
        for a, b, how in found:
            if a[0] != b[0]:
                leaks.append((a, b))
            gone = a if (a[0], b[0]) == ("train", "test") else b      # the test split stays as it is
            left_out.append((*gone, f"{modality} as {' '.join(b if gone == a else a)}, {how}"))
    found = overlaps([(split, name) for split in SPLITS for name in listings[split].opt], rows, args.size_m)
    if found is None:
        report("overlapping crops: not known; pairs.csv needs x_m and y_m, and size_m (or give --size_m)")
    else:
        report.listing("crops that overlap within a split", [f"{' '.join(a)} and {' '.join(b)}: {100 * share:.0f}%" for a, b, share in found if a[0] == b[0]])
        across = [(a, b, share) for a, b, share in found if a[0] != b[0]]
        report.listing("crops that overlap between train and test", [f"{' '.join(a)} and {' '.join(b)}: {100 * share:.0f}%" for a, b, share in across])
        leaks += [(a, b) for a, b, _ in across]
        left_out += [(*(a if a[0] == "train" else b), "overlaps a test crop") for a, b, _ in across]

    # Alignment, and the contact sheet -------------------------------------------------------------------------
    whole = [(split, name) for split in SPLITS for name, (place, _) in sorted(listings[split].sar.items())
             if (split, "sar", name) in readable and (split, "opt", place) in readable]
    if whole:
        evenly = lambda count: [whole[i] for i in np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int))]
        alignment(listings, evenly(args.sample), report)
        contact_sheet(listings, evenly(24), out / "contact.png")
        report(f"contact sheet: {out / 'contact.png'}")
    if args.leave_out and left_out:
        first = {(split, name): reason for split, name, reason in reversed(left_out)}
        write_rows(root / "leave_out.csv", ("split", "id", "reason"), [{"split": s, "id": n, "reason": r} for (s, n), r in sorted(first.items())])
        report(f"left out from now on: {len(first)}, see {root / 'leave_out.csv'}")
    report(f"{len(leaks)} pairs of places are in train and test: results on this data set would be untrue" if leaks else "no test place was found in training")
    write_text(out / "report.txt", "\n".join(report.lines))
    sys.exit(1 if leaks else 0)


if __name__ == "__main__":
    run_script(main)
