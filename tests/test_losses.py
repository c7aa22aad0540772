"""The losses and the critics against plain loops."""
import copy

import pytest
import torch

from shared.critics import CRITICS, critic_step
from shared.losses import MODAL_LOSSES, cross_modal_triplet, squared_distances


def triplet_by_loop(fc, kinds, margin):
    """Every triplet of every ordered pair of kinds, the hardest one of each anchor kept."""
    places = len(fc) // kinds
    total = 0
    for a in range(kinds):
        for b in range(kinds):
            if a == b:
                continue
            for i in range(places):
                losses = []
                for j in range(places):
                    if i != j:
                        positive = ((fc[a * places + i] - fc[b * places + i]) ** 2).sum()
                        negative = ((fc[a * places + i] - fc[b * places + j]) ** 2).sum()
                        losses.append(torch.relu(margin + positive - negative))
                total = total + max(losses) / places
    return total


@pytest.mark.parametrize("kinds", [2, 4])
@pytest.mark.parametrize("margin", [0.5, 1.5])
def test_triplet_and_gradient_equal_a_loop_over_all_triplets(kinds, margin):
    x = torch.randn(kinds * 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(kinds)).float()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    normal = torch.nn.functional.normalize
    loss = cross_modal_triplet(normal(ours), kinds, margin)
    expected = triplet_by_loop(normal(theirs), kinds, margin)
    assert expected > 0.1
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_triplet_of_collapsed_embeddings_is_the_margin_for_each_term():
    assert cross_modal_triplet(torch.ones(8, 4), kinds=4, margin=0.5).item() == pytest.approx(12 * 0.5)


def test_triplet_is_zero_when_places_are_far_apart():
    assert cross_modal_triplet(torch.eye(6).repeat(2, 1), kinds=2, margin=0.5).item() == 0


def test_triplet_needs_two_places():
    with pytest.raises(ValueError, match="at least 2 places"):
        cross_modal_triplet(torch.ones(2, 4), kinds=2)


def test_distances_are_squared_and_float32_under_autocast():
    a, b = torch.randn(3, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        distance = squared_distances(a, b)
    assert distance.dtype == torch.float32
    assert torch.allclose(distance, torch.cdist(a, b) ** 2, atol=1e-4)


@pytest.mark.parametrize("adv", CRITICS)
def test_the_critics_step_moves_only_the_critic_and_learns(adv):
    torch.manual_seed(0)
    critic = CRITICS[adv](dim=8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=critic.betas)
    opt = (torch.randn(32, 8) + 1).requires_grad_()
    sar = (torch.randn(32, 8) - 1).requires_grad_()
    before = copy.deepcopy(critic.state_dict())
    first = critic_step(critic, optimizer, opt, sar)
    assert all(not torch.equal(before[name], value) for name, value in critic.state_dict().items() if value.ndim == 2)
    assert opt.grad is None and sar.grad is None
    for _ in range(50):
        last = critic_step(critic, optimizer, opt, sar)
    assert last < first - 0.1
    assert critic.model_loss(opt, sar) > critic.model_loss(sar, opt), "the critic tells the modalities apart"
    critic.model_loss(opt, sar).backward()
    assert opt.grad.abs().sum() > 0 and sar.grad.abs().sum() > 0


def test_the_wasserstein_critic_stays_within_its_clip():
    torch.manual_seed(0)
    critic = CRITICS["wasserstein"]()
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.5)
    critic_step(critic, optimizer, torch.randn(8, 512), torch.randn(8, 512))
    assert max(p.abs().max() for p in critic.parameters()) <= 0.1


def test_critics_have_the_stated_layers():
    shapes = [tuple(p.shape) for p in CRITICS["wasserstein"]().parameters() if p.ndim == 2]
    assert shapes == [(512, 512), (512, 512), (1, 512)]
    assert [tuple(p.shape) for p in CRITICS["classifier"]().parameters() if p.ndim == 2][-1] == (2, 512)


def test_the_classifiers_losses_are_cross_entropies_with_true_and_reversed_labels():
    critic = CRITICS["classifier"](dim=4)
    opt, sar = torch.randn(5, 4), torch.randn(5, 4)
    log_opt, log_sar = critic.layers(opt).log_softmax(1), critic.layers(sar).log_softmax(1)
    assert critic.critic_loss(opt, sar).item() == pytest.approx(
        (-log_opt[:, 0].mean() - log_sar[:, 1].mean()).item() / 2
    )
    assert critic.model_loss(opt, sar).item() == pytest.approx(
        (-log_opt[:, 1].mean() - log_sar[:, 0].mean()).item() / 2
    )


def mmd_by_loop(a, b):
    """Gretton et al., equation 5: mean kernel value of all pairs within each set, less twice that across."""
    rows = torch.cat([a, b])
    width = sum(((x - y) ** 2).sum() for x in rows for y in rows).item() / len(rows) ** 2

    def mean_kernel(p, q):
        total = 0
        for x in p:
            for y in q:
                distance = ((x - y) ** 2).sum()
                total = total + sum(torch.exp(-distance / (scale * width)) for scale in (0.5, 1, 2)) / 3
        return total / (len(p) * len(q))

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)


def coral_by_loop(a, b):
    dim, total = a.shape[1], 0

    def covariance(x, i, j):
        return ((x[:, i] - x[:, i].mean()) * (x[:, j] - x[:, j].mean())).sum() / (len(x) - 1)

    for i in range(dim):
        for j in range(dim):
            total = total + (covariance(a, i, j) - covariance(b, i, j)) ** 2
    return total


def mse_by_loop(a, b):
    return sum(((x - y) ** 2).sum() for x, y in zip(a, b)) / len(a)


@pytest.mark.parametrize("name, by_loop", [("mse", mse_by_loop), ("mmd", mmd_by_loop), ("coral", coral_by_loop)])
def test_modal_losses_and_gradients_equal_loops(name, by_loop):
    torch.manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=2)
    a, b = (a + 0.3).requires_grad_(), b.clone().requires_grad_()
    ours, expected = MODAL_LOSSES[name](a, b), by_loop(a, b)
    assert expected > 1e-3 and ours.item() == pytest.approx(expected.item(), rel=1e-4)
    for one, other in zip(torch.autograd.grad(ours, (a, b)), torch.autograd.grad(expected, (a, b))):
        assert torch.allclose(one, other, atol=1e-6)


def test_modal_losses_know_pairs_or_sets():
    torch.manual_seed(0)
    fc = torch.nn.functional.normalize(torch.randn(32, 16))
    assert MODAL_LOSSES["mse"](fc, fc.flip(0)) > 1, "mse compares the two of a place"
    assert MODAL_LOSSES["mmd"](fc, fc.flip(0)).abs() < 1e-6 and MODAL_LOSSES["coral"](fc, fc.flip(0)) < 1e-10, (
        "the others the two sets"
    )
    assert MODAL_LOSSES["mmd"](fc, fc + 1) > 0.3 and MODAL_LOSSES["coral"](fc, fc + 1) < 1e-10, (
        "a covariance does not see a shift"
    )
    assert MODAL_LOSSES["mmd"](torch.ones(4, 8), torch.ones(4, 8)) == 0, "collapsed embeddings have no width"
