"""Where the parts of a located query lie, each by itself: a grid of local offsets, and the query warped by them."""
import csv
import io
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from shared.mapping.localization import vertex

WINDOW = 12                                             # cells a side of what is sought, where the query has so many
REACH = 3                                               # cells to each side up to which it is sought
SHIFTS = 4                                              # to a cell, at which the query is seen
LEAST_OF_A_QUERY = 12                                   # cells a side: of fewer the halves that are sought tell nothing
MOST_TIE_POINTS = 1024                                  # parts that overlap tell nothing more, and cost memory
LEAST_CONFIDENCE = 0.5
NEIGHBOURS, MOST_DEVIATION, NOISE_PX = 8, 3.0, 1.0      # of the test for outliers
SMOOTHING = 1e-3                                        # of the field, whose coordinates are sides of the query
STEP = 8                                                # px from a node of the field to the next, where it is warped by
TURNS = 5                                               # of the iteration that inverts the field
COLUMNS = ("mapX", "mapY", "sourceX", "sourceY", "enable", "dX", "dY", "residual")


@dataclass
class TiePoints:
    """N points of a query. places: (N, 2), x and y in px of the query. offsets: (N, 2) px of the map, from where the
    query's answer puts them to where they were found. confidence: (N) in [0, 1], of the offset among those within
    REACH. kept: (N) bool, neither unsure nor an outlier. residuals: (N, 2) px, of the offsets from the field."""
    places: np.ndarray
    offsets: np.ndarray
    confidence: np.ndarray
    kept: np.ndarray
    residuals: np.ndarray = None


