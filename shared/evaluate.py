"""Retrieval: SAR queries the optical gallery. CMC and mAP, with ties at their expected rank."""
import torch
from torch import Tensor
from tqdm import tqdm

from shared import distributed
from shared.dataset import to_float
from shared.errors import InputError
from shared.test_time import TEST_TIME

TOPS = (1, 5, 10, 20)
FEATURES = ("FC", "POOL5")
# Scores closer than float32's rounding of an inner product of unit vectors count as ties: the same
# vector must score the same wherever a blocked matrix product puts it.
TIE = 1e-6
QUERIES_AT_ONCE, GALLERY_AT_ONCE = 1024, 8192


@torch.no_grad()
def retrieval_metrics(query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> dict:
    """Top-1, 5, 10, 20 (the CMC at these ranks) and mAP, in percent, for ranking by inner product.

    query: (N, D), gallery: (M, D), float, L2-normalised (the order is then that of L2 distances).
    query_ids: (N), gallery_ids: (M), integer: the place of each. A gallery may hold a place several times.
    Where scores tie, each figure is its expectation over all orders of the tied, in closed form
    (McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the
    Presence of Tied Scores", ECIR 2008): equal embeddings score chance.
    Returns {"top1", "top5", "top10", "top20", "mAP"}.
    Raises ValueError on shapes that do not fit, NaN or infinite embeddings, or a query without its place.
    """
    first, ap = expected_ranks(query, gallery, query_ids, gallery_ids)
    metrics = {f"top{k}": 100 * _expected_hits(first, k).mean().item() for k in TOPS}
    return {**metrics, "mAP": 100 * ap.mean().item()}


def expected_ranks(query, gallery, query_ids, gallery_ids):
    """What CMC and mAP are made of, for each query. The query by gallery matrix is never held whole.

    Returns ((ahead, tied, relevant), ap): for the best-scoring true image of each query how many images score
    higher, how many tie with it (itself included) and how many of those are true; and the expected
    average precision, in [0, 1]. All (N), float64.
    """
    _check(query, gallery, query_ids, gallery_ids)
    tie = TIE * _largest_norm("query", query) * _largest_norm("gallery", gallery)
    truths = _truths(query_ids, gallery_ids).to(query.device)         # N x R, -1 where a query has fewer
    present = truths >= 0
    scores = torch.stack([_row_scores(query, gallery, column.clamp(min=0)) for column in truths.T], 1)
    scores = scores.masked_fill(~present, float("inf"))               # N x R
    ahead = torch.zeros(scores.shape, dtype=torch.float64, device=query.device)
    not_below = torch.zeros_like(ahead)
    counted = torch.empty(QUERIES_AT_ONCE * GALLERY_AT_ONCE, device=query.device)
    for rows, columns, block in score_blocks(query, gallery):
        flags = counted[:block.numel()].view(block.shape)             # float32 flags: many times faster to add up than bool
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
    harmonic = (1 / torch.arange(1, len(gallery) + 1, dtype=torch.float64, device=query.device)).cumsum(0)
    harmonic = torch.cat([harmonic.new_zeros(1), harmonic])
    last = (ahead + tied).clamp(max=len(gallery))
    inverse_ranks = harmonic[last.long()] - harmonic[ahead.long()]
    density = (true_tied - 1) / (tied - 1).clamp(min=1)
    precision = ((true_ahead + 1 - density * (ahead + 1)) * inverse_ranks + density * tied) / tied.clamp(min=1)
    ap = precision.masked_fill(~present, 0).sum(1) / present.sum(1)

    best = scores.masked_fill(~present, float("-inf")).argmax(1, keepdim=True)
    return tuple(x.gather(1, best).squeeze(1) for x in (ahead, tied, true_tied)), ap


def rank_of_truth(ahead, tied, relevant):
    """Expected rank, from 1, of the first true answer, given what expected_ranks counts. All (N)."""
    return ahead + (tied + 1) / (relevant + 1)


def score_blocks(query, gallery):
    """Yield (rows, columns, scores) of all inner products, block by block; the gallery (a memory map, maybe) is read once.

    The scores are overwritten by the next block.
    """
    buffer = torch.empty(QUERIES_AT_ONCE * GALLERY_AT_ONCE, device=query.device)
    for j in range(0, len(gallery), GALLERY_AT_ONCE):
        columns = slice(j, min(j + GALLERY_AT_ONCE, len(gallery)))
        portion = gallery[columns].to(query.device).float()
        for i in range(0, len(query), QUERIES_AT_ONCE):
            rows = slice(i, min(i + QUERIES_AT_ONCE, len(query)))
            shape = (rows.stop - rows.start, len(portion))
            yield rows, columns, torch.matmul(query[rows].float(), portion.T, out=buffer[:shape[0] * shape[1]].view(shape))


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


def _expected_hits(first, k):
    """Probability that a true image is among the first k answers, for each query."""
    ahead, tied, relevant = first
    places = (k - ahead).clamp(min=0)                                 # of the tied that fall within the first k
    wrong = tied - relevant
    # 1 - C(tied - relevant, places) / C(tied, places): none of the places holds a true one.
    log_miss = (torch.lgamma(wrong + 1) - torch.lgamma((wrong - places).clamp(min=0) + 1)
                - torch.lgamma(tied + 1) + torch.lgamma((tied - places).clamp(min=0) + 1))
    return torch.where(places > wrong, torch.ones_like(ahead), 1 - log_miss.exp())


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


def _check(query, gallery, query_ids, gallery_ids):
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query {tuple(query.shape)} and gallery {tuple(gallery.shape)} must be (N, D) and (M, D)")
    if query_ids.shape != query.shape[:1] or gallery_ids.shape != gallery.shape[:1]:
        raise ValueError("query_ids and gallery_ids must hold one place for each embedding")
    if len(query) == 0:
        raise ValueError("there are no queries")


def _largest_norm(name, embeddings):
    """The largest L2 norm of the rows (float); a row that is not finite is an error."""
    norms = torch.cat([embeddings[i:i + GALLERY_AT_ONCE].float().norm(dim=1) for i in range(0, len(embeddings), GALLERY_AT_ONCE)])
    bad = (~norms.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"{len(bad)} of {len(embeddings)} {name} embeddings hold NaN or infinity, the first in row {int(bad[0])}")
    return norms.max().item()


def _row_scores(query, gallery, rows):
    """The inner product of each query with one gallery row: (N, D), (M, D), (N) int64 -> (N) float32."""
    parts = [(query[i:i + QUERIES_AT_ONCE].float() * gallery[rows[i:i + QUERIES_AT_ONCE].to(gallery.device)].to(query.device).float()).sum(1)
             for i in range(0, len(query), QUERIES_AT_ONCE)]
    return torch.cat(parts)


@torch.no_grad()
def embed(model, images, modality, device, autocast, batch_size=64, tta="none"):
    """Embed (N, S, S, 3) uint8 images of one modality, `opt` or `sar`; several processes share them out.

    tta: a name of TEST_TIME, of which views each embedding is made.
    Returns {"FC": (N, 512), "POOL5": (N, C)}, float32, L2-normalised, on the CPU; with joined views as many times as wide.
    """
    model.eval()
    views, combine = TEST_TIME[tta]
    mine = distributed.share(len(images))
    features = {name: [] for name in FEATURES}
    bar = tqdm(range(mine.start, mine.stop, batch_size), desc=f"embed {modality}", leave=False, disable=None)
    for i in bar:
        batch = to_float(images[i:min(i + batch_size, mine.stop)], device)
        with autocast():
            pool5, fc = zip(*(model(**{modality: view(batch)}) for view in views))
        features["POOL5"].append(combine(pool5).cpu())
        features["FC"].append(combine(fc).cpu())
    return {name: distributed.gather_shares(torch.cat(parts), device) for name, parts in features.items()}


def embed_pairs(model, pairs, device, autocast, tta="none"):
    """(query, gallery): embed() of a split's SAR and of its optical images."""
    return tuple(embed(model, images, modality, device, autocast, tta=tta) for images, modality in ((pairs.sar, "sar"), (pairs.opt, "opt")))


def evaluate(query, gallery, pairs, device):
    """Metrics on a split, every SAR image a query, every place in the gallery. query, gallery: as embed_pairs gives them.

    Returns {"FC": metrics, "POOL5": metrics}, each as retrieval_metrics gives it, and where positions are known
    {"distance": {"FC": ..., "POOL5": ...}}, each as answer_distances gives it. InputError where an embedding is NaN.
    """
    metrics, distance = {}, {}
    for name in FEATURES:
        q, g = query[name].to(device), gallery[name].to(device)
        try:
            metrics[name] = retrieval_metrics(q, g, pairs.sar_place.to(device), torch.arange(len(pairs), device=device))
        except ValueError as error:                                   # the network gives NaN: nothing was scored
            raise InputError(f"the {name} vectors cannot be evaluated ({error}): try a lower --lr, or --amp off")
        if pairs.positions is not None:
            distance[name] = answer_distances(first_answers(q, g)[1][:, 0].cpu(), pairs.sar_place, pairs.positions)
    return {**metrics, "distance": distance} if distance else metrics


@torch.no_grad()
def retrievals(query, gallery, pairs, device, answers=5):
    """What each query of a split found: what intervals, paired tests and galleries of answers are made of.

    query, gallery: as embed_pairs gives them. Returns {"query": N names, "truth": N names of places, "FC": found, "POOL5": found};
    each found holds one entry for a query: "top1", the probability that the truth comes first (1 or 0, but for ties), "ap",
    its average precision in [0, 1], "rank" of the truth, expected and from 1, and "answers", [name, score] of the first few places.
    """
    found = {"query": list(pairs.sar_names), "truth": [pairs.names[place] for place in pairs.sar_place.tolist()]}
    for name in FEATURES:
        q, g = query[name].to(device), gallery[name].to(device)
        first, ap = expected_ranks(q, g, pairs.sar_place.to(device), torch.arange(len(pairs), device=device))
        scores, rows = first_answers(q, g, min(answers, len(pairs)))
        named = [[[pairs.names[row], round(score, 4)] for score, row in zip(*both)] for both in zip(scores.tolist(), rows.tolist())]
        found[name] = {"top1": _expected_hits(first, 1).tolist(), "ap": ap.tolist(),
                       "rank": rank_of_truth(*first).tolist(), "answers": named}
    return found


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


def format_metrics(metrics):
    """The lines that the author prints, FC and POOL5, and the distances where there are any."""
    lines = [f"{name}: " + " | ".join(f"{key.replace('top', 'top-')}: {value:.2f}%" for key, value in metrics[name].items())
             for name in FEATURES if name in metrics]
    for name, distance in metrics.get("distance", {}).items():
        shares = " | ".join(f"{key.removeprefix('within')} m: {value:.2f}%" for key, value in distance.items() if key.startswith("within"))
        lines.append(f"{name}, first answer within {shares} | mean: {distance['mean']:.0f} m")
    return "\n".join(lines)
