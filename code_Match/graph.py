"""Retrieval as matching: patches of a map as large as the query, ordered by voting, or by a graph of the first answers.

Source: the group's CMPC paper (JSTARS 2023): the first 20 answers are nodes, edges join the 5 nearest in feature space.
Here edges also join the 5 nearest on the ground, so that positions have a say.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import nn

NODES, NEIGHBOURS, WIDTH, LAYERS = 20, 5, 64, 2
STEP, REACH = 2, 4                                      # cells from a patch to the next, and up to which they vote
PARTS = 3                                               # to the side of a patch, whose cosines the graph sees
FAR = 1e6                                               # px between patches of different maps
STEPS, RATE = 300, 1e-3


@dataclass
class Patches:
    """P patches of maps. centres: (P, 2), x and y in px. map: (P) int, the number of each patch's map. embeddings:
    (P, PARTS^2, C) float32, L2-normalised as one vector: the mean of the cells in each part. reach: px up to which
    patches are neighbours."""
    centres: np.ndarray
    map: np.ndarray
    embeddings: torch.Tensor
    reach: float


def patches_of(maps, seen):
    """The Patches of some Maps, STEP cells apart, each as large as a query that is Seen at one rotation."""
    centres, numbers, embeddings = [], [], []
    for map_ in maps:
        of_map = part_means(map_.cells, seen.size)[:, :, ::STEP, ::STEP]              # PARTS^2 x C x h x w
        rows, columns = np.mgrid[:of_map.shape[2], :of_map.shape[3]] * STEP * map_.cell
        centres.append(np.column_stack([columns.ravel(), rows.ravel()]) + seen.middle)
        numbers.append(np.full(rows.size, map_.number))
        embeddings.append(of_map.flatten(2).permute(2, 0, 1).cpu())
    return Patches(np.concatenate(centres), np.concatenate(numbers), normalized(torch.cat(embeddings)),
                   REACH * maps[0].cell)


def part_means(cells, size):
    """(PARTS^2, C, H - h + 1, W - w + 1): the means of cells (C, H, W) in the parts of each patch of size (h, w)."""
    high, wide = (max(1, side // PARTS) for side in size)
    means = F.avg_pool2d(cells, (high, wide), stride=1)
    height, width = (of_map - of_patch + 1 for of_map, of_patch in zip(cells.shape[-2:], size))
    tops, lefts = (np.linspace(0, side - part, PARTS).round().astype(int) for side, part in zip(size, (high, wide)))
    return torch.stack([means[:, top:top + height, left:left + width] for top in tops for left in lefts])


def normalized(embeddings):
    return F.normalize(embeddings.flatten(1)).view_as(embeddings)


def embedding_of(seen):
    """(PARTS^2, C) of a query."""
    return normalized(part_means(seen.cells[0], seen.size)[None, :, :, 0, 0].cpu())[0]


def scores_of(maps, seen):
    """(P) cosines of a query with the patches of some Maps, all of its cells with all of theirs."""
    scores = [map_.ready(0).cosines(seen.cells[:1], seen.mask[:1])[0, 0, ::STEP, ::STEP].flatten() for map_ in maps]
    return torch.cat(scores).cpu().numpy()


def vote(scores, patches):
    """The sum over each patch and its neighbours, less than `reach` away, of their scores. (P)."""
    places = np.column_stack([patches.centres, patches.map * FAR])
    first, second = cKDTree(places).query_pairs(patches.reach, output_type="ndarray").T
    weight = 1 - np.linalg.norm(places[first] - places[second], axis=1) / patches.reach
    own = scores - scores.mean()
    heard = np.bincount(first, weight * own[second], len(own)) + np.bincount(second, weight * own[first], len(own))
    return own + heard


def _distances(centres, numbers):
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    return np.where(numbers[:, None] == numbers[None], apart, FAR)


class AnswerGraph(nn.Module):
    """Attention layers over the nodes, each of which hears only those that an edge joins it to."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(PARTS ** 2 + 2, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True)
                                    for _ in range(LAYERS))
        self.leave = nn.Linear(WIDTH, 1)

    def forward(self, nodes, edges):
        """nodes: (B, N, PARTS^2 + 2). edges: (B, N, N) bool. Returns (B, N) logits of being the truth."""
        closed = (~edges).repeat_interleave(4, 0)                     # a mask for each of the 4 heads
        x = self.enter(nodes)
        for layer in self.layers:
            x = layer(x, src_mask=closed)
        # What the graph adds to the order of retrieval, whose scores are the nodes' last number but one.
        return self.leave(x)[..., 0] + 20 * nodes[..., -2]


def graph_of(scores, voted, embedding, patches):
    """(nodes (N, PARTS^2 + 2), edges (N, N) bool, rows (N)): the first NODES answers. scores, voted: (P). embedding:
    (PARTS^2, C), the query's.

    A node is the agreement of each part of the query with that of the patch, so that it says the same with any network,
    the score, and what the neighbours make of it.
    """
    rows = np.argsort(-scores)[:NODES]
    answers = patches.embeddings[rows]
    both = torch.from_numpy(np.column_stack([scores[rows], voted[rows]])).float()
    nodes = torch.cat([(embedding * answers).sum(2), both], 1)
    on_ground = torch.from_numpy(_distances(patches.centres[rows], patches.map[rows]))
    in_features = 1 - answers.flatten(1) @ answers.flatten(1).T
    edges = torch.eye(len(rows), dtype=torch.bool)
    for apart in (on_ground, in_features):
        nearest = apart.topk(min(NEIGHBOURS + 1, len(rows)), largest=False).indices
        edges |= torch.zeros_like(edges).scatter(1, nearest, True)
    return nodes, edges | edges.T, rows


def order_of(graph, maps, seen, patches):
    """(N) rows of the patches of some maps, best first: by voting, or by the graph where there is one."""
    scores = scores_of(maps, seen)
    voted = vote(scores, patches)
    if graph is None:
        return np.argsort(-voted)
    nodes, edges, rows = graph_of(scores, voted, embedding_of(seen), patches)
    with torch.no_grad():
        return rows[graph(nodes[None], edges[None])[0].argsort(descending=True).numpy()]


def train_graph(examples, seed=0):
    """The AnswerGraph learned from examples (nodes, edges, row of the node nearest to the truth), by cross-entropy."""
    torch.manual_seed(seed)
    model = AnswerGraph().train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    nodes, edges, truth = (torch.stack(column) for column in zip(*examples))
    for _ in range(STEPS):
        chosen = torch.randint(len(nodes), (min(64, len(nodes)),))
        loss = F.cross_entropy(model(nodes[chosen], edges[chosen]), truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
