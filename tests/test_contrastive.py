"""What code_Con adds: InfoNCE, the grid pooling, hard negatives, gradient caching, test-time views."""
import copy
import math
import signal
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, SMALL, Program, has_logged, script
from chunks import in_chunks
from contrastive_losses import AfterInfoNCE, BatchHardTriplet, InfoNCE, build_contrastive, collapsed_value
from hard_negatives import HardNegatives
from misalign import misaligned, side_to_turn
from shared.dataset import Pairs, draw_batches
from shared.evaluate import embed
from shared.model import Embedded, PseudoSiamese
from shared.optimizers import build_optimizer
from shared.plumbing import distributed
from shared.plumbing.errors import InputError
from shared.reading.windows import apply_symmetry
from shared.views import VIEWS, random_part, with_shown

CPU = torch.device("cpu")


def infonce_by_loop(fc, temperature, smoothing):
    """Every anchor of both modalities against every place, one at a time."""
    places = len(fc) // 2
    total = 0
    for anchors, others in ((fc[:places], fc[places:]), (fc[places:], fc[:places])):
        for i in range(places):
            scores = [(anchors[i] * others[j]).sum() / temperature for j in range(places)]
            log_sum = torch.stack([score.exp() for score in scores]).sum().log()
            for j in range(places):
                target = (1 - smoothing) * (i == j) + smoothing / places
                total = total + target * (log_sum - scores[j]) / places / 2
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infonce_and_gradient_equal_a_loop(smoothing):
    torch.manual_seed(0)
    fc = F.normalize(torch.randn(14, 6)).requires_grad_()
    loss = InfoNCE(0.07, smoothing)
    value, expected = loss(fc), infonce_by_loop(fc, 0.07, smoothing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(torch.autograd.grad(value, fc)[0], torch.autograd.grad(expected, fc)[0], atol=1e-5)


def test_infonce_learns_its_temperature_and_keeps_it_above_a_hundredth():
    torch.manual_seed(0)
    fc = F.normalize(torch.randn(14, 6))
    loss = InfoNCE(0.07)
    loss(fc).backward()
    step = 1e-3
    colder, warmer = (infonce_by_loop(fc, 0.07 * math.exp(sign * step), 0.0) for sign in (-1, 1))
    slope = (colder - warmer) / (2 * step)
    assert loss.log_scale.grad.item() == pytest.approx(slope.item(), rel=1e-2)
    assert InfoNCE(0.001).temperature().item() == pytest.approx(0.01)


def test_infonce_of_collapsed_embeddings_is_the_logarithm_of_the_batch():
    fc = F.normalize(torch.ones(16, 6))
    assert InfoNCE()(fc).item() == pytest.approx(math.log(8))
    assert collapsed_value(InfoNCE(), 8) == pytest.approx(math.log(8))
    assert collapsed_value(build_contrastive("triplet", margin=0.7), 8) == pytest.approx(1.4)
    with pytest.raises(ValueError, match="at least 2 places"):
        InfoNCE()(fc[:2])


def multi_similarity_by_loop(fc, alpha=2, beta=50, base=0.5):
    """Wang et al., "Multi-Similarity Loss", CVPR 2019, equation 15, all pairs across the modalities."""
    places, total = len(fc) // 2, 0
    for anchors, others in ((fc[:places], fc[places:]), (fc[places:], fc[:places])):
        scores = anchors @ others.T
        for i in range(places):
            wrong = sum(torch.exp(beta * (scores[i, j] - base)) for j in range(places) if j != i)
            right = torch.exp(-alpha * (scores[i, i] - base))
            total = total + (torch.log(1 + right) / alpha + torch.log(1 + wrong) / beta) / places / 2
    return total


def angular_by_loop(fc, degrees=40):
    """Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017, equation 8, all negatives of a pair across."""
    places, total, squared = len(fc) // 2, 0, math.tan(math.radians(degrees)) ** 2
    for anchors, others in ((fc[:places], fc[places:]), (fc[places:], fc[:places])):
        for i in range(places):
            both = anchors[i] + others[i]
            terms = [
                4 * squared * (both * others[j]).sum() - 2 * (1 + squared) * (anchors[i] * others[i]).sum()
                for j in range(places)
                if j != i
            ]
            total = total + torch.log(1 + sum(term.exp() for term in terms)) / places / 2
    return total


@pytest.mark.parametrize(
    "name, by_loop", [("multi-similarity", multi_similarity_by_loop), ("angular", angular_by_loop)]
)
def test_the_librarys_losses_are_called_across_the_modalities(name, by_loop):
    pytest.importorskip(
        "pytorch_metric_learning", reason="pytorch-metric-learning is not installed (requirements-optional.txt)"
    )
    torch.manual_seed(0)
    raw = torch.randn(14, 6).requires_grad_()  # the library normalises once more: compare the gradients before it
    value, expected = build_contrastive(name)(F.normalize(raw)), by_loop(F.normalize(raw))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(torch.autograd.grad(value, raw)[0], torch.autograd.grad(expected, raw)[0], atol=1e-4)


@pytest.mark.parametrize("apart", [0, 4])
def test_distance_weighted_triplets_pull_the_modalities_together(apart):
    """Also where they lie so far apart that every negative is beyond the sampling's cutoff, and no triplet is found."""
    pytest.importorskip(
        "pytorch_metric_learning", reason="pytorch-metric-learning is not installed (requirements-optional.txt)"
    )
    torch.manual_seed(0)
    fc = torch.randn(32, 6)
    fc[:, 0] += torch.tensor([apart, -apart]).repeat_interleave(16)
    fc.requires_grad_()
    loss, optimizer = build_contrastive("distance-weighted"), torch.optim.SGD([fc], lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(F.normalize(fc)).backward()
        optimizer.step()
    opt, sar = F.normalize(fc.detach()).chunk(2)
    assert ((sar @ opt.T).argmax(1) == torch.arange(16)).float().mean() > 0.9


def test_a_loss_of_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(InputError, match="-m pip install -r .*requirements-optional.txt"):
        build_contrastive("angular")


def test_weight_decay_spares_the_loss_and_with_adamw_the_vectors():
    model, loss = PseudoSiamese("resnet18"), InfoNCE()
    for optim in ("sgd", "adamw"):
        groups = build_optimizer(model, optim, 0.1, 0.2, loss).param_groups
        of = {id(p): group for group in groups for p in group["params"]}
        assert len(of) == len(list(model.parameters())) + 1, "every parameter in one group"
        assert of[id(loss.log_scale)]["weight_decay"] == 0 and of[id(loss.log_scale)]["lr"] == 0.2
        assert of[id(model.embedding[0].weight)]["weight_decay"] > 0 and of[id(model.embedding[0].weight)]["lr"] == 0.2
        assert (of[id(model.embedding[1].weight)]["weight_decay"] == 0) == (optim == "adamw")
        assert groups[0]["lr"] == 0.1, "what a run logs is the backbone's"


def test_the_grid_knows_where_things_are_and_the_average_does_not():
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 6, 6)
    grid, average = PseudoSiamese("resnet18", pooling="grid"), PseudoSiamese("resnet18", pooling="avg")
    expected = torch.stack(
        [maps[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(3) for j in range(3)], 2
    )
    assert torch.allclose(grid.pool(maps), torch.cat([expected.flatten(1), maps.amax((2, 3))], 1), atol=1e-6)
    assert torch.allclose(average.pool(maps), average.pool(maps.flip(3)), atol=1e-6)
    assert not torch.allclose(grid.pool(maps), grid.pool(maps.flip(3)), atol=1e-2)
    with torch.no_grad():
        pool5, fc, _ = grid.eval()(torch.rand(2, 3, 96, 96))
    assert pool5.shape == (2, grid.pool5_dim) and fc.shape == (2, 512)


def test_layer4_at_torchvisions_stride():
    model = PseudoSiamese("resnet18", layer4_stride=2).eval()
    sizes = []
    for stage in model.shared_stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64))
    assert sizes == [16, 16, 8, 4, 2]


