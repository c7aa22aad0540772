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
from dataclasses import dataclass, field
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


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def low_frequencies(small):
    """(N, SMALL, SMALL) uint8 -> (N, D) float32 unit vectors.

    They hardly change under shift, brightness or recompression.
    """
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
    """What correlation() takes of a small image."""
    small = small.astype(np.float32)
    return cv2.GaussianBlur(small, (0, 0), 1.0) - cv2.GaussianBlur(small, (0, 0), 5.0)


def correlation(a, b):
    """Correlation of the detail of two small images at the best shift up to SHIFT px of 200, in [-1, 1].

    Fast, and a hint only.
    """
    margin = SHIFT * SMALL // 200
    return float(cv2.matchTemplate(b, a[margin:-margin, margin:-margin], cv2.TM_CCOEFF_NORMED).max())


def look_closely(image, side):
    """What same_everywhere() takes of an image (H, H, 3) uint8, float32 (side, side) both: its grey and its detail."""
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


def alike(vectors):
    """Pairs of rows, [[i, j]], i < j, of which one is among the nearest of the other. vectors: (N, D), of length 1."""
    pairs = []
    for i in range(0, len(vectors), 1024):
        similarity = vectors[i:i + 1024] @ vectors.T
        themselves = np.arange(len(similarity))
        similarity[themselves, i + themselves] = -1
        count = min(NEIGHBOURS, len(vectors) - 1)
        nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        rows, ranks = np.nonzero(np.take_along_axis(similarity, nearest, 1) > 0.5)
        pairs.append(np.sort(np.stack([i + rows, nearest[rows, ranks]], 1), 1))
    return np.unique(np.concatenate(pairs), axis=0).tolist()


def repetitions(keys, small, hashes, read):
    """Pairs of images that show the same: [(key, key, how)]. keys: (split, name). read: key -> the image."""
    pairs = {}
    by_hash = defaultdict(list)
    for i, digest in enumerate(hashes):
        by_hash[digest].append(i)
    for same in by_hash.values():
        pairs.update({(same[0], other): "identical" for other in same[1:]})
    detail = lru_cache(1024)(lambda i: detail_of(small[i]))
    image = lru_cache(8)(lambda i: read(keys[i]))
    closely = lru_cache(8)(lambda i, side: look_closely(image(i), side))
    for a, b in alike(low_frequencies(small)):
        if (a, b) in pairs:
            continue
        fit = correlation(detail(a), detail(b))
        side = len(image(a)) if fit > 0.7 else 0
        if side and same_everywhere(*closely(a, side), *closely(b, side)):
            pairs[a, b] = f"near-identical (correlation {fit:.2f})"
    return [(keys[a], keys[b], how) for (a, b), how in sorted(pairs.items())]


