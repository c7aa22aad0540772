"""The retrieval metrics against plain loops and small cases."""
import itertools
import math

import numpy
import pytest
import torch
import torch.nn.functional as F

from shared import evaluate
from shared.evaluate import answer_distances, expected_ranks_of_scores, first_answers, rerank, retrieval_metrics
from shared.plumbing.run_files import format_metrics

TOPS = (1, 5, 10, 20)


def metrics_by_loop(scores, query_ids, gallery_ids):
    """Sort each query's gallery and walk down; the mean over all orders of what ties."""
    totals = dict.fromkeys([f"top{k}" for k in TOPS] + ["mAP"], 0.0)
    for row, query_id in zip(scores.tolist(), query_ids.tolist()):
        right = [g == query_id for g in gallery_ids.tolist()]
        levels = sorted(set(row), reverse=True)
        groups = [[right[i] for i in range(len(row)) if row[i] == level] for level in levels]
        orders = list(itertools.product(*[sorted(set(itertools.permutations(g))) for g in groups]))
        for order in orders:
            ranked = list(itertools.chain(*order))
            found, precisions = 0, []
            for rank, hit in enumerate(ranked, 1):
                if hit:
                    found += 1
                    precisions.append(found / rank)
            for k in TOPS:
                totals[f"top{k}"] += any(ranked[:k]) / len(orders)
            totals["mAP"] += sum(precisions) / len(precisions) / len(orders)
    return {name: 100 * value / len(scores) for name, value in totals.items()}


@pytest.mark.parametrize("seed", range(12))
def test_metrics_equal_a_loop_with_ties_and_several_images_of_a_place(seed):
    generator = torch.Generator().manual_seed(seed)
    places = 4
    gallery_ids = torch.cat([torch.arange(places), torch.randint(places + 2, (3,), generator=generator)])
    query_ids = torch.randint(places, (6,), generator=generator)     # several SAR images of a place
    levels = [2, 3, 50][seed % 3]                                    # many ties, some, hardly any
    scores = torch.randint(levels, (6, len(gallery_ids)), generator=generator).float() / levels
    query = torch.eye(6)                                             # query @ gallery.T is then just the scores
    ours = retrieval_metrics(query, scores.T.contiguous(), query_ids, gallery_ids)
    theirs = metrics_by_loop(scores, query_ids, gallery_ids)
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_metrics_equal_a_loop_on_a_larger_set_and_across_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    gallery = F.normalize(torch.randn(150, 16, generator=generator))
    query_ids = torch.randint(150, (90,), generator=generator)
    query = F.normalize(gallery[query_ids] + 0.5 * torch.randn(90, 16, generator=generator))
    gallery_ids = torch.arange(150)
    expected = metrics_by_loop(query @ gallery.T, query_ids, gallery_ids)
    assert 5 < expected["top1"] < 95
    assert retrieval_metrics(query, gallery, query_ids, gallery_ids) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(evaluate, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(evaluate, "GALLERY_AT_ONCE", 11)
    assert retrieval_metrics(query, gallery, query_ids, gallery_ids) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_metrics_of_any_scores_equal_a_loop(monkeypatch, seed):
    generator = torch.Generator().manual_seed(seed)
    gallery_ids = torch.cat([torch.arange(4), torch.randint(6, (3,), generator=generator)])
    query_ids = torch.randint(4, (6,), generator=generator)
    scores = 1e6 * torch.randint([2, 3, 50][seed % 3], (6, 7), generator=generator).float()
    expected = metrics_by_loop(scores, query_ids, gallery_ids)
    for queries, places in ((1024, 8192), (4, 3)):
        monkeypatch.setattr(evaluate, "QUERIES_AT_ONCE", queries)
        monkeypatch.setattr(evaluate, "GALLERY_AT_ONCE", places)
        ours = expected_ranks_of_scores(scores, query_ids, gallery_ids).metrics()
        assert ours == pytest.approx(expected, abs=1e-6)


def test_scores_that_do_not_fit_are_an_error():
    scores, ids = torch.rand(5, 4), torch.arange(4)
    with pytest.raises(ValueError, match="one place for each"):
        expected_ranks_of_scores(scores, ids, ids)
    with pytest.raises(ValueError, match="1 of 4 queries have a score that is NaN"):
        bad = torch.rand(4, 4)
        bad[2, 1] = math.nan
        expected_ranks_of_scores(bad, ids, ids)


def test_a_reranked_list_comes_first_and_the_others_keep_their_order():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3], [5.0, 4.0, 3.0, 2.0, 1.0]])
    ranked = rerank(scores, torch.tensor([[3, 1], [4, 0]])).argsort(1, descending=True)
    assert ranked.tolist() == [[3, 1, 2, 4, 0], [4, 0, 1, 2, 3]]


