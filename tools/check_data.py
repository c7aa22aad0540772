"""Look at a data set before a day of training is spent on it.

    python tools/check_data.py DATA                 prints, and writes report.txt and contact.png to results/check_NAME/
    python tools/check_data.py DATA --leave_out     also writes DATA/leave_out.csv, which the dataset honours

Counts and values, how files are read (docs/data.md) and what of them shows nothing, missing partners, unreadable files,
repetitions, alignment, and a contact sheet. --bands, --sar_bands and --scale as in every script. Exits 1 where a test
place is in training, which would make every result untrue, 2 where there is nothing to look at, else 0.

Repetitions: equal pixels are found by a hash. Near-identical images: the magnitudes of the low spatial frequencies
hardly change when an image is shifted, recompressed or made brighter, so the nearest neighbours by these are
candidates. A candidate counts when, at the best shift up to 16 px (of 200) and with the best gain and offset, what is
left over is small in every part of the image.
Alignment: the correlation of the gradient magnitudes of optical and SAR at shifts up to 16 px. A pair is listed as
fitting better elsewhere when that peak is more than 2 px away, sharp (over 3 standard deviations of the other shifts),
and high enough above no shift.
"""
import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.dataset import resize
from shared.plumbing.errors import InputError, run_script, several
from shared.plumbing.files import read_rows, write_rows, write_text
from shared.reading.layouts import (TensorRow, check_ids, find_data, list_split, read_image, read_leave_out,
                                    read_pairs_csv)
from shared.reading.readers import readers_of
from shared.reading.tones import evenly

SPLITS, MODALITIES = ("train", "test"), ("opt", "sar")
SMALL = 100                                             # px at which repetitions are looked for
SHIFT = 16                                              # px of 200
EVIDENCE = 0.45                                         # gain in correlation x sharpness of the peak; by eye, on pairs
CHANCE = 12                                             # median distance of a best shift drawn at random within SHIFT
NEIGHBOURS = 5                                          # candidates of an image


# Read: every image once -----------------------------------------------------------------------------------------------

@dataclass
class SeenImage:
    """What is kept of an image that was decoded.

    key: (split, name). place: (split, name of its place). file: a Path or a TensorRow. words: what was read of it.
    shown: the share of its pixels that show something. error: the InputError that it is none; such an image has none of
    what follows. side: px. channels: how many differ. sums, squares: of its values, by channel. small: a grey thumbnail
    of SMALL px. digest: a hash of its pixels.
    """
    modality: str
    key: tuple
    place: tuple
    file: object
    words: str
    shown: float
    error: InputError | None = None
    side: int = 0
    channels: int = 0
    low: int = 0
    high: int = 0
    sums: np.ndarray | None = None
    squares: np.ndarray | None = None
    small: np.ndarray | None = None
    digest: bytes = b""


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def figures_of(image):
    """What a SeenImage keeps of the pixels, (H, H, 3) uint8."""
    red, green, blue = cv2.split(image)
    is_grey = np.array_equal(red, green) and np.array_equal(green, blue)
    squares = cv2.sumElems(cv2.multiply(image, image, dtype=cv2.CV_32F))
    return {"side": len(image), "channels": 1 if is_grey else 3, "low": image.min(), "high": image.max(),
            "sums": np.array(cv2.sumElems(image)[:3]), "squares": np.array(squares[:3]),
            "small": resize(grey(image), SMALL), "digest": hashlib.blake2b(image.tobytes(), digest_size=16).digest()}


def list_splits(root, report):
    """split -> Listing, less what leave_out.csv leaves out; key -> what is known of a place, as in pairs.csv; and what
    is amiss with folders and files, as sentences."""
    listings, rows, amiss = {}, {}, []
    for split in SPLITS:
        left_out = read_leave_out(root, split)
        listing = list_split(root, split, amiss)
        amiss.extend(check_ids(root, split, listing, amiss))
        if left_out:
            report(f"{split}: leave_out.csv leaves out {len(left_out)}")
        listings[split] = listing.without(left_out)
        rows.update({(split, name): {"x_m": x, "y_m": y} for name, (x, y) in listing.positions.items()})
        rows.update({(split, name): row for name, row in read_pairs_csv(root, split).items()})
    return listings, rows, amiss


def readers_for(listings, readers):
    """modality -> Reader. Numbers beyond bytes are stretched alike in both splits."""
    opt = [file for listing in listings.values() for file in listing.opt.values()]
    sar = [file for listing in listings.values() for _, file in listing.sar.values()]
    return {"opt": readers["opt"].measured_on(opt), "sar": readers["sar"].measured_on(sar)}


