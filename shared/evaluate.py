# For every test.py, and training that looks at held-out places.
"""Retrieval: SAR queries the optical gallery. CMC and mAP, with ties at their expected rank.

    images --embed_pairs--> embeddings --search--> results --evaluate, retrievals--> figures

A method with its own way to search goes from scores: --search_scores--> results.
"""
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from shared.dataset import to_float
from shared.plumbing import distributed
from shared.plumbing.errors import InputError
from shared.views import VIEWS

TOPS = (1, 5, 10, 20)
FEATURES = ("FC", "POOL5")
ANSWERS = 5                                             # of each query, that a run keeps
# Scores closer than float32's rounding of an inner product of unit vectors count as ties: the same
# vector must score the same wherever a blocked matrix product puts it.
TIE = 1e-6
QUERIES_AT_ONCE, GALLERY_AT_ONCE = 1024, 8192


# Ranks -----------------------------------------------------------------------------------------------------------

@dataclass
class Ranks:
    """Where the truth of each of N queries stands in the gallery. All (N), float64.

    Of the best-scoring true image of a query: ahead, how many images score higher; tied, how many tie with it (itself
    included); relevant, how many of those are true. ap: the expected average precision over all its true images, in
    [0, 1].
    Where scores tie, each figure is its expectation over all orders of the tied, in closed form (McSherry and Najork,
    "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008).
    """
    ahead: Tensor
    tied: Tensor
    relevant: Tensor
    ap: Tensor

    def of_truth(self):
        """(N): the expected rank, from 1, of the first true answer."""
        return self.ahead + (self.tied + 1) / (self.relevant + 1)

    def hits(self, k):
        """(N): the probability that a true image is among the first k answers."""
        places = (k - self.ahead).clamp(min=0)                        # of the tied that fall within the first k
        wrong = self.tied - self.relevant
        # 1 - C(tied - relevant, places) / C(tied, places): none of the places holds a true one.
        log_miss = (torch.lgamma(wrong + 1) - torch.lgamma((wrong - places).clamp(min=0) + 1)
                    - torch.lgamma(self.tied + 1) + torch.lgamma((self.tied - places).clamp(min=0) + 1))
        return torch.where(places > wrong, torch.ones_like(self.ahead), 1 - log_miss.exp())

    def metrics(self):
        """{"top1", "top5", "top10", "top20", "mAP"}, in percent."""
        metrics = {f"top{k}": 100 * self.hits(k).mean().item() for k in TOPS}
        return {**metrics, "mAP": 100 * self.ap.mean().item()}


def retrieval_metrics(query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict:
    """Top-1, 5, 10, 20 (the CMC at these ranks) and mAP, in percent, for ranking by inner product.

    query: (N, D), gallery: (M, D), float, L2-normalised (the order is then that of L2 distances).
    query_ids: (N), gallery_ids: (M), integer: the place of each. A gallery may hold a place several times.
    Ties count with their expectation, as Ranks says: equal embeddings score chance.
    Returns {"top1", "top5", "top10", "top20", "mAP"}.
    Raises ValueError on shapes that do not fit, NaN or infinite embeddings, or a query without its place.
    """
    return expected_ranks(query, gallery, query_ids, gallery_ids).metrics()


@torch.no_grad()
def expected_ranks(query, gallery, query_ids, gallery_ids):
    """The Ranks that CMC and mAP are made of. The query by gallery matrix is never held whole.

    Arguments and errors: retrieval_metrics'.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and gallery {tuple(gallery.shape)} must be (N, D) and (M, D)")
    _check_ids(len(query), len(gallery), query_ids, gallery_ids)
    tie = TIE * _largest_norm("query", query) * _largest_norm("gallery", gallery)
    truths = _truths(query_ids, gallery_ids).to(query.device)         # N x R, -1 where a query has fewer
    scores = torch.stack([_row_scores(query, gallery, column.clamp(min=0)) for column in truths.T], 1)
    return _count(scores, truths >= 0, score_blocks(query, gallery), len(gallery), tie)


@torch.no_grad()
def expected_ranks_of_scores(scores, query_ids, gallery_ids):
    """The Ranks for any scores (N, M), higher is better; only equal ones tie.

    query_ids: (N), gallery_ids: (M), integer: the place of each.
    Raises ValueError on shapes that do not fit, a NaN, or a query without its place.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores {tuple(scores.shape)} must be (N, M)")
    _check_ids(*scores.shape, query_ids, gallery_ids)
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().any(1).sum())} of {len(scores)} queries have a score that is NaN")
    truths = _truths(query_ids, gallery_ids).to(scores.device)
    of_truths = scores.gather(1, truths.clamp(min=0))
    return _count(of_truths, truths >= 0, _blocks_of(scores), scores.shape[1], tie=0)


