import copy

import pytest
import torch

from shared.losses import CRITICS, critic_step, cross_modal_triplet, squared_distances


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
    assert critic.critic_loss(opt, sar).item() == pytest.approx((-log_opt[:, 0].mean() - log_sar[:, 1].mean()).item() / 2)
    assert critic.model_loss(opt, sar).item() == pytest.approx((-log_opt[:, 1].mean() - log_sar[:, 0].mean()).item() / 2)