def read_split(listing, split, readers, workers):
    """Decode every image of a split once: [SeenImage], optical before SAR, each by name."""
    jobs = [("opt", name, name, file) for name, file in sorted(listing.opt.items())]
    jobs += [("sar", name, place, file) for name, (place, file) in sorted(listing.sar.items())]

    def read(job):
        modality, name, place, file = job
        seen = modality, (split, name), (split, place), file
        if isinstance(file, TensorRow):
            return SeenImage(*seen, "a tensor", 1.0, **figures_of(file.read()))
        try:
            bands, shown, words = readers[modality].read_bands(file)
        except InputError as error:
            return SeenImage(*seen, "", 0.0, error)
        pixels = readers[modality].to_bytes(bands, shown)
        height, width = pixels.shape[:2]
        if height != width:
            return SeenImage(*seen, words, 0.0, InputError(f"{file}: {width} x {height} px; crop it to a square"))
        return SeenImage(*seen, words, float(shown.mean()), **figures_of(pixels))

    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(read, jobs), desc=split, total=len(jobs), disable=None))


# Look: what the images show -------------------------------------------------------------------------------------------

def without_partner(listings):
    """Training places without a SAR image, and SAR images without a place: [(key, file, the modality it lacks)]."""
    lonely = []
    for split, listing in listings.items():
        with_sar = {place for place, _ in listing.sar.values()}
        if split == "train":                            # of the test split they are distractors
            lonely += [((split, name), file, "SAR") for name, file in listing.opt.items() if name not in with_sar]
        lonely += [((split, name), file, "optical") for name, (place, file) in listing.sar.items()
                   if place not in listing.opt]
    return lonely


def describe(images):
    """Sizes and values of images, in words."""
    sides = [image.side for image in images]
    count = sum(side ** 2 for side in sides)
    mean = sum(image.sums for image in images) / count
    std = np.sqrt(np.maximum(sum(image.squares for image in images) / count - mean ** 2, 0))
    low, high = min(image.low for image in images), max(image.high for image in images)
    return (f"{len(images)} images, {min(sides)} to {max(sides)} px, "
            f"channels {sorted({image.channels for image in images})}, values {low} to {high}, "
            f"mean {np.round(mean, 1).tolist()}, standard deviation {np.round(std, 1).tolist()}")


def other_sizes(images):
    """The images that are not as large as the first one of their place, as lines."""
    side_of_place, lines = {}, []
    for image in images:
        side = side_of_place.setdefault(image.place, image.side)
        if image.side != side:
            lines.append(f"{' '.join(image.key)}: {image.side} px, its optical image {side}")
    return lines


def low_frequencies(small):
    """(N, SMALL, SMALL) uint8 -> (N, D) unit vectors that hardly change under shift, brightness or recompression."""
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


def detail_of(small):
    """What correlation takes of a small image."""
    small = small.astype(np.float32)
    return cv2.GaussianBlur(small, (0, 0), 1.0) - cv2.GaussianBlur(small, (0, 0), 5.0)


def correlation(a, b):
    """A fast hint: correlation, in [-1, 1], of two small images' detail at the best shift up to SHIFT px of 200."""
    margin = SHIFT * SMALL // 200
    return float(cv2.matchTemplate(b, a[margin:-margin, margin:-margin], cv2.TM_CCOEFF_NORMED).max())


def look_closely(image, side):
    """What same_everywhere takes of an image (H, H, 3) uint8, (side, side) float32 both: its grey and its detail."""
    smooth = cv2.GaussianBlur(resize(grey(image), side).astype(np.float32), (0, 0), side / 200)
    return smooth, smooth - cv2.GaussianBlur(smooth, (0, 0), side / 20)