@pytest.mark.parametrize(
    "vector",
    [
        torch.ones(512),
        torch.zeros(512),
        F.normalize(torch.randn(512, generator=torch.Generator().manual_seed(5)), dim=0),
    ],
)
def test_equal_embeddings_score_chance(vector):
    same, ids = vector.repeat(2250, 1), torch.arange(2250)
    metrics = retrieval_metrics(same, same, ids, ids)
    assert {name: round(value, 2) for name, value in metrics.items()} == {
        "top1": 0.04, "top5": 0.22, "top10": 0.44, "top20": 0.89, "mAP": 0.37,
    }
    assert metrics["mAP"] == pytest.approx(100 * sum(1 / r for r in range(1, 2251)) / 2250)


def test_perfect_embeddings_score_100():
    x, ids = F.normalize(torch.randn(40, 32)), torch.randperm(40)
    assert list(retrieval_metrics(x, x, ids, ids).values()) == pytest.approx([100] * 5)


def test_distractors_count():
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[0.8, 0.6], [1.0, 0.0]])
    assert retrieval_metrics(query, gallery, torch.tensor([0]), torch.tensor([0, 7]))["mAP"] == pytest.approx(50)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["query", "gallery"])
def test_nan_is_an_error_never_a_score(bad, where):
    query, gallery, ids = torch.rand(5, 4), torch.rand(5, 4), torch.arange(5)
    {"query": query, "gallery": gallery}[where][3, 1] = bad
    with pytest.raises(ValueError, match=f"1 of 5 {where} embeddings.*row 3"):
        retrieval_metrics(query, gallery, ids, ids)


def test_what_does_not_fit_is_an_error():
    x, ids = torch.rand(5, 4), torch.arange(5)
    with pytest.raises(ValueError, match="1 queries have no image of their place"):
        retrieval_metrics(x, x, torch.tensor([0, 1, 2, 3, 9]), ids)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        retrieval_metrics(x, torch.rand(5, 3), ids, ids)
    with pytest.raises(ValueError, match="one place for each"):
        retrieval_metrics(x, x, ids[:4], ids)


def test_distances_of_the_first_answers():
    positions = torch.tensor([[0.0, 0], [30, 40], [0, 120], [math.nan, math.nan]], dtype=torch.float64)
    found = answer_distances(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 0]), positions)
    assert found == {
        "within50": pytest.approx(200 / 3),
        "within100": pytest.approx(200 / 3),
        "within150": 100,
        "within200": 100,
        "mean": pytest.approx(170 / 3),
        "queries": 3,
    }
    gallery = F.normalize(torch.randn(9, 8))
    assert first_answers(gallery[[4, 2]], gallery)[1].tolist() == [[4], [2]]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_first_answers_are_the_best_across_chunks(monkeypatch, k):
    monkeypatch.setattr(evaluate, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(evaluate, "GALLERY_AT_ONCE", 11)
    query, gallery = torch.randn(20, 8), torch.randn(60, 8)
    scores, rows = first_answers(query, gallery, k)
    expected = (query @ gallery.T).topk(k)
    assert torch.equal(rows, expected.indices) and torch.allclose(scores, expected.values, atol=1e-5)


def test_a_memory_mapped_half_precision_gallery(tmp_path):
    gallery = F.normalize(torch.randn(50, 16)).half()
    numpy.save(tmp_path / "gallery.npy", gallery.numpy())
    mapped = torch.from_numpy(numpy.load(tmp_path / "gallery.npy", mmap_mode="c"))
    query, ids = F.normalize(gallery.float() + 0.3 * torch.randn(50, 16)), torch.arange(50)
    assert retrieval_metrics(query, mapped, ids, ids) == retrieval_metrics(query, gallery.float(), ids, ids)


def test_the_authors_format():
    metrics = {"top1": 62.66, "top5": 85.61, "top10": 91.25, "top20": 95.83, "mAP": 72.99}
    assert (
        format_metrics({"FC": metrics})
        == "FC: top-1: 62.66% | top-5: 85.61% | top-10: 91.25% | top-20: 95.83% | mAP: 72.99%"
    )
