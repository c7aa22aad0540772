"""Another order for the first answers of retrieval: voting of neighbours, and attention over a graph of the answers.

Source: the group's CMPC paper (JSTARS 2023): the first 20 answers are nodes, edges join the 5 nearest in feature space.
Here edges also join the 5 nearest on the ground, so that positions have a say.
"""
import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import nn

NODES, NEIGHBOURS, WIDTH, LAYERS = 20, 5, 64, 2
FAR = 1e6                                               # px between patches of different maps
STEPS, RATE = 300, 1e-3


def vote(scores, patches):
    """The sum over each patch and its neighbours on the grid, less than a side away, of their scores. (P)."""
    places = np.column_stack([patches.centres, patches.map * FAR])
    first, second = cKDTree(places).query_pairs(patches.side, output_type="ndarray").T
    weight = 1 - np.linalg.norm(places[first] - places[second], axis=1) / patches.side
    own = scores - scores.mean()
    heard = np.bincount(first, weight * own[second], len(own)) + np.bincount(second, weight * own[first], len(own))
    return own + heard


def _distances(centres, numbers):
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    return np.where(numbers[:, None] == numbers[None], apart, FAR)


class AnswerGraph(nn.Module):
    """Attention layers over the nodes, each of which hears only those that an edge joins it to."""

    def __init__(self, dim):
        super().__init__()
        self.enter = nn.Linear(dim + 2, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True)
                                    for _ in range(LAYERS))
        self.leave = nn.Linear(WIDTH, 1)

    def forward(self, nodes, edges):
        """nodes: (B, N, D + 2). edges: (B, N, N) bool. Returns (B, N) logits of being the truth."""
        closed = (~edges).repeat_interleave(4, 0)                     # a mask for each of the 4 heads
        x = self.enter(nodes)
        for layer in self.layers:
            x = layer(x, src_mask=closed)
        # What the graph adds to the order of retrieval, whose scores are the nodes' last number but one.
        return self.leave(x)[..., 0] + 20 * nodes[..., -2]


def graph_of(scores, embedding, patches):
    """(nodes (N, D + 2), edges (N, N) bool, rows (N)): the first NODES answers. scores: (P). embedding: (D)."""
    rows = np.argsort(-scores)[:NODES]
    answers = patches.embeddings[rows]
    voted = torch.from_numpy(vote(scores, patches)[rows]).float()
    nodes = torch.cat([embedding * answers, torch.from_numpy(scores[rows]).float()[:, None], voted[:, None]], 1)
    on_ground = torch.from_numpy(_distances(patches.centres[rows], patches.map[rows]))
    in_features = 1 - answers @ answers.T
    edges = torch.eye(len(rows), dtype=torch.bool)
    for apart in (on_ground, in_features):
        nearest = apart.topk(min(NEIGHBOURS + 1, len(rows)), largest=False).indices
        edges |= torch.zeros_like(edges).scatter(1, nearest, True)
    return nodes, edges | edges.T, rows


def train_graph(examples, dim, seed=0):
    """The AnswerGraph learned from examples (nodes, edges, row of the node nearest to the truth), by cross-entropy."""
    torch.manual_seed(seed)
    model = AnswerGraph(dim).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    nodes, edges, truth = (torch.stack(column) for column in zip(*examples))
    for _ in range(STEPS):
        chosen = torch.randint(len(nodes), (min(64, len(nodes)),))
        loss = F.cross_entropy(model(nodes[chosen], edges[chosen]), truth[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
