"""Make aligned demo pairs: procedural scenes, seen once in optical and once in SAR. A check, not a benchmark.

    python data/demo/prepare.py                       192 training and 96 test places in data/demo
    python data/demo/prepare.py OUT --train 500 --test 100 --seed 1

A scene is a map of classes and heights. Optical: colour and texture by class and season, sun shadow. SAR (HH, VV, VH as
R, G, B): back-scatter by class and polarisation, layover, double bounce, radar shadow, multiplicative speckle, seen
from the left or from the right. What makes real pairs hard is there, too: four places each look alike but for trees
and a few buildings, and the season changes colours that the radar does not see. The same seed gives the same files.
"""
import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository's root, where shared/ is

from shared.plumbing.files import write_bytes, write_rows

SIZE, MARGIN = 200, 40                                  # px of a crop, and around it so that layover has a source
GRASS, SOIL, WATER, ROAD, BUILDING, TANK, TREE = range(7)

COLOUR = np.array([[98, 122, 68], [152, 128, 96], [38, 58, 78], [118, 116, 114], [150, 120, 105], [205, 205, 200],
                   [48, 78, 42]], np.float32)
TEXTURE = np.array([9, 8, 3, 5, 6, 4, 14], np.float32)  # standard deviation of the brightness, 0 to 255
# Back-scatter in dB, columns HH, VV, VH.
BACKSCATTER = np.array([[-12, -11, -17], [-11, -9, -20], [-23, -20, -30], [-18, -17, -27], [-9, -10, -18],
                        [-7, -8, -18], [-8, -9, -12]], np.float32)
DOUBLE_BOUNCE = np.array([8, 4, -6], np.float32)        # dB at the foot of a wall that faces the radar
DB_RANGE = (-28.0, 4.0)                                 # mapped to 0 to 255
LOOKS = 4
RADAR_COT = 1.0                                         # cotangent of the incidence angle, 45 degrees, from the left
SUN = (0.8, 0.6, 0.9)                                   # shadow direction (x, y) and tangent of the sun's elevation
LOOK_ALIKES = 4                                         # places with the same ground and most of the same buildings
# Grass, bare soil and trees in another season; the other classes look the same all year.
WINTER = {GRASS: [148, 132, 98], SOIL: [108, 96, 84], TREE: [98, 88, 76]}