def _count(scores, present, blocks, gallery_size, tie):
    """Ranks. scores: (N, R) of each query's true images, of which `present`. blocks: as score_blocks gives them."""
    scores = scores.masked_fill(~present, float("inf"))               # N x R
    ahead = torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    not_below = torch.zeros_like(ahead)
    # Flags in float32: many times faster to add up than bool.
    flag_buffer = torch.empty(QUERIES_AT_ONCE * GALLERY_AT_ONCE, device=scores.device)
    for rows, columns, block in blocks:
        flags = flag_buffer[:block.numel()].view(block.shape)
        for r in range(scores.shape[1]):
            ahead[rows, r] += torch.gt(block, scores[rows, r:r + 1] + tie, out=flags).sum(1)
            not_below[rows, r] += torch.ge(block, scores[rows, r:r + 1] - tie, out=flags).sum(1)
    tied = not_below - ahead

    # The same counts among the true images alone.
    mine, others = scores.unsqueeze(2), scores.masked_fill(~present, float("-inf")).unsqueeze(1)
    true_ahead = (others > mine + tie).sum(2).double()
    true_tied = (others >= mine - tie).sum(2).double() - true_ahead

    # Expected precision at a tied true image: the mean over its possible ranks ahead + 1 .. ahead + tied of
    # (true ahead + 1 + true images expected among the tied before it) / rank.
    harmonic = (1 / torch.arange(1, gallery_size + 1, dtype=torch.float64, device=scores.device)).cumsum(0)
    harmonic = torch.cat([harmonic.new_zeros(1), harmonic])
    last = (ahead + tied).clamp(max=gallery_size)
    inverse_ranks = harmonic[last.long()] - harmonic[ahead.long()]
    density = (true_tied - 1) / (tied - 1).clamp(min=1)
    precision = ((true_ahead + 1 - density * (ahead + 1)) * inverse_ranks + density * tied) / tied.clamp(min=1)
    ap = precision.masked_fill(~present, 0).sum(1) / present.sum(1)

    best = scores.masked_fill(~present, float("-inf")).argmax(1, keepdim=True)
    ahead, tied, relevant = (counts.gather(1, best).squeeze(1) for counts in (ahead, tied, true_tied))
    return Ranks(ahead, tied, relevant, ap)


def score_blocks(query, gallery):
    """Yield (rows, columns, scores) of all inner products, block by block.

    The gallery (a memory map, maybe) is read once. The scores are overwritten by the next block.
    """
    buffer = torch.empty(QUERIES_AT_ONCE * GALLERY_AT_ONCE, device=query.device)
    for j in range(0, len(gallery), GALLERY_AT_ONCE):
        columns = slice(j, min(j + GALLERY_AT_ONCE, len(gallery)))
        portion = gallery[columns].to(query.device).float()
        for i in range(0, len(query), QUERIES_AT_ONCE):
            rows = slice(i, min(i + QUERIES_AT_ONCE, len(query)))
            queries = query[rows].float()
            block = buffer[:len(queries) * len(portion)].view(len(queries), len(portion))
            yield rows, columns, torch.matmul(queries, portion.T, out=block)


def _blocks_of(scores):
    """The same of a matrix of scores (N, M) that is held whole."""
    for j in range(0, scores.shape[1], GALLERY_AT_ONCE):
        columns = slice(j, min(j + GALLERY_AT_ONCE, scores.shape[1]))
        for i in range(0, len(scores), QUERIES_AT_ONCE):
            rows = slice(i, min(i + QUERIES_AT_ONCE, len(scores)))
            yield rows, columns, scores[rows, columns]


