"""SAR queries cut from whole tiles, with their places."""
from dataclasses import dataclass

import numpy as np

from shared.mapping.turned import cut_turned

TRIES = 100                                             # positions drawn before a tile is said to have no room


@dataclass
class Query:
    """image: (S, S, 3) uint8. tile: its row in Tiles. x, y: its middle, in px of the tile. rotation: degrees clockwise.

    Positions and rotations as in shared/mapping/localization.py.
    """
    image: np.ndarray
    tile: int
    x: float
    y: float
    rotation: float


def draw_queries(tiles, side, within, count, seed):
    """`count` queries of each tile, anywhere in it, turned by up to `within` degrees (0: as the map lies).

    None shows what leave_out.csv leaves out. Tiles without room for a query of `side` px give none.
    """
    random = np.random.default_rng([seed, side, within])
    queries = []
    for tile in range(len(tiles)):
        queries += _draw_of_tile(tiles, tile, side, within, count, random)
    return queries


def _draw_of_tile(tiles, tile, side, within, count, random):
    height, width = tiles.sar[tile].shape[:2]
    queries = []
    for _ in range(TRIES * count):
        rotation = random.uniform(-within, within)
        angle = np.deg2rad(rotation)
        half = side / 2 * (abs(np.cos(angle)) + abs(np.sin(angle)))
        if min(height, width) < 2 * half or len(queries) == count:
            break
        left, top = (int(random.integers(0, int(size - 2 * half) + 1)) for size in (width, height))
        if is_hidden(tiles.hidden[tile], left, top, 2 * half):
            continue
        x, y = left + half, top + half
        queries.append(Query(cut_turned(tiles.sar[tile], x, y, side, rotation), tile, x, y, rotation))
    return queries


def is_hidden(hidden, left, top, side):
    """Whether a square of a tile shows anything of what is hidden, as Tiles has it, in px."""
    return any(top < bottom and left < right and top + side > upper and left + side > begin
               for upper, begin, bottom, right in hidden)
