"""Intervals and paired tests against small cases worked by hand, other libraries, and planted truths."""
import itertools

import numpy as np
import pytest
from scipy import stats

from tools.intervals import bootstrap_intervals, compare_rows, sign_flip_p


def test_intervals_are_scipys_bootstrap_and_hold_the_mean():
    rng = np.random.default_rng(1)
    values = (rng.random((300, 2)) < [0.3, 0.9]).astype(float)
    lower, upper = bootstrap_intervals(values)
    for k in range(2):
        theirs = stats.bootstrap((values[:, k],), np.mean, n_resamples=10_000, method="percentile").confidence_interval
        assert lower[k] == pytest.approx(theirs.low, abs=0.005) and upper[k] == pytest.approx(theirs.high, abs=0.005)
        assert lower[k] < values[:, k].mean() < upper[k]
    assert bootstrap_intervals(np.ones((50, 1))).ravel().tolist() == [1, 1]


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(2)
    values = (rng.random((200, 300)) < 0.6).astype(float)                   # 300 experiments of 200 queries
    lower, upper = bootstrap_intervals(values)
    assert 0.90 < ((lower <= 0.6) & (0.6 <= upper)).mean() < 0.99


def test_p_is_that_of_all_signs():
    differences = np.array(
        [[1, 0.5, -1], [1, -0.5, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, -1], [0, -1, 0], [1, 0, 0]]
    )
    signs = np.array(list(itertools.product([-1, 1], repeat=8)))
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(0)) - 1e-9).mean(0)
    assert exact[0] == 2 / 64 and exact[2] == 1
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.015)


def test_planted_differences_are_found_and_noise_is_not():
    rng = np.random.default_rng(3)
    base = rng.random(500) < 0.6
    better = base | (rng.random(500) < 0.15)                                # right where base is, and sometimes else
    shuffled = np.where(rng.random(500) < 0.2, rng.random(500) < 0.6, base)     # as good, at other queries
    difference, p = compare_rows(np.stack([base, better, shuffled], 1).astype(float))
    assert difference[1, 0] == pytest.approx(better.mean() - base.mean()) and difference[0, 1] == -difference[1, 0]
    assert p[1, 0] == p[0, 1] < 0.001 and p[0, 2] > 0.05 and np.isnan(np.diag(p)).all()
    assert compare_rows(base[:, None].astype(float))[0].tolist() == [[0]]


def test_few_of_many_comparisons_of_equal_rows_are_significant():
    rng = np.random.default_rng(4)
    _, p = compare_rows((rng.random((300, 12)) < 0.5).astype(float))        # 66 pairs, none of them different
    assert (p < 0.05).sum() / 2 <= 2


def of_tiles(count, experiments, seed):
    """Right and wrong answers of `count` queries of 21 tiles whose places are right or wrong together: (N, K), tiles.

    The chance of a right answer is 6/7 over all tiles, and differs between them.
    """
    rng = np.random.default_rng(seed)
    tiles = np.sort(rng.integers(0, 21, count))
    chances = rng.beta(6, 1, (21, experiments))
    return (rng.random((count, experiments)) < chances[tiles]).astype(float), [f"tile{number}" for number in tiles]


def test_intervals_by_tile_cover_the_truth_and_by_query_they_do_not():
    covered = {"tiles": [], "queries": []}
    for seed in range(4):
        values, tiles = of_tiles(525, 250, seed)
        for name, drawn in (("tiles", tiles), ("queries", None)):
            lower, upper = bootstrap_intervals(values, drawn)
            covered[name].append(((lower <= 6 / 7) & (6 / 7 <= upper)).mean())
    assert 0.92 <= np.mean(covered["tiles"]) <= 0.98
    assert np.mean(covered["queries"]) < 0.8


def test_tests_by_tile_find_as_many_differences_as_they_may_and_by_query_many_more():
    values, tiles = of_tiles(525, 800, seed=9)
    differences = values[:, ::2] - values[:, 1::2]                      # 400 pairs of rows that are equally good
    assert 0.02 <= (sign_flip_p(differences, tiles) < 0.05).mean() <= 0.08
    assert (sign_flip_p(differences) < 0.05).mean() > 0.15


def test_a_tile_for_each_query_is_no_tile():
    rng = np.random.default_rng(1)
    values = (rng.random((300, 2)) < [0.3, 0.9]).astype(float)
    names = [f"q{number:03d}" for number in range(300)]
    assert np.array_equal(bootstrap_intervals(values, names), bootstrap_intervals(values))
    assert np.array_equal(sign_flip_p(values - 0.5, names), sign_flip_p(values - 0.5))


def test_tiles_of_different_size_count_by_their_queries():
    values = np.array([1.0] * 9 + [0.0])[:, None]
    lower, upper = bootstrap_intervals(values, ["a"] * 9 + ["b"])
    assert (lower, upper) == (0, 1), "either tile may be drawn twice"
    p = sign_flip_p(np.array([[1.0], [1.0], [-1.0], [1.0]]), ["a", "a", "b", "b"])
    assert p == pytest.approx(1, abs=1e-3), "of a's 2 and b's 0 both signs are as far"