def find_tie_points(search, answer, count, scale):
    """The TiePoints of some `count` parts of a query, in a grid, each sought near where its answer puts it.

    scale: the logits' factor on the scores of a query of part_side() px.
    """
    cell, step = search.cell, search.cell // SHIFTS
    shifts = [(across * step, down * step) for down in range(SHIFTS) for across in range(SHIFTS)]
    seen = [search.see([answer.rotation], shift=shift) for shift in shifts]
    window = part_side(search) // cell
    rows, columns = seen[0].size
    places = _grid(search.query.shape, count, window * cell)
    first = _turned(places - _middle(search.query.shape), answer.rotation) + seen[0].middle          # px of the view
    first = np.round(first / cell - window / 2).astype(int).clip(0, np.array([columns, rows]) - window)    # x, y
    # Where the answer puts the corner of each, in cells of its map, whole ones.
    corners = first * cell - np.array(seen[0].middle) + (answer.x, answer.y) - answer.around.origin
    start = np.floor(corners / cell).astype(int) - REACH
    size = 2 * REACH + 1
    on_map = _windows(torch.cat([answer.around.cells, answer.around.mask]), start, window + size)
    fine = np.full((len(places), SHIFTS * (size + 1), SHIFTS * (size + 1)), -1.0)
    for (across, down), one in zip(shifts, seen):
        parts = _windows(torch.cat([one.cells[0], one.mask[0]]), first, window)
        scores = _cosines(parts, on_map)                              # N x size + 1 x size + 1
        fine[:, SHIFTS - 1 - down // step::SHIFTS, SHIFTS - 1 - across // step::SHIFTS] = scores.cpu().numpy()
    begin = start * cell - corners - (SHIFTS - 1) * step              # the offset at the first of the finer scores
    offsets, confidence = np.zeros((len(places), 2)), np.zeros(len(places))
    for number, scores in enumerate(fine):
        row, column = np.unravel_index(scores.argmax(), scores.shape)
        if min(row, column) < 2 or max(row, column) >= len(scores) - 2:
            continue                                                  # beyond what was looked at
        part = [2 * vertex(scores[row, column - 2], scores[row, column], scores[row, column + 2]),
                2 * vertex(scores[row - 2, column], scores[row, column], scores[row + 2, column])]
        offsets[number] = begin[number] + (np.array([column, row]) + part) * step
        odds = np.exp(scale * (scores - scores.max()))
        near = np.s_[max(0, row - SHIFTS):row + SHIFTS + 1, max(0, column - SHIFTS):column + SHIFTS + 1]
        confidence[number] = odds[near].sum() / odds.sum()
    # What was looked for are the windows, which begin at whole cells.
    middles = (first + window / 2) * cell - np.array(seen[0].middle)
    places = _turned(middles, -answer.rotation) + _middle(search.query.shape)
    found = TiePoints(places, offsets, confidence, confidence >= LEAST_CONFIDENCE)
    found.kept &= ~outliers(found.places, found.offsets, found.kept)
    found.residuals = found.offsets - Field(search.query.shape, found)(found.places)
    return found


def part_side(search):
    """Px to the side of what is sought of a query."""
    return max(2, min(WINDOW, min(search.query.shape[:2]) // search.cell // 2)) * search.cell


def outliers(places, offsets, kept):
    """(N) bool: whether an offset deviates from its neighbours' median further than they do themselves.

    Source: Westerweel and Scarano, "Universal outlier detection for PIV data", Experiments in Fluids 2005.
    """
    flags = np.zeros(len(places), bool)
    rows = np.flatnonzero(kept)
    if len(rows) < 4:
        return flags
    _, nearest = cKDTree(places[rows]).query(places[rows], min(NEIGHBOURS + 1, len(rows)))
    for row, others in zip(rows, rows[nearest[:, 1:]]):
        # Less the slope of the field there: at its edge all neighbours lie to one side.
        plane = np.column_stack([np.ones(len(others)), places[others] - places[row]])
        level = np.median(offsets[others], axis=0)
        if len(others) >= 5:
            slope = np.linalg.lstsq(plane, np.clip(offsets[others], level - 4, level + 4), rcond=None)[0][1:]
            flat = offsets[others] - plane[:, 1:] @ slope
        else:
            flat = offsets[others]
        level = np.median(flat, axis=0)
        spread = np.median(np.abs(flat - level), axis=0) + NOISE_PX
        flags[row] = (np.abs(offsets[row] - level) / spread).max() > MOST_DEVIATION
    return flags


class Field:
    """The offsets of a query's pixels, smooth, by thin plates through the tie points that were kept; none without
    four of them."""

    def __init__(self, shape, points):
        self.side = max(shape[:2])
        self.plates = None
        if points.kept.sum() >= 4:
            self.plates = RBFInterpolator(points.places[points.kept] / self.side, points.offsets[points.kept],
                                          smoothing=SMOOTHING * points.kept.sum(), kernel="thin_plate_spline")

    def __call__(self, places):
        """(N, 2) px of the query -> (N, 2) px of the map."""
        return np.zeros((len(places), 2)) if self.plates is None else self.plates(places / self.side)

    def sources(self, shape, answer, left, top, side):
        """Which px of the query, (side, side, 2) float32, each pixel of a square of the map at (left, top) shows."""
        height, width = shape[:2]
        rows, columns = np.arange(0, height + STEP, STEP), np.arange(0, width + STEP, STEP)
        nodes = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2).astype(float)
        offsets = self(nodes).reshape(len(rows), len(columns), 2).astype(np.float32)
        down, across = np.mgrid[:side, :side] + 0.5
        there = np.stack([left + across, top + down], -1) - (answer.x, answer.y)
        at = here = _turned(there, -answer.rotation) + _middle(shape)
        for _ in range(TURNS):
            x, y = (at[..., i].astype(np.float32) / STEP for i in (0, 1))
            moved = cv2.remap(offsets, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            at = here - _turned(moved, -answer.rotation)
        return at.astype(np.float32)


def turned_to(places, shape, answer):
    """(N, 2) px of a query of `shape` -> (N, 2) px of the map, where its answer alone puts them."""
    return _turned(places - _middle(shape), answer.rotation) + (answer.x, answer.y)


def _middle(shape):
    return np.array([shape[1], shape[0]]) / 2


def _turned(vectors, rotation):
    """(..., 2) vectors turned by `rotation` degrees clockwise."""
    cos, sin = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    return vectors @ np.array([[cos, sin], [-sin, cos]])


def _grid(shape, count, side):
    """(N, 2) x and y in px: some `count` middles of windows of `side` px, evenly over an image."""
    height, width = shape[:2]
    down = max(1, round((count * height / width) ** 0.5))
    across = max(1, round(count / down))
    xs, ys = ((np.linspace(side / 2, size - side / 2, number) if number > 1 and size > side else np.array([size / 2]))
              for size, number in ((width, across), (height, down)))
    return np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2)


def _windows(cells, first, side):
    """(N, C, side, side) of cells (C, H, W) at (N, 2) x and y, zeros beyond the edges."""
    height, width = cells.shape[-2:]
    low, high = first.min(0).clip(max=0), first.max(0) + side
    left, top = -low
    padded = F.pad(cells, (left, max(0, high[0] - width), top, max(0, high[1] - height)))
    return torch.stack([padded[:, y + top:y + top + side, x + left:x + left + side] for x, y in first])


def _cosines(parts, on_map):
    """(N, d, d) cosines of (N, C + 1, k, k) with (N, C + 1, k + d - 1, k + d - 1); the last channel is the mask."""
    count = len(parts)
    mask, map_mask = parts[:, -1:], on_map[:, -1:]
    cells, map_cells = parts[:, :-1] * mask, on_map[:, :-1] * map_mask

    def sums(a, b):
        return F.conv2d(b.flatten(0, 1)[None], a, groups=count)[0]

    energy = sums(mask, map_cells.square().sum(1, keepdim=True))
    own = sums(cells.square().sum(1, keepdim=True), map_mask)
    both, whole = sums(mask, map_mask), mask.sum((2, 3))
    scores = sums(cells, map_cells) / (energy * own).clamp(min=1e-12).sqrt()
    return torch.where(both >= (0.5 * whole[:, :, None]).clamp(min=1), scores, -1.0)


# What is written ----------------------------------------------------------------------------------------------------

def points_text(rows, geo):
    """The tie points as QGIS's georeferencer reads them (.points): the map's CRS, places on it, px of the query's file,
    rows counted downwards by negative numbers, and what is left of the offset beside the smooth field, in px.

    rows: as rows_of_points gives them.
    """
    text = io.StringIO()
    text.write(f"#CRS: {geo.map_crs.to_wkt()}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = row["map_x"], row["map_y"], row["column"], -row["row"], int(row["kept"])
        writer.writerow([*values, *(round(float(part), 3) for part in row["residual"]),
                         round(float(np.hypot(*row["residual"])), 3)])
    return text.getvalue()


def table_text(rows):
    """The tie points as CSV: offsets in metres to the east and north, their confidence, and whether they are kept.

    rows: as rows_of_points gives them.
    """
    text = io.StringIO()
    columns = ("map_x", "map_y", "column", "row", "east_m", "north_m", "confidence", "kept")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rows_of_points(points, query, answer, geo):
    """Of each tie point {"map_x", "map_y": its place on the map, in the map's CRS, "column", "row": px of the query's
    file, "east_m", "north_m": metres of the offset, "confidence", "kept", "residual": (x, y) px}."""
    rigid = turned_to(points.places, query.pixels.shape, answer)
    rows = []
    for place, at, offset, confidence, kept, residual in zip(points.places, rigid, points.offsets, points.confidence,
                                                             points.kept, points.residuals):
        x, y = geo.to_map(*(at + offset))
        column, row = query.own_pixel(*place)
        rows.append({"map_x": round(x, 7), "map_y": round(y, 7), "column": round(column, 2), "row": round(row, 2),
                     "east_m": round(offset[0] * geo.metres, 2), "north_m": round(-offset[1] * geo.metres, 2),
                     "confidence": round(confidence, 3), "kept": int(kept), "residual": residual})
    return rows