@torch.no_grad()
def first_answers(query, gallery, k=1):
    """The k best-scoring gallery rows of each query, best first: scores (N, k) float32 and rows (N, k) int64.

    query: (N, D), gallery: (M, D), float, L2-normalised, k at most M.
    """
    best = torch.full((len(query), k), float("-inf"), device=query.device)
    answers = torch.zeros((len(query), k), dtype=torch.int64, device=query.device)
    for rows, columns, block in score_blocks(query, gallery):
        # Only rows that hold something better than their k-th answer so far have to be sorted.
        better = (block.amax(1) > best[rows, -1]).nonzero().flatten()
        if len(better):
            score, row = block[better].topk(min(k, block.shape[1]), 1)
            at = better + rows.start
            score, order = torch.cat([best[at], score], 1).sort(dim=1, descending=True, stable=True)
            best[at] = score[:, :k]
            answers[at] = torch.cat([answers[at], row + columns.start], 1).gather(1, order[:, :k])
    return best, answers


def rerank(scores, first):
    """Scores whose order is a re-ranked list, then all other images as before.

    scores: (N, M), higher is better. first: (N, K) int64, gallery rows of each query, best first, none twice.
    Returns (N, M).
    """
    top = scores.amax(1, keepdim=True)
    places = torch.arange(first.shape[1], 0, -1, device=scores.device, dtype=scores.dtype)
    return scores.scatter(1, first, top + places)


def _truths(query_ids, gallery_ids):
    """(N, R) int64: the gallery rows of each query's place, padded with -1."""
    order = torch.argsort(gallery_ids, stable=True)
    ids = gallery_ids[order].contiguous()
    start = torch.searchsorted(ids, query_ids.contiguous())
    count = torch.searchsorted(ids, query_ids.contiguous(), right=True) - start
    if (count == 0).any():
        raise ValueError(f"{int((count == 0).sum())} queries have no image of their place in the gallery")
    offsets = torch.arange(int(count.max()), device=query_ids.device)
    rows = order[(start.unsqueeze(1) + offsets).clamp(max=len(order) - 1)]
    return rows.masked_fill(offsets >= count.unsqueeze(1), -1)


def _check_ids(queries, gallery_size, query_ids, gallery_ids):
    if query_ids.shape != (queries,) or gallery_ids.shape != (gallery_size,):
        raise ValueError("query_ids and gallery_ids must hold one place for each query and for each gallery image")
    if queries == 0:
        raise ValueError("there are no queries")


def _largest_norm(name, embeddings):
    """The largest L2 norm of the rows (float); a row that is not finite is an error."""
    norms = torch.cat([portion.float().norm(dim=1) for portion in embeddings.split(GALLERY_AT_ONCE)])
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(embeddings)} {name} embeddings hold NaN or infinity, "
                         f"the first in row {int(bad[0])}")
    return norms.max().item()


def _row_scores(query, gallery, rows):
    """The inner product of each query with one gallery row: (N, D), (M, D), (N) int64 -> (N) float32."""
    scores = []
    for queries, portion in zip(query.split(QUERIES_AT_ONCE), rows.split(QUERIES_AT_ONCE)):
        answers = gallery[portion.to(gallery.device)].to(query.device)
        scores.append((queries.float() * answers.float()).sum(1))
    return torch.cat(scores)


# A split: embed, search, evaluate ----------------------------------------------------------------------------------

@torch.no_grad()
def embed(model, images, modality, device, autocast, batch_size=64, tta="none"):
    """Embed (N, S, S, 3) uint8 images of result modality, `opt` or `sar`; several processes share them out.

    tta: a name of VIEWS, of which each embedding is made.
    Returns {"FC": (N, D), "POOL5": (N, C)}, float32, L2-normalised, on the CPU; with joined views as many times as
    wide.
    """
    model.eval()
    views = VIEWS[tta]
    mine = distributed.share(len(images))
    features = {name: [] for name in FEATURES}
    bar = tqdm(range(mine.start, mine.stop, batch_size), desc=f"embed {modality}", leave=False, disable=None)
    for i in bar:
        batch = to_float(images[i:min(i + batch_size, mine.stop)], device)
        with autocast():
            embedded = [model(**{modality: view(batch)}) for view in views.views]
        features["POOL5"].append(views.combine([one.pool5 for one in embedded]).cpu())
        features["FC"].append(views.combine([one.fc for one in embedded]).cpu())
    return {name: distributed.gather_shares(torch.cat(parts), device) for name, parts in features.items()}