def same_everywhere(a, detail_a, b, detail_b):
    """Whether b is a, shifted by up to SHIFT px of 200 and made brighter or darker.

    What is left over must be small in every part: a correlation alone is not enough, two stretches of open water with a
    piece of coast in the corner correlate at 0.97. So the rest, in any window of a tenth of the side, must be below
    half the contrast there (or 4 grey levels).
    """
    side = len(a)                                       # full resolution: a shift by whole pixels leaves no rest
    reach, window = side * SHIFT // 200, (side // 10, side // 10)
    fit = cv2.matchTemplate(detail_b, detail_a[reach:-reach, reach:-reach], cv2.TM_CCOEFF_NORMED)
    down, across = (int(k) - reach for k in np.unravel_index(fit.argmax(), fit.shape))
    a = a[max(0, -down):side - max(0, down), max(0, -across):side - max(0, across)]    # what both show
    b = b[max(0, down):side - max(0, -down), max(0, across):side - max(0, -across)]
    exposed = (a < 245) & (b < 245)                     # a brighter copy has lost what it saturates
    if exposed.mean() < 0.5 or a[exposed].std() == 0:
        return False
    (variance, covariance), _ = np.cov(a[exposed], b[exposed])
    gain = covariance / variance
    offset = b[exposed].mean() - gain * a[exposed].mean()
    rest = cv2.blur(np.where(exposed, b - gain * a - offset, 0) ** 2, window)
    contrast = cv2.blur(b ** 2, window) - cv2.blur(b, window) ** 2
    return bool((rest <= 0.25 * np.maximum(contrast, 8.0 ** 2)).mean() > 0.998)


def repetitions(images, reader):
    """Pairs of images of a modality that show the same, though not the same place: [(key, key, how)]."""
    pairs = {}
    by_hash = defaultdict(list)
    for i, image in enumerate(images):
        by_hash[image.digest].append(i)
    for same in by_hash.values():
        pairs.update({(same[0], other): "identical" for other in same[1:]})
    detail = lru_cache(1024)(lambda i: detail_of(images[i].small))
    closely = lru_cache(8)(lambda i, side: look_closely(read_image(images[i].file, reader), side))
    for a, b in candidates(low_frequencies(np.array([image.small for image in images]))):
        if (a, b) in pairs:
            continue
        fit, side = correlation(detail(a), detail(b)), images[a].side
        if fit > 0.7 and same_everywhere(*closely(a, side), *closely(b, side)):
            pairs[a, b] = f"near-identical (correlation {fit:.2f})"
    # Strips of one place are meant to be alike.
    return [(images[a].key, images[b].key, how) for (a, b), how in sorted(pairs.items())
            if images[a].place != images[b].place]


def candidates(vectors):
    """Rows a < b of unit vectors, (N, D), of which one is near the other and among its nearest: [[a, b]], in order."""
    count, pairs = min(NEIGHBOURS, len(vectors) - 1), []
    for i in range(0, len(vectors), 1024):
        similarity = vectors[i:i + 1024] @ vectors.T
        themselves = np.arange(len(similarity))
        similarity[themselves, i + themselves] = -1
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        rows, ranks = np.nonzero(np.take_along_axis(similarity, nearest, 1) > 0.5)
        pairs.append(np.sort(np.stack([i + rows, nearest[rows, ranks]], 1), 1))
    return np.unique(np.concatenate(pairs), axis=0).tolist()