# Hard negatives ------------------------------------------------------------------------------------------------

class Lookup(torch.nn.Module):
    """A model whose embedding is planted: the pixel's value is the row of the table."""

    def __init__(self, table):
        super().__init__()
        self.table = F.normalize(table)

    def forward(self, opt=None, sar=None):
        images = opt if opt is not None else sar
        rows = (images[:, 0, 0, 0] * 255).round().long()
        return Embedded(self.table[rows], self.table[rows], [])


def numbered(places):
    """Places 0 .. places - 1: optical pixels hold the number, SAR pixels 100 + the number, SAR rows reversed."""
    numbers = torch.arange(places, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 4, 3)
    names = [f"p{i}" for i in range(places)]
    return Pairs(names, numbers, names[::-1], numbers.flip(0) + 100, torch.arange(places).flip(0), names)


def test_hard_negatives_really_are_the_nearest():
    torch.manual_seed(0)
    pairs, table = numbered(40), torch.randn(200, 5)
    negatives = HardNegatives(pairs, 3, every=2)
    model, autocast = Lookup(table), lambda: torch.autocast("cpu", enabled=False)
    negatives.refresh(model, 0, CPU, autocast)
    negatives.refresh(model, 1, CPU, autocast)
    assert negatives.nearest is None, "nothing is known before the first look"
    negatives.refresh(model, 2, CPU, autocast)
    scores = F.normalize(table[100:140]) @ F.normalize(table[:40]).T        # SAR queries optical
    for place in range(40):
        others = sorted((other for other in range(40) if other != place), key=lambda other: -scores[place, other])
        assert negatives.nearest[place].tolist() == others[:3]