def scene(layout, rng):
    """Draw a place: class (H, W) int, height (H, W) in px, roof colours (H, W, 3), all with the margin.

    layout: the generator of fields, water, roads and most buildings, alike for places that look alike. rng: of what is
    this place's own, trees and a few buildings.
    """
    side = SIZE + 2 * MARGIN
    classes = np.full((side, side), GRASS, np.int32)
    height = np.zeros((side, side), np.float32)
    tint = rng.normal(0, 6, (1, 1, 3)).astype(np.float32) * np.ones((side, side, 1), np.float32)

    def paint(value, shape_height=0.0, colour_std=0.0):
        left, top, width, depth = cv2.boundingRect(canvas)
        part = np.s_[top:top + depth, left:left + width]
        mask = canvas[part] > 0
        classes[part][mask] = value
        height[part][mask] = shape_height
        if colour_std:
            tint[part][mask] = rng.normal(0, colour_std, 3)

    # Fields: polygons of bare soil or grass between random cuts.
    for _ in range(layout.integers(2, 6)):
        canvas = np.zeros((side, side), np.uint8)
        corners = _rectangle(layout.uniform(0, side, 2), layout.uniform(50, 130, 2), layout.uniform(0, 180))
        cv2.fillConvexPoly(canvas, corners, 1)
        paint(int(layout.choice([GRASS, SOIL, SOIL])), colour_std=14)
    if layout.random() < 0.45:                           # a river or a canal
        canvas = np.zeros((side, side), np.uint8)
        bends = np.vstack([layout.uniform(0, side, 2) * [0, 1], layout.normal([side / 5, 0], [8, 30], (6, 2))])
        cv2.polylines(canvas, [np.int32(np.cumsum(bends, 0))], False, 1, int(layout.integers(8, 34)))
        paint(WATER, colour_std=6)
    angle = layout.uniform(0, 90)
    for _ in range(layout.integers(1, 4)):               # roads, more or less on one grid
        canvas = np.zeros((side, side), np.uint8)
        direction = np.deg2rad(angle + layout.choice([0, 90]) + layout.normal(0, 4))
        centre, along = layout.uniform(0, side, 2), 400 * np.array([np.cos(direction), np.sin(direction)])
        ends = np.int32(centre - along).tolist(), np.int32(centre + along).tolist()
        cv2.line(canvas, *ends, 1, int(layout.integers(4, 9)))
        paint(ROAD, colour_std=8)
    common, own = layout.integers(2, 20), rng.integers(1, 5)
    for source in [layout] * common + [rng] * own:       # buildings along the grid
        canvas = np.zeros((side, side), np.uint8)
        outline = _rectangle(source.uniform(0, side, 2), source.uniform(9, 36, 2), angle + source.normal(0, 3))
        cv2.fillConvexPoly(canvas, outline, 1)
        paint(BUILDING, source.uniform(4, 18), colour_std=14)
    if layout.random() < 0.3:                            # a tank farm
        corner, radius = layout.uniform(40, side - 120, 2), int(layout.integers(6, 13))
        for i in range(int(layout.integers(2, 9))):
            canvas = np.zeros((side, side), np.uint8)
            cv2.circle(canvas, np.int32(corner + 2.8 * radius * np.array([i % 3, i // 3])).tolist(), radius, 1, -1)
            paint(TANK, layout.uniform(6, 12), colour_std=10)
    for _ in range(rng.integers(5, 60)):                 # trees, alone and in rows
        canvas = np.zeros((side, side), np.uint8)
        cv2.circle(canvas, np.int32(rng.uniform(0, side, 2)).tolist(), int(rng.integers(2, 6)), 1, -1)
        canvas[height > 0] = 0
        paint(TREE, rng.uniform(3, 8), colour_std=6)
    return classes, height, tint


def render_optical(classes, height, tint, rng):
    """(S, S, 3) uint8 RGB."""
    season, colour = rng.random(), COLOUR.copy()         # 0: as in COLOUR, 1: WINTER
    for kind, winter in WINTER.items():
        colour[kind] += season * (np.float32(winter) - colour[kind])
    noise = rng.normal(0, 1, classes.shape).astype(np.float32)
    noise = 0.6 * noise + 0.4 * _standard(cv2.GaussianBlur(noise, (0, 0), 3))
    image = colour[classes] + tint + (TEXTURE[classes] * noise)[..., None]
    dx, dy, elevation = SUN
    shadow = np.zeros(classes.shape, bool)
    for distance in range(1, 24):                        # a pixel is dark when something towards the sun is high enough
        shift = np.float32([[1, 0, dx * distance], [0, 1, dy * distance]])
        towards_sun = cv2.warpAffine(height, shift, height.shape[::-1], flags=cv2.INTER_NEAREST)
        shadow |= towards_sun - elevation * distance > height
    image *= 1 - 0.3 * cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), 0.7)[..., None]
    image = cv2.GaussianBlur(image * rng.uniform(0.85, 1.15), (0, 0), 0.6)
    return _crop(image.clip(0, 255).astype(np.uint8))


def render_sar(classes, height, rng):
    """(S, S, 3) uint8, HH, VV, VH. The radar looks from the left, along the rows."""
    side = classes.shape[1]
    columns = np.arange(side, dtype=np.float32)
    power = 10 ** ((BACKSCATTER[classes] + rng.normal(0, 0.7, classes.shape).astype(np.float32)[..., None]) / 10)
    # Radar shadow: nothing nearer to the radar may stand above the ray that arrives.
    ray = height + columns * RADAR_COT
    blocked = np.zeros(classes.shape, bool)
    blocked[:, 1:] = np.maximum.accumulate(ray, 1)[:, :-1] > ray[:, 1:]
    power[blocked] = 0
    # A wall towards the radar: double bounce at its foot, and its face laid over what is in front.
    rise = np.diff(height, axis=1, prepend=height[:, :1])
    wall = (rise > 3) & ~blocked
    bounce = cv2.GaussianBlur(wall.astype(np.float32), (0, 0), 0.6)[..., None] * 10 ** (DOUBLE_BOUNCE / 10)
    rows = np.arange(side)[:, None] * side
    image = np.zeros((side * side, 3), np.float32)
    # Layover: a point of height h has the range of the ground h cot(incidence) nearer to the radar.
    target = (rows + np.rint(columns - height * RADAR_COT).clip(0, side - 1).astype(np.int64)).ravel()
    wall_rows, wall_columns = np.nonzero(wall)
    face = []
    for level in range(18):
        laid_over = (wall_columns - level * RADAR_COT).clip(0, side - 1).astype(np.int64)
        face.append((wall_rows * side + laid_over)[height[wall] > level])
    face_points = np.bincount(np.concatenate(face), minlength=side * side)
    for channel in range(3):
        image[:, channel] = np.bincount(target, power[..., channel].ravel(), side * side)
        image[:, channel] += face_points * 10 ** (BACKSCATTER[BUILDING, channel] / 10)
    image = image.reshape(side, side, 3) + bounce + 10 ** (-3.0)                 # the noise floor, -30 dB
    image *= rng.gamma(LOOKS, 1 / LOOKS, image.shape)                            # speckle of a multi-look intensity
    low, high = DB_RANGE
    decibel = 10 * np.log10(np.maximum(image, 1e-6))
    return _crop(((decibel - low) / (high - low) * 255).clip(0, 255).astype(np.uint8))


def make_pair(place, seed, out):
    """Render one place, (split, number), to OUT/split/{opt,sar}/NAME.png. Returns its row of pairs.csv."""
    split, number = place
    layout = np.random.default_rng([seed, split == "test", number // LOOK_ALIKES, 1])
    rng = np.random.default_rng([seed, split == "test", number])
    classes, height, tint = scene(layout, rng)
    opt = render_optical(classes, height, tint, rng)
    region = "left" if rng.random() < 0.5 else "right"   # from where the radar looks
    if region == "left":
        sar = render_sar(classes, height, rng)
    else:
        sar = render_sar(classes[:, ::-1], height[:, ::-1], rng)[:, ::-1]
    images = {"opt": opt, "sar": sar}
    for modality, image in images.items():
        file = out / split / modality / f"{number:04d}.png"
        write_bytes(file, cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return {"split": split, "id": f"{number:04d}", "region": region}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--train", type=int, default=192, help="training places")
    parser.add_argument("--test", type=int, default=96, help="test places")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main(args):
    places = [("train", i) for i in range(args.train)] + [("test", i) for i in range(args.test)]
    for split in ("train", "test"):
        for modality in ("opt", "sar"):
            (args.out / split / modality).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        made = pool.map(partial(make_pair, seed=args.seed, out=args.out), places, chunksize=8)
        rows = list(tqdm(made, total=len(places), desc="demo pairs", disable=None))
    # Written last: where it is, the set is whole.
    write_rows(args.out / "pairs.csv", ("split", "id", "region"), rows)
    print(f"{len(places)} pairs in {args.out}")


def _rectangle(centre, size, angle):
    return np.int32(cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, size)), float(angle))))


def _standard(noise):
    return noise / noise.std()


def _crop(image):
    return image[MARGIN:-MARGIN, MARGIN:-MARGIN]


if __name__ == "__main__":
    main(arguments())