def overlaps(places, rows, size):
    """Pairs of places whose crops overlap: [(key, key, percent of the crop)].

    places: keys. rows: of pairs.csv. size: side of a crop in metres where a row has none. None where neither positions
    nor sizes are known.
    """
    squares = []                                        # (place, x, y, side) of those that are known
    for key in places:
        row = rows.get(key, {})
        side = row.get("size_m") or size
        if "x_m" in row and "y_m" in row and side:
            squares.append((key, row["x_m"], row["y_m"], side))
    if not squares:
        return None
    cell = max(side for *_, side in squares)
    grid, pairs = defaultdict(list), []
    for key, x, y, side in squares:
        column, row = int(x // cell), int(y // cell)
        around = [(column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        for other, other_x, other_y, other_side in (square for place in around for square in grid[place]):
            reach = (side + other_side) / 2
            wide, high = reach - abs(x - other_x), reach - abs(y - other_y)
            if min(wide, high) > 0.01 * side:           # coordinates are rounded
                pairs.append((other, key, f"{100 * (wide * high / side ** 2):.0f}%"))
        grid[column, row].append((key, x, y, side))
    return pairs


def fit_of_pair(opt, sar):
    """How optical and SAR images, (H, H, 3) uint8, fit: correlations at all shifts, (2 SHIFT + 1, 2 SHIFT + 1)."""
    edges = []
    for image, sigma in ((opt, 1.0), (sar, 1.5)):       # SAR needs more: speckle has strong gradients
        image = cv2.GaussianBlur(resize(grey(image), 200).astype(np.float32), (0, 0), sigma)
        edges.append(cv2.magnitude(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)))
    return cv2.matchTemplate(edges[1], edges[0][SHIFT:-SHIFT, SHIFT:-SHIFT], cv2.TM_CCOEFF_NORMED)


def whole_pairs(images):
    """Of images that can be read, each SAR image with its place's optical image: [(optical, SAR)]."""
    optical = {image.key: image for image in images if image.modality == "opt"}
    return [(optical[image.place], image) for image in images if image.modality == "sar" and image.place in optical]


def alignment(pairs, readers):
    """How well pairs are aligned, as a line; and those that fit better elsewhere, as lines."""
    shifts, elsewhere = [], []
    for opt, sar in tqdm(pairs, desc="alignment", disable=None):
        fits = fit_of_pair(read_image(opt.file, readers["opt"]), read_image(sar.file, readers["sar"]))
        row, column = np.unravel_index(fits.argmax(), fits.shape)
        shift = column - SHIFT, row - SHIFT
        here = fits[SHIFT - 1:SHIFT + 2, SHIFT - 1:SHIFT + 2].max()
        deviations = (fits.max() - fits.mean()) / max(fits.std(), 1e-6)
        shifts.append(shift)
        if 2 < max(map(abs, shift)) < SHIFT and deviations > 3 and deviations * (fits.max() - here) > EVIDENCE:
            elsewhere.append(f"{' '.join(sar.key)}: shift {shift[0]:+d}, {shift[1]:+d} px of 200, "
                             f"correlation {fits.max():.2f} there, {here:.2f} here")
    across, down = np.median(shifts, 0)
    length = np.abs(shifts).max(1)
    far_across, far_down = np.median(np.abs(shifts), 0)
    line = (f"alignment of {len(pairs)} pairs, in px of 200: median best shift {across:+.0f} across, {down:+.0f} down; "
            f"median distance {np.median(length):.0f} (chance {CHANCE}), {far_across:.0f} across and {far_down:.0f} "
            f"down; {100 * (length <= 2).mean():.0f}% within 2")
    return line, elsewhere


# Judge: what that means for training ----------------------------------------------------------------------------------

def across_splits(pairs):
    """Those of pairs (key, key, how) of which one is in train, the first, and one in test."""
    return [pair for pair in pairs if pair[0][0] != pair[1][0]]


def reasons_to_leave_out(lonely, unreadable, repeated, overlapping):
    """{key: the first reason to leave it out}. The test split stays as it is where a training image can go.

    lonely: what without_partner() gives. repeated: modality -> pairs (key, key, how). overlapping: such pairs.
    """
    reasons = [(key, f"no {modality} image") for key, _, modality in lonely]
    reasons += [(image.key, "unreadable") for image in unreadable]
    for modality, pairs in repeated.items():
        for a, b, how in pairs:
            gone, kept = (a, b) if a[0] != b[0] else (b, a)
            reasons.append((gone, f"{modality} as {' '.join(kept)}, {how}"))
    reasons += [(training, "overlaps a test crop") for training, _, _ in across_splits(overlapping)]
    return dict(reversed(reasons))


def verdict(leaks, readable):
    """The last line of the report. leaks: how many pairs are in train and test. readable: the images that are."""
    if leaks:
        return f"{leaks} pairs of places are in train and test: results on this data set would be untrue"
    empty = [split for split in SPLITS if split not in {image.key[0] for image in readable}]
    if empty:
        return f"whether test places are in training is not known: no image of {' and '.join(empty)} can be read"
    return "no test place was found in training"


# Print, and write -----------------------------------------------------------------------------------------------------

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


def print_split(report, split, listing, images):
    """Counts and values of a split. images: all of it, as seen."""
    without = len(listing.opt.keys() - {place for place, _ in listing.sar.values()})
    note = " (distractors)" if split == "test" else ""
    report(f"{split}: {len(listing.opt)} places, {without} of them without a SAR image{note}")
    for modality in MODALITIES:
        of_modality = [image for image in images if image.modality == modality]
        readable = [image for image in of_modality if not image.error]
        if readable:
            report(f"  {modality}: {describe(readable)}")
            taken = Counter(image.words for image in of_modality if image.words)
            report.listing(f"  {modality}, read as",
                           [f"{words}: {count} images" for words, count in taken.most_common()], most=5)


def print_pairs(report, pairs, within, across):
    """Pairs (key, key, how) as two listings with these titles: those within a split, and those across the splits."""
    for title, is_across in ((within, False), (across, True)):
        report.listing(title, [f"{' '.join(a)} and {' '.join(b)}: {how}" for a, b, how in pairs
                               if (a[0] != b[0]) == is_across])


def contact_sheet(pairs, readers, file, columns=4, side=150):
    """One PNG of pairs, optical beside SAR, names below."""
    width, height, font = 2 * side + 16, side + 24, ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, pair in enumerate(pairs):
        x, y = i % columns * width + 8, i // columns * height + 2
        for k, image in enumerate(pair):
            thumbnail = Image.fromarray(read_image(image.file, readers[image.modality]))
            sheet.paste(thumbnail.resize((side, side), Image.Resampling.LANCZOS), (x + k * side, y))
        draw.text((x, y + side + 2), " ".join(pair[1].key), fill="black", font=font)
    sheet.save(file, compress_level=1)


def write_leave_out(file, reasons):
    """Add to DATA/leave_out.csv what is to be left out, behind what it leaves out already."""
    rows = [{"split": split, "id": name, "reason": reason} for (split, name), reason in sorted(reasons.items())]
    before = [{**row, "reason": row.get("reason", "")} for row in read_rows(file)] if file.is_file() else []
    write_rows(file, ("split", "id", "reason"), before + rows)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the data set's folder, in any layout")
    parser.add_argument("--out", type=Path, help="default: results/check_NAME")
    parser.add_argument("--leave_out", action="store_true",
                        help="write DATA/leave_out.csv: unreadable files, images without partner, repetitions")
    parser.add_argument("--size_m", type=options.above_zero,
                        help="side of a crop in metres, where pairs.csv has no column size_m")
    parser.add_argument("--sample", type=options.positive, default=200, help="pairs whose alignment is measured")
    parser.add_argument("--workers", type=options.positive, default=2)
    options.add_reading(parser)
    return parser.parse_args()


def check(args):
    root, report = find_data(args.data), Report()
    report(f"{root}")

    listings, rows, amiss = list_splits(root, report)
    readers, images = readers_for(listings, readers_of(args)), []
    for split, listing in listings.items():
        of_split = read_split(listing, split, readers, args.workers)
        print_split(report, split, listing, of_split)
        images += of_split
    readable = [image for image in images if not image.error]
    unreadable = [image for image in images if image.error]
    errors = [str(image.error) for image in unreadable]
    if not readable:
        raise several(f"{root} holds no image that can be read: give a data set's folder", [*amiss, *errors])

    lonely = without_partner(listings)
    report.listing("folders or files amiss", amiss)
    report.listing("missing partners", [f"{file}: there is no {lacking} image of this place"
                                        for _, file, lacking in lonely])
    report.listing("unreadable files", errors, most=len(errors))
    report.listing("pairs of different size", other_sizes(readable))
    report.listing("images that are not shown whole",
                   [f"{image.key[0]} {image.modality} {image.key[1]}: {100 * (1 - image.shown):.0f}% shows nothing"
                    for image in readable if image.shown < 1])

    repeated = {}
    for modality in MODALITIES:
        of_modality = [image for image in readable if image.modality == modality]
        if of_modality:
            repeated[modality] = repetitions(of_modality, readers[modality])
            print_pairs(report, repeated[modality], within=f"{modality}: the same image twice within a split",
                        across=f"{modality}: the same image in train and test")
    overlapping = overlaps([(split, name) for split in SPLITS for name in listings[split].opt], rows, args.size_m)
    if overlapping is None:
        report("overlapping crops: not known; pairs.csv needs x_m and y_m, and size_m (or give --size_m)")
        overlapping = []
    else:
        print_pairs(report, overlapping, within="crops that overlap within a split",
                    across="crops that overlap between train and test")

    out = args.out or Path("results") / f"check_{root.resolve().name}"
    out.mkdir(parents=True, exist_ok=True)
    pairs = whole_pairs(readable)
    if pairs:
        line, elsewhere = alignment(evenly(pairs, args.sample), readers)
        report(line)
        report.listing("pairs that fit better elsewhere", elsewhere)
        contact_sheet(evenly(pairs, 24), readers, out / "contact.png")
        report(f"contact sheet: {out / 'contact.png'}")
    reasons = reasons_to_leave_out(lonely, unreadable, repeated, overlapping)
    if args.leave_out and reasons:
        write_leave_out(root / "leave_out.csv", reasons)
        report(f"left out from now on: {len(reasons)}, see {root / 'leave_out.csv'}")
    leaks = [pair for found in (*repeated.values(), overlapping) for pair in across_splits(found)]
    report(verdict(len(leaks), readable))
    write_text(out / "report.txt", "\n".join(report.lines))
    sys.exit(1 if leaks else 0)


if __name__ == "__main__":
    run_script(check, arguments)