def overlaps(places, rows, size):
    """Pairs of places whose crops overlap: [((split, name), (split, name), share of the crop)].

    places: (split, name). rows: of pairs.csv. size: side of a crop in metres where a row has none. None where neither
    positions nor sizes are known.
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
                pairs.append((other, key, wide * high / side ** 2))
        grid[column, row].append((key, x, y, side))
    return pairs


def fit_of_pair(opt, sar):
    """How optical and SAR images, (H, H, 3) uint8, fit: correlations at all shifts, (2 SHIFT + 1, 2 SHIFT + 1)."""
    edges = []
    for image, sigma in ((opt, 1.0), (sar, 1.5)):       # SAR needs more: speckle has strong gradients
        image = cv2.GaussianBlur(resize(grey(image), 200).astype(np.float32), (0, 0), sigma)
        edges.append(cv2.magnitude(cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)))
    return cv2.matchTemplate(edges[1], edges[0][SHIFT:-SHIFT, SHIFT:-SHIFT], cv2.TM_CCOEFF_NORMED)


def alignment(listings, pairs, readers, report):
    """Print how well a sample of pairs is aligned, and the pairs that fit better elsewhere."""
    shifts, elsewhere = [], []
    for split, name in tqdm(pairs, desc="alignment", disable=None):
        place, image = listings[split].sar[name]
        fits = fit_of_pair(read_image(listings[split].opt[place], readers["opt"]), read_image(image, readers["sar"]))
        row, column = np.unravel_index(fits.argmax(), fits.shape)
        shift = column - SHIFT, row - SHIFT
        here = fits[SHIFT - 1:SHIFT + 2, SHIFT - 1:SHIFT + 2].max()
        deviations = (fits.max() - fits.mean()) / max(fits.std(), 1e-6)
        shifts.append(shift)
        if 2 < max(map(abs, shift)) < SHIFT and deviations > 3 and deviations * (fits.max() - here) > EVIDENCE:
            elsewhere.append(f"{split} {name}: shift {shift[0]:+d}, {shift[1]:+d} px of 200, "
                             f"correlation {fits.max():.2f} there, {here:.2f} here")
    shifts = np.array(shifts)
    across, down = np.median(shifts, 0)
    length = np.abs(shifts).max(1)
    far_across, far_down = np.median(np.abs(shifts), 0)
    report(f"alignment of {len(pairs)} pairs, in px of 200: median best shift {across:+.0f} across, {down:+.0f} down; "
           f"median distance {np.median(length):.0f} (chance {CHANCE}), {far_across:.0f} across and {far_down:.0f} "
           f"down; {100 * (length <= 2).mean():.0f}% within 2")
    report.listing("pairs that fit better elsewhere", elsewhere)


def contact_sheet(listings, pairs, readers, file, columns=4, side=150):
    """One PNG of pairs, optical beside SAR, names below."""
    width, height, font = 2 * side + 16, side + 24, ImageFont.load_default(size=13)
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (split, name) in enumerate(pairs):
        place, image = listings[split].sar[name]
        x, y = i % columns * width + 8, i // columns * height + 2
        for k, (modality, shown) in enumerate((("opt", listings[split].opt[place]), ("sar", image))):
            thumbnail = Image.fromarray(read_image(shown, readers[modality]))
            sheet.paste(thumbnail.resize((side, side), Image.Resampling.LANCZOS), (x + k * side, y))
        draw.text((x, y + side + 2), f"{split} {name}", fill="black", font=font)
    sheet.save(file, compress_level=1)


# What is looked at, one thing after the other -------------------------------------------------------------------------

@dataclass
class Seen:
    """What reading every image once has shown.

    readers: modality -> Reader. listings: split -> Listing, less what leave_out.csv leaves out. rows: (split, name) ->
    of pairs.csv. amiss: of folders and files, as sentences. leave_out: (split, name) -> the first reason to leave it
    out. keys, small, hashes: modality -> of each readable image its (split, name), its grey thumbnail, and a hash of
    its pixels.
    """
    readers: dict
    listings: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)
    amiss: list = field(default_factory=list)
    partnerless: list = field(default_factory=list)
    unreadable: list = field(default_factory=list)
    sizes_differ: list = field(default_factory=list)
    partly_shown: list = field(default_factory=list)
    leave_out: dict = field(default_factory=dict)
    keys: dict = field(default_factory=lambda: {modality: [] for modality in MODALITIES})
    small: dict = field(default_factory=lambda: {modality: [] for modality in MODALITIES})
    hashes: dict = field(default_factory=lambda: {modality: [] for modality in MODALITIES})

    def leave_out_for(self, split, name, reason):
        self.leave_out.setdefault((split, name), reason)


def list_splits(root, readers, report):
    """The listings of both splits, what pairs.csv says of their places, and which images lack a partner."""
    seen = Seen(readers)
    for split in SPLITS:
        excluded = read_leave_out(root, split)
        listing = list_split(root, split, seen.amiss)
        seen.amiss.extend(check_ids(root, split, listing, seen.amiss))
        listing = listing.without(excluded)
        if excluded:
            report(f"{split}: leave_out.csv leaves out {len(excluded)}")
        seen.listings[split] = listing
        seen.rows.update({(split, name): {"x_m": x, "y_m": y} for name, (x, y) in listing.positions.items()})
        seen.rows.update({(split, name): row for name, row in read_pairs_csv(root, split).items()})
        with_sar = {place for place, _ in listing.sar.values()}
        for name, image in listing.opt.items():
            if name not in with_sar and split == "train":
                seen.partnerless.append(f"{image}: there is no SAR image of this place")
                seen.leave_out_for(split, name, "no SAR image")
        for name, (place, image) in listing.sar.items():
            if place not in listing.opt:
                seen.partnerless.append(f"{image}: there is no optical image of this place")
                seen.leave_out_for(split, name, "no optical image")
    return seen


def images_of(listing, modality):
    """The images of a Listing."""
    return list(listing.opt.values()) if modality == "opt" else [image for _, image in listing.sar.values()]


def read_all(listing, split, readers, workers):
    """Decode every image of a split once.

    Yields (modality, name, place, image, or the InputError that it is none, words for what was taken, share shown).
    """
    jobs = [("opt", name, name, image) for name, image in sorted(listing.opt.items())]
    jobs += [("sar", name, place, image) for name, (place, image) in sorted(listing.sar.items())]

    def read(job):
        modality, name, place, image = job
        if isinstance(image, TensorRow):
            return modality, name, place, image.read(), "a tensor", 1.0
        try:
            bands, shown, words = readers[modality].read_bands(image)
        except InputError as error:
            return modality, name, place, error, "", 0.0
        pixels = readers[modality].to_bytes(bands, shown)
        if pixels.shape[0] != pixels.shape[1]:
            pixels = InputError(f"{image}: {pixels.shape[1]} x {pixels.shape[0]} px; crop it to a square")
        return modality, name, place, pixels, words, float(shown.mean())

    with ThreadPoolExecutor(workers) as pool:
        # In portions, so that no more than these are held decoded.
        for i in tqdm(range(0, len(jobs), 256), desc=split, disable=None):
            yield from pool.map(read, jobs[i:i + 256])


def look_at_images(seen, split, report, workers):
    """Read a split; print its counts and values, and keep of each image what repetitions are found by."""
    listing, values, size_of_place = seen.listings[split], {modality: Values() for modality in MODALITIES}, {}
    taken = {modality: Counter() for modality in MODALITIES}
    for modality, name, place, image, words, shown in read_all(listing, split, seen.readers, workers):
        taken[modality][words] += 1
        if shown < 1 and not isinstance(image, InputError):
            seen.partly_shown.append(f"{split} {modality} {name}: {100 * (1 - shown):.0f}% shows nothing")
        if isinstance(image, InputError):
            seen.unreadable.append(str(image))
            seen.leave_out_for(split, name, "unreadable")
            continue
        values[modality].add(image)
        if size_of_place.setdefault(place, len(image)) != len(image):
            seen.sizes_differ.append(f"{split} {name}: {len(image)} px, its optical image {size_of_place[place]}")
        seen.keys[modality].append((split, name))
        seen.small[modality].append(resize(grey(image), SMALL))
        seen.hashes[modality].append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
    without = len(listing.opt.keys() - {place for place, _ in listing.sar.values()})
    note = " (distractors)" if split == "test" else ""
    report(f"{split}: {len(listing.opt)} places, {without} of them without a SAR image{note}")
    for modality in MODALITIES:
        if values[modality].sides:
            report(f"  {modality}: {values[modality].describe()}")
            report.listing(f"  {modality}, read as", [f"{words}: {count} images" for words, count in
                                                      taken[modality].most_common() if words], most=5)


class Values:
    """Sizes and values of images, added up one after the other."""

    def __init__(self):
        self.sides, self.channels = [], set()
        self.low, self.high, self.sums, self.squares = 255, 0, np.zeros(3), np.zeros(3)

    def add(self, image):
        red, green, blue = cv2.split(image)
        self.sides.append(len(image))
        self.channels.add(1 if np.array_equal(red, green) and np.array_equal(green, blue) else 3)
        self.low, self.high = min(self.low, image.min()), max(self.high, image.max())
        self.sums += cv2.sumElems(image)[:3]
        self.squares += cv2.sumElems(cv2.multiply(image, image, dtype=cv2.CV_32F))[:3]

    def describe(self):
        count = sum(side ** 2 for side in self.sides)
        mean = self.sums / count
        std = np.sqrt(np.maximum(self.squares / count - mean ** 2, 0))
        return (f"{len(self.sides)} images, {min(self.sides)} to {max(self.sides)} px, "
                f"channels {sorted(self.channels)}, values {self.low} to {self.high}, "
                f"mean {np.round(mean, 1).tolist()}, standard deviation {np.round(std, 1).tolist()}")


def look_for_repetitions(seen, modality, report):
    """Print which images of a modality show the same; returns the pairs of which one is in train and one in test."""
    keys, listings = seen.keys[modality], seen.listings
    if not keys:
        return []

    def image_of(key):
        split, name = key
        return listings[split].opt[name] if modality == "opt" else listings[split].sar[name][1]

    def place_of(key):
        split, name = key
        return split, name if modality == "opt" else listings[split].sar[name][0]

    pairs = repetitions(keys, np.array(seen.small[modality]), seen.hashes[modality],
                        lambda key: read_image(image_of(key), seen.readers[modality]))
    # Strips of one place are meant to be alike.
    pairs = [(a, b, how) for a, b, how in pairs if place_of(a) != place_of(b)]
    within = [f"{' '.join(a)} and {' '.join(b)}: {how}" for a, b, how in pairs if a[0] == b[0]]
    across = [f"{' '.join(a)} and {' '.join(b)}: {how}" for a, b, how in pairs if a[0] != b[0]]
    report.listing(f"{modality}: the same image twice within a split", within)
    report.listing(f"{modality}: the same image in train and test", across)
    for a, b, how in pairs:
        gone, kept = (a, b) if (a[0], b[0]) == ("train", "test") else (b, a)     # the test split stays as it is
        seen.leave_out_for(*gone, f"{modality} as {' '.join(kept)}, {how}")
    return [(a, b) for a, b, _ in pairs if a[0] != b[0]]


def look_for_overlaps(seen, size, report):
    """Print which crops overlap; returns the pairs of which one is in train and one in test."""
    places = [(split, name) for split in SPLITS for name in seen.listings[split].opt]
    pairs = overlaps(places, seen.rows, size)
    if pairs is None:
        report("overlapping crops: not known; pairs.csv needs x_m and y_m, and size_m (or give --size_m)")
        return []
    across = [(a, b, share) for a, b, share in pairs if a[0] != b[0]]
    for title, chosen in (("within a split", [pair for pair in pairs if pair[0][0] == pair[1][0]]),
                          ("between train and test", across)):
        lines = [f"{' '.join(a)} and {' '.join(b)}: {100 * share:.0f}%" for a, b, share in chosen]
        report.listing(f"crops that overlap {title}", lines)
    for a, b, _ in across:
        seen.leave_out_for(*(a if a[0] == "train" else b), "overlaps a test crop")
    return [(a, b) for a, b, _ in across]


def whole_pairs(seen):
    """The SAR images that can be read and whose place's optical image can, too: [(split, name)]."""
    readable = {(modality, *key) for modality in MODALITIES for key in seen.keys[modality]}
    return [(split, name) for split in SPLITS for name, (place, _) in sorted(seen.listings[split].sar.items())
            if ("sar", split, name) in readable and ("opt", split, place) in readable]


