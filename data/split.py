"""Which places of a data set are for training and which for testing."""
import math
from collections import defaultdict

import numpy as np


def split_by_blocks(cells, test_places, block, seed=0):
    """Split grid cells so that no training cell touches a test cell.

    cells: (column, row) of each place on the grid of crops. Whole blocks of block x block cells, in an order drawn
    with the seed, are for testing until there are `test_places`. A cell within one cell of a test cell is in
    neither split: a gap as wide as a crop.
    Returns (train, test), two sorted lists of cells.
    """
    blocks = defaultdict(list)
    for column, row in sorted(cells):
        blocks[column // block, row // block].append((column, row))
    test = []
    for i in np.random.default_rng(seed).permutation(len(blocks)):
        if len(test) >= test_places:
            break
        test += list(blocks.values())[i]
    test = test[:test_places]
    near = {(column + i, row + j) for column, row in test for i in (-1, 0, 1) for j in (-1, 0, 1)}
    return sorted(set(cells) - near), sorted(test)


def split_by_tiles(regions, share, seed=0):
    """Split whole tiles, the same share of each region.

    regions: tile name -> region. share: of the tiles to test on, of each region as nearly as whole tiles allow (the
    largest remainders are rounded up), at least one tile in all.
    Returns the set of test tiles.
    """
    by_region = defaultdict(list)
    for tile, region in sorted(regions.items()):
        by_region[region].append(tile)
    count = {region: math.floor(share * len(tiles)) for region, tiles in by_region.items()}
    missing = max(1, round(share * len(regions))) - sum(count.values())
    remainder = sorted(by_region, key=lambda region: (count[region] - share * len(by_region[region]), region))
    for region in remainder[:max(0, missing)]:
        count[region] += 1
    rng = np.random.default_rng(seed)
    chosen = set()
    for region, tiles in sorted(by_region.items()):
        chosen.update(rng.permutation(tiles)[:count[region]].tolist())
    return chosen
