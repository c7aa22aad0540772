"""How sure a figure of a table is: intervals of means over queries, and paired tests, that know tiles.

The queries of a tile show neighbouring ground and are right or wrong together. Where tiles are known, they are what is
drawn: the 524 queries of 21 tiles are nearer to 21 observations than to 524.
"""
import numpy as np
from scipy.stats import false_discovery_control, norm, t

RESAMPLES, AT_ONCE = 10_000, 500


def bootstrap_intervals(values, tiles=None, level=0.95, seed=0):
    """Intervals of means over queries, by a bootstrap that draws tiles.

    values: (N, K), one column for each mean; all columns are resampled alike. tiles: N names, of queries that are
    drawn together; each query by itself without them. Returns (2, K): lower and upper ends.
    Source: the cluster (pairs) bootstrap of Cameron, Gelbach and Miller, "Bootstrap-Based Improvements for Inference
    with Clustered Errors", 2008; with few tiles it is too narrow, so the percentiles are those of the expanded interval
    of Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician, 2015.
    """
    sums, sizes = _sums_of_tiles(values, tiles)
    count = len(sums)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // AT_ONCE):
        times_drawn = generator.multinomial(count, np.full(count, 1 / count), AT_ONCE)
        means.append(times_drawn @ sums / (times_drawn @ sizes)[:, None])
    tail = (1 - level) / 2
    if count > 1:
        tail = norm.cdf(np.sqrt(count / (count - 1)) * t.ppf(tail, count - 1))
    return np.percentile(np.concatenate(means), [100 * tail, 100 * (1 - tail)], axis=0)


def sign_flip_p(differences, tiles=None, seed=0):
    """Two-sided p values of paired differences, by a randomisation test.

    differences: (N, K), one column for each comparison. tiles: as above. Returns (K).
    Where two rows are alike, the sign of a tile's differences (of a query's, where tiles are not known) is a coin's: p
    is the share of random signs whose sum is as far from 0, the one observed counted among them.
    Source: Smucker et al., "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation", CIKM
    2007, section 3.
    """
    sums, _ = _sums_of_tiles(differences, tiles)
    generator = np.random.default_rng(seed)
    observed = np.abs(sums.sum(0))
    as_far = np.ones(sums.shape[1])
    for _ in range(RESAMPLES // AT_ONCE):
        signs = generator.choice([-1.0, 1.0], (AT_ONCE, len(sums)))
        as_far += (np.abs(signs @ sums) >= observed - 1e-9).sum(0)
    return as_far / (RESAMPLES + 1)


def compare_rows(values, tiles=None):
    """Every pair of rows over the same queries.

    values: (N, R), a row's top-1 (0 to 1, mean of its seeds) at each query. tiles: as above.
    Returns difference (R, R), row less column, and adjusted p (R, R), NaN on the diagonal, by Benjamini and Hochberg's
    procedure over all pairs.
    """
    rows = values.shape[1]
    first, second = np.triu_indices(rows, 1)
    p = np.full((rows, rows), np.nan)
    if rows > 1:
        p[first, second] = false_discovery_control(sign_flip_p(values[:, first] - values[:, second], tiles))
        p[second, first] = p[first, second]
    mean = values.mean(0)
    return mean[:, None] - mean[None], p


def _sums_of_tiles(values, tiles):
    """(T, K) sums of the values of each tile, and (T) how many queries it has."""
    if tiles is None:
        return values, np.ones(len(values))
    _, index = np.unique(tiles, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, index, values)
    return sums, sizes