def test_no_place_comes_twice_and_the_nearest_stand_together():
    pairs = numbered(40)
    negatives = HardNegatives(pairs, 3)
    cliques = [[place // 4 * 4 + (place + i) % 4 for i in (1, 2, 3)] for place in range(40)]      # of four
    negatives.nearest = torch.tensor(cliques)
    for seed in range(5):
        order = negatives.order(torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(40))
        assert all(len({place // 4 for place in group}) == 1 for group in order.view(10, 4).tolist())
    batches = list(draw_batches(pairs, 8, 0, 0, 0, "cpu", torch.Generator(), negatives.order))
    seen = torch.cat([opt[:, 0, 0, 0] for opt, sar, places in batches])
    assert len(seen.unique()) == 40
    for opt, sar, places in batches:
        assert torch.equal((opt[:, 0, 0, 0] * 255).round().long(), places)
        assert len((opt[:, 0, 0, 0] * 255).round().div(4, rounding_mode="floor").unique()) == 2, (
            "two cliques in a batch of eight"
        )
        assert torch.allclose(sar, opt + 100 / 255, atol=1e-6)


def test_hard_negatives_that_cannot_be_had_are_an_error():
    with pytest.raises(InputError, match="choose at most 39"):
        HardNegatives(numbered(40), 40)


def test_hard_negatives_among_windows_are_an_error(demo, tmp_path):
    done = script("code_Con/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--windows",
                  "--hard_negatives", "2")
    assert done.returncode == 2 and "choose one of them" in done.stderr and "Traceback" not in done.stderr


# Gradient caching ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("chunk", [1, 3, 4, 8])
def test_the_cached_gradient_is_the_uncached_one(chunk):
    torch.manual_seed(0)
    loss = InfoNCE()
    model = PseudoSiamese("resnet18", specify_num=1).eval()           # else BatchNorm's statistics are the chunk's
    opt, sar = torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32)
    gradients = []
    for network in (model, copy.deepcopy(model)):
        whole = network is model
        fc = network(opt, sar).fc if whole else in_chunks(network, opt, sar, chunk)
        loss(fc).backward()
        gradients.append([fc.detach(), *(p.grad for p in network.parameters())])
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, atol=1e-5 * max(1, one.abs().max().item()))


def test_caching_is_for_a_single_process(monkeypatch):
    monkeypatch.setattr("chunks.world_size", lambda: 2)
    with pytest.raises(InputError, match="single process"):
        in_chunks(None, torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8), 2)


def test_caching_keeps_the_embeddings_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        in_chunks(PseudoSiamese("resnet18"), torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32), 2)
    assert sum(kept) <= 2 * 8 * 3 * 32 * 32, "no more than the images themselves"


# The eight symmetries and the views ------------------------------------------------------------------------------

def test_pairs_at_all_eight_symmetries_both_images_alike():
    image = torch.arange(16, dtype=torch.uint8).view(1, 4, 4, 1).expand(1, 4, 4, 3)
    pairs = Pairs(["p"], image, ["p"], image + 100, torch.tensor([0]), ["p"], symmetries=True)
    opt, sar = pairs.draw(torch.zeros(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert torch.equal(sar, opt + 100)
    eight = apply_symmetry(image.expand(8, 4, 4, 3), torch.arange(8))
    assert {tuple(x.flatten().tolist()) for x in opt} == {tuple(x.flatten().tolist()) for x in eight}


@pytest.mark.parametrize("tta", VIEWS)
def test_the_score_of_views(tta):
    """Joined: the mean over the views of the score of equal views. Averaged: the score of mean vectors."""
    torch.manual_seed(0)
    model = PseudoSiamese("resnet18").eval()
    images = (torch.rand(2, 3, 16, 16, 3) * 255).to(torch.uint8)
    autocast = partial(torch.autocast, "cpu", enabled=False)
    query, gallery = (embed(model, x, m, CPU, autocast, tta=tta)["FC"] for x, m in zip(images, ("sar", "opt")))
    views = VIEWS[tta].views
    assert torch.equal(views[0](torch.ones(1, 3, 4, 4)), torch.ones(1, 3, 4, 4))
    assert torch.allclose(query.norm(dim=1), torch.ones(3), atol=1e-5)
    with torch.no_grad():
        x, y = (i.permute(0, 3, 1, 2).float() / 255 for i in images)
        q, g = ([model(**{m: view(i)}).fc for view in views] for i, m in ((x, "sar"), (y, "opt")))
    if tta in ("none", "flip", "symmetries"):
        expected = torch.stack([a @ b.T for a, b in zip(q, g)]).mean(0)
    else:
        expected = F.normalize(sum(q)) @ F.normalize(sum(g)).T
    assert len(views) == {"none": 1, "flip": 2, "symmetries": 8, "exchange": 5, "guided": 2, "structure": 2}[tta]
    assert torch.allclose(query @ gallery.T, expected, atol=1e-5)


def test_views_are_different_images():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 16, 16)
    for views in VIEWS.values():
        seen = [view(image) for view in views.views]
        assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(seen) for b in seen[:i])
        assert all(view.shape == image.shape for view in seen)


# The scripts -----------------------------------------------------------------------------------------------------

def test_contrastive_training_and_its_row_at_test_time(demo, tmp_path):
    flags = [
        "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--lr", "1e-3", "--lr_head", "1e-3",
        "--symmetries",
    ]
    done = script("code_Con/train.py", *flags, "--hard_negatives", "3", "--chunk", "4", "--epochs", "5")
    assert done.returncode == 0, done.stderr
    assert "contrastive" in (tmp_path / "run/epochs.csv").read_text().splitlines()[0]
    tested = script(
        "code_Con/test.py", "--run", tmp_path / "run", "--tta", "symmetries", "--result_path", tmp_path / "row/seed0"
    )
    assert tested.returncode == 0, tested.stderr
    assert {file.name for file in (tmp_path / "row/seed0").iterdir()} == {"args.json", "metrics.json", "retrieval.json"}
    row = "--run", tmp_path / "run", "--result_path", tmp_path / "row/seed0"
    again = script("code_Con/test.py", *row, "--tta", "symmetries")
    assert "is finished" in again.stdout and not (tmp_path / "run/test.json").exists()
    other = script("code_Con/test.py", *row)
    assert other.returncode == 2 and "holds other figures (tta symmetries there, none here)" in other.stderr


def test_a_stopped_run_goes_on_with_the_same_hard_negatives(demo, tmp_path):
    def command(out):
        return [str(ROOT / "code_Con/train.py"), "--data_path", str(demo), "--result_path", str(out), *SMALL,
                "--lr", "1e-3", "--lr_head", "1e-3", "--loss", "infonce", "--hard_negatives", "3", "--epochs", "8"]

    assert script(*command(tmp_path / "whole")).returncode == 0
    # The look at the embeddings was before the fifth epoch, and the sixth needs it.
    Program(*command(tmp_path / "run")).stop_when(lambda: has_logged(tmp_path / "run", "epoch 5:"), signal.SIGTERM)
    again = script(*command(tmp_path / "run"))
    assert "going on from epoch" in again.stdout, again.stderr
    one, other = (torch.load(tmp_path / name / "weights.pt", weights_only=True)["model"] for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_part_is_one_square_of_both_images_and_may_lie_anywhere():
    opt = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(100):
        part_opt, part_sar = random_part((opt, opt + 0.5), 3, generator)
        top, left = divmod(int(part_opt[0, 0, 0, 0]), 5)
        assert torch.equal(part_opt, opt[:, :, top:top + 3, left:left + 3])
        assert torch.equal(part_sar, part_opt + 0.5), "the two images of a pair lost their alignment"
        corners.add((top, left))
    assert corners == {(top, left) for top in range(3) for left in range(3)}


@pytest.mark.parametrize("side", [None, 5, 9])
def test_a_part_as_large_as_the_image_is_the_image(side):
    opt, sar = torch.rand(2, 2, 3, 5, 5)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert all(part is image for part, image in zip(random_part((opt, sar), side, generator), (opt, sar)))
    assert torch.equal(generator.get_state(), state), "runs on whole images draw what they drew before"


# Pairs that are not quite aligned -------------------------------------------------------------------------------------

def test_pairs_that_are_not_moved_are_the_middle_of_the_images():
    opt, sar = torch.rand(2, 8, 3, 20, 20)
    moved_opt, moved_sar = misaligned(opt, sar, 12, 0, 0, torch.Generator().manual_seed(0))
    assert torch.allclose(moved_opt, opt[:, :, 4:16, 4:16], atol=1e-5)
    assert torch.allclose(moved_sar, sar[:, :, 4:16, 4:16], atol=1e-5)


def test_one_image_of_each_pair_is_turned_and_scaled_about_its_middle():
    y, x = torch.meshgrid(torch.arange(40.0) - 19.5, torch.arange(40.0) - 19.5, indexing="ij")
    images = torch.stack([x, y, torch.ones_like(x)]).expand(60, 3, 40, 40)               # each pixel says where it is
    opt, sar = misaligned(images, images, 20, 15, 0.2, torch.Generator().manual_seed(0))
    straight = images[:1, :, 10:30, 10:30]
    opt_stays, sar_stays = ((moved == straight).flatten(1).all(1) for moved in (opt, sar))
    assert (opt_stays ^ sar_stays).all() and 15 < opt_stays.sum() < 45, "a coin says which of the two"
    moved = torch.where(opt_stays.view(-1, 1, 1, 1), sar, opt)
    factors, angles = [], []
    for image in moved:
        matrix = torch.linalg.lstsq(straight[0, :2].flatten(1).T, image[:2].flatten(1).T).solution.T
        turned = matrix @ straight[0, :2].flatten(1)
        assert torch.allclose(turned, image[:2].flatten(1), atol=1e-3), "a turn and a scale"
        factors.append(matrix.det().sqrt().item())
        angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
        assert torch.allclose(image[:2].mean((1, 2)), torch.zeros(2), atol=1e-3), "about the middle"
    assert min(angles) < -10 and max(angles) > 10 and max(map(abs, angles)) <= 15
    assert min(factors) < 0.88 and max(factors) > 1.13 and 1 / 1.2 <= min(factors) and max(factors) <= 1.2


@pytest.mark.parametrize("part, degrees, scale", [(64, 15, 0.15), (48, 0, 0.1), (31, 90, 0), (20, 0, 0)])
def test_what_is_cut_holds_every_turned_part(part, degrees, scale):
    side = side_to_turn(part, degrees, scale, 1000)
    assert side >= part and (side - part) % 2 == 0
    images = torch.ones(50, 3, side, side)
    images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1] = 0, 0, 0, 0
    inner = misaligned(F.pad(images[..., 1:-1, 1:-1], (1,) * 4, value=1.0), images, part, degrees, scale,
                       torch.Generator().manual_seed(0))
    assert side == part or inner[1].min() > 0, "the border is never seen whole"
    assert side_to_turn(part, degrees, scale, part) == part, "an image that is no larger has its borders mirrored"


# InfoNCE first --------------------------------------------------------------------------------------------------------

def test_infonce_first_then_the_loss():
    torch.manual_seed(0)
    fc, triplet, infonce = F.normalize(torch.randn(14, 6)), BatchHardTriplet(0.5), InfoNCE()
    loss = AfterInfoNCE(triplet, infonce, epochs=2)
    for epoch in range(4):
        loss.start_epoch(epoch)
        assert torch.equal(loss(fc), (infonce if epoch < 2 else triplet)(fc))
    assert len(list(loss.parameters())) == 1


def test_a_stopped_run_that_sees_both_goes_on_as_if_nothing_had_happened(demo, tmp_path):
    def command(out):
        return [str(ROOT / "code_Con/train.py"), "--data_path", str(demo), "--result_path", str(out), *SMALL,
                *"--lr 1e-3 --lr_head 1e-3 --input both --left_out 0.4 --toned 0.3 --turn 15 --rescale 0.15".split(),
                *"--pooling cells --stages 3 --specify_num 1 --part 24 --infonce_first 0.5 --epochs 4".split()]

    assert script(*command(tmp_path / "whole")).returncode == 0
    Program(*command(tmp_path / "run")).stop_when(lambda: has_logged(tmp_path / "run", "epoch 2:"), signal.SIGTERM)
    again = script(*command(tmp_path / "run"))
    assert "going on from epoch" in again.stdout, again.stderr
    one, other = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("whole", "run"))
    assert one["input"] == "both"
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_step_shows_depends_on_its_number_and_the_process_alone(monkeypatch, rank):
    """So a run that goes on shows what it would have shown, of several processes each its own."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    images = torch.randint(256, (24, 20, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [str(i) for i in range(24)]
    pairs, blank = Pairs(names, images, names, images.flip(1), torch.arange(24), names), torch.zeros(1, 3, 1, 1)

    def shown(first_step):
        generator = torch.Generator()
        for opt, sar, _ in draw_batches(pairs, 8, 0, 0, first_step, CPU, generator):
            opt, sar = random_part((opt, sar), 16, generator)
            both = misaligned(opt, sar, 12, 15, 0.1, generator)
            yield torch.cat([with_shown(kind, blank, 0.4, 0.4, generator) for kind in both])

    whole, gone_on = list(shown(0)), list(shown(1))
    assert len(whole) == 3 and all(torch.equal(a, b) for a, b in zip(whole[1:], gone_on, strict=True))


@pytest.mark.parametrize("flags, reason", [
    ("--input rgb --left_out 0.2", "--input rgb has nothing beside it"),
    ("--input structure --toned 0.5", "--input structure has nothing beside it"),
    ("--input both --left_out 0.8 --toned 0.5", "are more than all images"),
    ("--turn 400", "at most 180 degrees"),
])
def test_flags_that_would_do_nothing_are_refused(tmp_path, flags, reason):
    done = script("code_Con/train.py", "--data_path", tmp_path, "--result_path", tmp_path / "run", *flags.split())
    assert done.returncode == 2 and reason in done.stderr and not (tmp_path / "run").exists(), done.stderr