def embed_pairs(model, pairs, device, autocast, tta="none"):
    """(query, gallery): embed() of a split's SAR and of its optical images."""
    query = embed(model, pairs.sar, "sar", device, autocast, tta=tta)
    gallery = embed(model, pairs.opt, "opt", device, autocast, tta=tta)
    return query, gallery


@dataclass
class SearchResult:
    """What a search found. ranks: of the truths. scores, answers: (N, K) of the first few places, best first."""
    ranks: Ranks
    scores: Tensor
    answers: Tensor


def search(query, gallery, pairs, device):
    """Every SAR image of a split queries all its places, by each feature. query, gallery: as embed_pairs gives them.

    Returns {"FC": SearchResult, "POOL5": SearchResult}, on the CPU. InputError where an embedding is NaN.
    """
    results = {}
    places = torch.arange(len(pairs), device=device)
    for name in query:
        q, g = query[name].to(device), gallery[name].to(device)
        try:
            ranks = expected_ranks(q, g, pairs.sar_place.to(device), places)
        except ValueError as error:                                   # the network gives NaN: nothing was scored
            raise InputError(f"the {name} vectors cannot be evaluated ({error}): try a lower --lr, or --amp off")
        results[name] = _result(ranks, *first_answers(q, g, min(ANSWERS, len(pairs))))
    return results


def search_scores(scores, pairs):
    """The same from any scores: {name: (N, M)}, a row for each SAR image, a column for each place, higher is better.

    Returns {name: SearchResult}, on the CPU. Raises ValueError as expected_ranks_of_scores does.
    """
    results = {}
    for name, matrix in scores.items():
        places = torch.arange(len(pairs), device=matrix.device)
        ranks = expected_ranks_of_scores(matrix, pairs.sar_place.to(matrix.device), places)
        results[name] = _result(ranks, *matrix.topk(min(ANSWERS, len(pairs)), 1))
    return results


def _result(ranks, scores, answers):
    ranks = Ranks(*(figure.cpu() for figure in (ranks.ahead, ranks.tied, ranks.relevant, ranks.ap)))
    return SearchResult(ranks, scores.cpu(), answers.cpu())


def evaluate(results, pairs):
    """Metrics on a split, every SAR image a query, every place in the gallery. results: as search gives it.

    Returns {"FC": metrics, "POOL5": metrics}, each as retrieval_metrics gives it, and where positions are known
    {"distance": {"FC": ..., "POOL5": ...}}, each as answer_distances gives it.
    """
    metrics = {name: result.ranks.metrics() for name, result in results.items()}
    if pairs.positions is not None:
        metrics["distance"] = {name: answer_distances(result.answers[:, 0], pairs.sar_place, pairs.positions)
                               for name, result in results.items()}
    return metrics


def retrievals(results, pairs):
    """What each query of a split found: what intervals, paired tests and galleries of answers are made of.

    results: as search gives it. Returns {"query": N names, "truth": N names of places, and for each feature a
    dictionary of N entries each: "top1", the probability that the truth comes first (1 or 0, but for ties); "ap", its
    average precision in [0, 1]; "rank" of the truth, expected and from 1; "answers", [name, score] of the first few
    places}.
    """
    content = {"query": list(pairs.sar_names), "truth": [pairs.names[place] for place in pairs.sar_place.tolist()]}
    for name, result in results.items():
        answers = [[[pairs.names[row], round(score, 4)] for row, score in zip(rows, scores)]
                   for rows, scores in zip(result.answers.tolist(), result.scores.tolist())]
        content[name] = {"top1": result.ranks.hits(1).tolist(), "ap": result.ranks.ap.tolist(),
                         "rank": result.ranks.of_truth().tolist(), "answers": answers}
    return content


def answer_distances(answers, truths, positions):
    """How far the first answer lies from the truth.

    answers, truths: (N) int64 rows of positions: (P, 2), x and y in metres, NaN where unknown.
    Returns {"within50", "within100", "within150", "within200"} in percent and {"mean"} in metres, over the queries
    for which both positions are known, and their number, {"queries"}.
    """
    distance = (positions[answers] - positions[truths]).norm(dim=1)
    distance = distance[~distance.isnan()]
    shares = {f"within{metres}": 100 * (distance <= metres).double().mean().item() for metres in (50, 100, 150, 200)}
    return {**shares, "mean": distance.mean().item(), "queries": len(distance)}