def write_leave_out(root, seen, report):
    """Add to DATA/leave_out.csv what is to be left out, behind what it leaves out already."""
    file = root / "leave_out.csv"
    rows = [{"split": split, "id": name, "reason": reason} for (split, name), reason in sorted(seen.leave_out.items())]
    before = [{**row, "reason": row.get("reason", "")} for row in read_rows(file)] if file.is_file() else []
    write_rows(file, ("split", "id", "reason"), before + rows)
    report(f"left out from now on: {len(rows)}, see {file}")


def verdict(seen, leaks):
    """The last line of the report."""
    if leaks:
        return f"{len(leaks)} pairs of places are in train and test: results on this data set would be untrue"
    empty = [split for split in SPLITS if split not in {split for keys in seen.keys.values() for split, _ in keys}]
    if empty:
        return f"whether test places are in training is not known: no image of {' and '.join(empty)} can be read"
    return "no test place was found in training"


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

    seen = list_splits(root, readers_of(args), report)
    for modality in MODALITIES:                         # numbers beyond bytes are stretched alike in both splits
        images = [image for listing in seen.listings.values() for image in images_of(listing, modality)]
        seen.readers[modality] = seen.readers[modality].measured_on(images)
    for split in SPLITS:
        look_at_images(seen, split, report, args.workers)
    if not any(seen.keys.values()):
        raise several(f"{root} holds no image that can be read: give a data set's folder",
                      [*seen.amiss, *seen.unreadable])
    report.listing("folders or files amiss", seen.amiss)
    report.listing("missing partners", seen.partnerless)
    report.listing("unreadable files", seen.unreadable, most=len(seen.unreadable))
    report.listing("pairs of different size", seen.sizes_differ)
    report.listing("images that are not shown whole", seen.partly_shown)

    leaks = [pair for modality in MODALITIES for pair in look_for_repetitions(seen, modality, report)]
    leaks += look_for_overlaps(seen, args.size_m, report)

    out = args.out or Path("results") / f"check_{root.resolve().name}"
    out.mkdir(parents=True, exist_ok=True)
    pairs = whole_pairs(seen)
    if pairs:
        alignment(seen.listings, evenly(pairs, args.sample), seen.readers, report)
        contact_sheet(seen.listings, evenly(pairs, 24), seen.readers, out / "contact.png")
        report(f"contact sheet: {out / 'contact.png'}")
    if args.leave_out and seen.leave_out:
        write_leave_out(root, seen, report)
    report(verdict(seen, leaks))
    write_text(out / "report.txt", "\n".join(report.lines))
    sys.exit(1 if leaks else 0)


if __name__ == "__main__":
    run_script(check, arguments)
