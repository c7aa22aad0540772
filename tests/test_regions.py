"""Regions: trained in one, evaluated in another, adapted without the other's pairs."""
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from batchnorm import take_statistics
from conftest import has_logged, kill_when, script
from branches import Branches, contrastive_loss, difference_loss, reconstruction_loss
from branches import of_regions as rows_of_regions
from hhl_loss import hhl_triplet
from memory import ExemplarMemory, invariance_loss, neighbour_weights
from pseudo_pairs import PseudoPairs, mutual_neighbours
from querybank import NEIGHBOURS, without_hubs
from restyle import restyle
from shared import options
from shared.adapting.unpaired import load_target
from shared.dataset import load_data, load_splits
from shared.evaluate import embed, retrieval_metrics
from shared.filters import EXCHANGES
from shared.model import PseudoSiamese, channels_of, load_model, start_from
from shared.plumbing.device import autocast
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors
from shared.reading.fingerprint import fingerprint
from shared.reading.windows import apply_symmetry
from test_dataset import make_data
from tone_pairs import pairs_of_tones
from whitening import SHRINK, whitening
from without_training import embed_adapted

CPU = torch.device("cpu")
SMALL = "--recipe cpu --img_size 32 --batch_size 6 --epochs 3 --symmetries --region left --target_region right".split()


@pytest.fixture
def two_regions(tmp_path):
    """Twelve training places of two tiles in each of two regions, four test places in each."""
    data = make_data(tmp_path / "d", train=24, test=8)
    names = {split: sorted(file.stem for file in (data / split / "opt").iterdir()) for split in ("train", "test")}
    rows = [f"{split},{name},{'ab'[2 * i // len(places)]},{'ab'[2 * i // len(places)]}{i % 2}\n"
            for split, places in names.items() for i, name in enumerate(places)]
    (data / "pairs.csv").write_text("split,id,region,tile\n" + "".join(rows))
    return data


def parsed(data, *flags):
    return options.adaptation("").parse_args(["--data_path", str(data), "--img_size", "20", *flags])


# Where is trained, and where evaluated -------------------------------------------------------------------------------

def test_pairs_come_from_the_source_and_test_places_from_the_target(two_regions):
    pairs, evaluation = load_data(parsed(two_regions, "--region", "a", "--target_region", "b"))
    everything, test = load_splits(two_regions, ("train", "test"), 20, 1)
    assert pairs.names == everything.names[:12] and set(pairs.regions) == {"a"}
    assert evaluation.names == test.names[4:] and set(evaluation.regions) == {"b"}
    assert torch.equal(pairs.opt, everything.opt[:12]) and torch.equal(pairs.sar, everything.sar[:12])
    assert torch.equal(evaluation.sar, test.sar[4:])
    held_out = load_data(parsed(two_regions, "--region", "a", "--target_region", "b", "--validate", "0.5"))[1]
    assert set(held_out.regions) == {"a"} and len(held_out) == 6, "choices are made on the source"


def test_another_data_set_may_be_the_target(two_regions, tmp_path):
    other = make_data(tmp_path / "other", train=4, test=5)
    pairs, evaluation = load_data(parsed(two_regions, "--region", "a", "--target_path", str(other)))
    assert len(pairs) == 12 and len(evaluation) == 5
    target = load_target(parsed(two_regions, "--target_path", str(other)))
    assert len(target.opt) == len(target.sar) == 2


def test_a_region_that_is_not_there_is_named(two_regions, tmp_path):
    with pytest.raises(InputError, match="--region c: pairs.csv has the regions a, b"):
        load_data(parsed(two_regions, "--region", "a", "c"))
    with pytest.raises(InputError, match="--target_region c: pairs.csv has the regions a, b"):
        load_data(parsed(two_regions, "--target_region", "c"))
    plain = make_data(tmp_path / "plain")
    with pytest.raises(InputError, match="--region a: pairs.csv has no region in a column"):
        load_data(parsed(plain, "--region", "a"))


@pytest.mark.parametrize("seed", range(4))
def test_no_pair_of_the_target_leaks(two_regions, seed):
    """Not a place, and not a tile, of which both images could be met; nothing of the source; nothing to test on."""
    args = parsed(two_regions, "--region", "a", "--target_region", "b", "--seed", str(seed))
    target = load_target(args)
    train, test = load_splits(two_regions, ("train", "test"), 20, 1)
    region = dict(zip(train.names, train.regions))
    assert {region[name] for name in [*target.opt_names, *target.sar_names]} == {"b"}
    assert not set(target.opt_names) & set(target.sar_places) and not set(target.opt_tiles) & set(target.sar_tiles)
    assert len(target.opt) == len(target.sar) == 6
    assert not any(torch.equal(image, other) for image in target.opt for other in test.opt)


def test_a_target_whose_pairs_are_known_is_refused(two_regions):
    for flags in ([], ["--region", "a"], ["--target_region", "b"], ["--region", "a", "--target_region", "a"]):
        with pytest.raises(InputError, match="part of the source"):
            load_target(parsed(two_regions, *flags))


@pytest.mark.parametrize("region, is_refused", [(None, True), (["b"], True), (["a", "b"], True), (["a"], False)])
def test_a_start_that_knows_the_targets_pairs_is_refused(two_regions, tmp_path, region, is_refused):
    settings = {"data": {"train": fingerprint(two_regions, "train")}, "region": region}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/args.json").write_text(json.dumps(settings))
    args = parsed(two_regions, "--region", "a", "--target_region", "b", "--start", str(tmp_path / "run"))
    with pytest.raises(InputError, match="has learned from pairs of the target") if is_refused else nullcontext():
        assert load_target(args)


def test_target_images_turn_as_the_pairs_do(two_regions):
    flags = "--region", "a", "--target_region", "b"
    assert not load_target(parsed(two_regions, *flags)).symmetries
    target = load_target(parsed(two_regions, *flags, "--symmetries"))
    seen = set()
    for seed in range(10):
        for modality, images in zip(("opt", "sar"), (target.draw(6, torch.Generator().manual_seed(seed)),) * 2):
            drawn, rows = (images[0], images[2]) if modality == "opt" else (images[1], images[3])
            for image, row in zip(drawn, rows):
                turned = apply_symmetry(getattr(target, modality)[row].expand(8, -1, -1, -1), torch.arange(8))
                seen |= {(modality, k) for k in range(8) if torch.equal(image, turned[k])}
    assert len(seen) == 16


# --start -------------------------------------------------------------------------------------------------------------

def test_start_brings_the_embedding_and_refuses_another_network(demo, tmp_path):
    done = script("code/train.py", "--data_path", demo, "--recipe", "cpu", "--img_size", "32", "--batch_size", "8",
                  "--epochs", "1", "--result_path", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    model = PseudoSiamese("resnet18")
    start_from(model, tmp_path / "run")
    saved = load_tensors(tmp_path / "run/weights.pt", "")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="holds another network .pooling max there, grid here.: give the flags"):
        start_from(PseudoSiamese("resnet18", pooling="grid"), tmp_path / "run")


# AdaBN, pseudo-pairs --------------------------------------------------------------------------------------------------

def test_batchnorm_takes_the_targets_statistics_and_nothing_else(two_regions):
    target = load_target(parsed(two_regions, "--region", "a", "--target_region", "b"))
    model = PseudoSiamese("resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    take_statistics(model, target, CPU, autocast(CPU, "off"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
                           for name in changed)
    # The first layer's input is known: its convolution of all images, optical and SAR.
    first = model.shared_stages[0]
    images = torch.cat([target.opt, target.sar]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = first[0]((images - model.mean) / model.std)
    assert torch.allclose(first[1].running_mean, maps.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(first[1].running_var, maps.var((0, 2, 3)), rtol=1e-3)
    assert first[1].momentum == 0.1 and not model.training


def test_mutual_neighbours_are_each_others_nearest():
    opt = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    sar = F.normalize(torch.tensor([[0.1, 1.0], [1.0, 0.02]]))
    assert mutual_neighbours(opt, sar).tolist() == [[0, 1], [2, 0]], "the second is nearest to none"
    torch.manual_seed(0)
    opt, sar = F.normalize(torch.randn(20, 8)), F.normalize(torch.randn(15, 8))
    scores = opt @ sar.T
    by_loop = [[i, j] for i in range(20) for j in range(15)
               if scores[i].argmax() == j and scores[:, j].argmax() == i]
    assert mutual_neighbours(opt, sar).tolist() == by_loop


def test_pseudo_pairs_are_found_where_a_common_direction_hides_them(monkeypatch):
    opt, sar = two_modalities(torch.Generator().manual_seed(0), places=100)
    monkeypatch.setattr("pseudo_pairs.embed", lambda model, images, *rest: {"FC": images})
    pseudo = PseudoPairs(SimpleNamespace(opt=opt, sar=sar))
    pseudo.renew(None, CPU, None)
    right = (pseudo.rows[:, 0] == pseudo.rows[:, 1]).sum()
    assert len(pseudo) > 80 and right > 0.95 * len(pseudo), (len(pseudo), right)
    plain = mutual_neighbours(opt, sar)
    assert (plain[:, 0] == plain[:, 1]).sum() < 20


def test_pseudo_pairs_stand_first_and_alone_count(two_regions):
    target = load_target(parsed(two_regions, "--region", "a", "--target_region", "b"))
    pseudo = PseudoPairs(target)
    pseudo.rows = torch.tensor([[0, 3], [4, 1], [2, 2]])
    random = torch.rand(2, 5, 3, 20, 20)
    opt, sar = pseudo.replace(*random, torch.Generator().manual_seed(0))
    assert torch.equal(opt[3:], random[0, 3:]) and torch.equal(sar[3:], random[1, 3:])

    def sorted_pixels(image):
        return (image * 255).round().flatten().sort().values

    wanted = {(i, j) for i, j in pseudo.rows.tolist()}
    seen = set()
    for a, b in zip(opt[:3], sar[:3]):
        seen |= {(i, j) for i, j in wanted
                 if torch.equal(sorted_pixels(a), target.opt[i].float().flatten().sort().values)
                 and torch.equal(sorted_pixels(b), target.sar[j].float().flatten().sort().values)}
    assert seen == wanted
    fc = F.normalize(torch.randn(10, 16)).requires_grad_()
    pseudo.loss(fc[:5], fc[5:], margin=0.5).backward()
    assert (fc.grad.abs().sum(1) > 0).tolist() == [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2
    pseudo.rows = pseudo.rows[:1]
    pseudo.replace(*random, torch.Generator())
    assert pseudo.loss(fc[:5], fc[5:], margin=0.5) == 0, "one pair has no negative"


# Restyled images ------------------------------------------------------------------------------------------------------

def test_a_restyled_image_has_the_other_ones_means_and_deviations_and_its_own_picture():
    generator = torch.Generator().manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(3, 3, 8, 8, generator=generator)
    others = 0.3 + 0.3 * torch.rand(3, 3, 8, 8, generator=generator) * torch.tensor([0.5, 1.0, 1.2]).view(1, 3, 1, 1)
    made = restyle(images, others)
    for image, other, restyled in zip(images, others, made):
        for channel in range(3):
            assert restyled[channel].mean().item() == pytest.approx(other[channel].mean().item(), abs=1e-5)
            assert restyled[channel].std().item() == pytest.approx(other[channel].std().item(), abs=1e-5)
            assert torch.corrcoef(torch.stack([image[channel].flatten(), restyled[channel].flatten()]))[0, 1] > 0.9999
    assert torch.allclose(restyle(images, images), images, atol=1e-6)
    flat = torch.full((1, 3, 8, 8), 0.5)
    of_mean = others[:1].mean((2, 3), keepdim=True).expand(1, 3, 8, 8)
    assert torch.allclose(restyle(flat, others[:1]), of_mean, atol=1e-5)


# Tones ----------------------------------------------------------------------------------------------------------------

def test_pairs_of_tones_hold_a_true_image_of_the_target_and_its_own_picture_in_the_others_style():
    generator = torch.Generator().manual_seed(0)
    opt = 0.3 + 0.4 * torch.rand(5, 3, 16, 16, generator=generator)
    sar = (0.4 + 0.2 * torch.rand(5, 1, 16, 16, generator=generator)).expand(-1, 3, -1, -1)
    paired_opt, paired_sar = pairs_of_tones(opt, sar, generator)
    assert torch.equal(paired_opt[:2], opt[:2]) and torch.equal(paired_sar[2:], sar[2:])
    made_sar, made_opt = paired_sar[:2], paired_opt[2:]
    assert torch.equal(made_sar[:, :1].expand_as(made_sar), made_sar), "SAR is grey"
    assert not torch.allclose(made_opt[:, 0], made_opt[:, 1], atol=0.01), "optical has colour"
    for made, style in ((made_sar, sar[:2]), (made_opt, opt[2:])):
        inside = (made > 0) & (made < 1)                              # what is cut to [0, 1] moves the mean a little
        assert inside.float().mean() > 0.97
        assert torch.allclose(made.mean((2, 3)), style.mean((2, 3)), atol=0.01)
    # The picture is the image's own: pixels of one value stay of one value, those of another image would not.
    for i in range(2):
        levels = torch.stack([opt[i, 0], opt[i, 1], opt[i, 2], (opt[i] * EXCHANGES[3].view(3, 1, 1)).sum(0)])
        orders = [level.flatten().argsort() for level in levels]
        jumps = [made_sar[i, 0].flatten()[order].diff().abs().sum() for order in orders]
        others = [made_sar[i, 0].flatten()[level.flatten().argsort()].diff().abs().sum() for level in opt[4]]
        assert min(jumps) < 0.2 * min(others), (jumps, others)
        jumps = made_opt[i, 1].flatten()[sar[2 + i, 0].flatten().argsort()].diff().abs().sum()
        assert jumps < 0.2 * made_opt[i, 1].flatten()[sar[0, 0].flatten().argsort()].diff().abs().sum()


# ARN ------------------------------------------------------------------------------------------------------------------

def test_the_difference_loss_is_zero_for_what_is_uncorrelated_and_largest_for_what_is_the_same():
    torch.manual_seed(0)
    common, private = torch.randn(6, 4, 3, 3), torch.randn(6, 5, 3, 3)
    hc, hp = common.mean((2, 3)), private.mean((2, 3))
    hc, hp = hc - hc.mean(0), hp - hp.mean(0)
    hc, hp = hc / hc.norm(dim=1, keepdim=True), hp / hp.norm(dim=1, keepdim=True)
    total = 0
    for i in range(4):
        for j in range(5):
            total += sum(hc[n, i] * hp[n, j] for n in range(6)) ** 2
    assert torch.allclose(difference_loss(common, private), total / 20, atol=1e-6)
    signs = torch.tensor([1.0, 1, -1, -1]).view(4, 1, 1, 1), torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1, 1)
    assert difference_loss(*signs) < 1e-10, "orthogonal over the batch"
    assert difference_loss(signs[0], signs[0]) > 1


def test_the_contrastive_loss_equals_a_loop():
    torch.manual_seed(1)
    fc = F.normalize(torch.randn(8, 6)).requires_grad_()
    same, other = [], []
    for i in range(4):
        for j in range(4):
            d = (fc[i] - fc[4 + j]).norm()
            (same if i == j else other).append(d ** 2 if i == j else torch.relu(1.2 - d) ** 2)
    by_loop = sum(same) / len(same) + sum(other) / len(other)
    loss = contrastive_loss(fc, margin=1.2)
    assert torch.allclose(loss, by_loop, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(value, fc)[0] for value in (loss, by_loop)), atol=1e-5)


def test_branches_are_copies_draw_the_maps_before_and_do_not_move_them():
    model = PseudoSiamese("resnet18", specify_num=1)
    inputs, outputs = channels_of(model)[-2:]
    branches = Branches(model.shared_stages[-1], inputs, outputs).eval()
    base = torch.randn(2, inputs, 4, 4)
    common = model.shared_stages[-1](base)
    for region in ("source", "target"):
        private, drawn = branches(base, common, region)
        assert torch.allclose(private, common) and drawn.shape == base.shape
    with torch.no_grad():
        branches.private["source"][0].conv1.weight.zero_()
    assert not torch.allclose(branches(base, common, "source")[0], branches(base, common, "target")[0])
    alone = Branches(model.shared_stages[-1], inputs, outputs, private=False)
    assert alone(base, common, "source")[0] is None and not len(alone.private)
    moved = base.clone().requires_grad_()
    drawn = torch.zeros_like(base, requires_grad=True)
    loss = reconstruction_loss(drawn, moved)
    loss.backward()
    assert moved.grad is None and torch.allclose(loss, base.square().mean())
    source, target = rows_of_regions(torch.arange(8))
    assert source.tolist() == [0, 1, 4, 5] and target.tolist() == [2, 3, 6, 7]


# HHL ------------------------------------------------------------------------------------------------------------------

def test_the_hhl_loss_equals_a_loop_over_all_negatives():
    torch.manual_seed(2)
    anchors, translations, others, source = (F.normalize(torch.randn(n, 6)) for n in (3, 3, 4, 5))
    total = 0
    for i in range(3):
        positive = ((anchors[i] - translations[i]) ** 2).sum()
        negatives = [translations[j] for j in range(3) if j != i] + [*others] + [*source]
        nearest = min(((anchors[i] - negative) ** 2).sum() for negative in negatives)
        total += max(0, 0.3 + positive - nearest) / 3
    assert torch.allclose(hhl_triplet(anchors, translations, others, source, 0.3), torch.as_tensor(total), atol=1e-6)
    # Each kind of negative counts.
    base = hhl_triplet(anchors, translations, others, source, 3.0)
    for near in ((anchors, translations, anchors.repeat(2, 1), source), (anchors, translations, others, anchors)):
        assert hhl_triplet(*near, 3.0) > base


# ECN ------------------------------------------------------------------------------------------------------------------

def test_memory_rows_move_by_the_share_and_stay_of_length_one():
    memory = ExemplarMemory(4, 3)
    fc = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    memory.update(fc, torch.tensor([2, 0]), keep=0.0)
    assert torch.equal(memory.rows, torch.tensor([[0, 1.0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]))
    memory.update(torch.tensor([[0, 0, 1.0]]), torch.tensor([2]), keep=0.6)
    assert torch.allclose(memory.rows[2], torch.tensor([0.6, 0, 0.4]) / (0.6 ** 2 + 0.4 ** 2) ** 0.5)
    assert torch.allclose(memory.logits(fc, 0.05)[0], memory.rows[:, 0] / 0.05)
    assert not memory.rows.requires_grad


def test_neighbours_weigh_as_the_paper_says():
    logits = torch.tensor([[5.0, 4, 3, 2, 1], [1, 2, 9, 4, 5]])
    weights = neighbour_weights(logits, torch.tensor([0, 0]), 3)
    third = 1 / 3
    assert torch.allclose(weights, torch.tensor([[1, third, third, 0, 0], [1, 0, third, 0, third]]))
    alone = neighbour_weights(logits, torch.tensor([3, 1]), 1)
    assert alone.tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    loss = invariance_loss(logits, weights)
    p = logits.softmax(1)
    by_hand = -sum((weights[i, j] * p[i, j].log()).item() for i in range(2) for j in range(5)) / 2
    assert abs(loss.item() - by_hand) < 1e-5


# The scripts ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Demo pairs of two regions: seen from the left and from the right; and images drawn of the right."""
    folder = tmp_path_factory.mktemp("sides")
    assert script("data/demo/prepare.py", folder / "data", "--train", "40", "--test", "16").returncode == 0
    done = script("code_HHL/train_generator.py", "--data_path", folder / "data", "--recipe", "cpu", "--img_size", "32",
                  "--batch_size", "4", "--epochs", "1", "--width", "4", "--result_path", folder / "gan")
    assert done.returncode == 0, done.stderr
    done = script("code_HHL/generate.py", "--run", folder / "gan", "--result_path", folder / "drawn")
    assert done.returncode == 0, done.stderr
    return folder


def weights_of(folder):
    return load_tensors(folder / "weights.pt", "")["model"]


METHODS = [("code_Adapt", "--coral 1 --critic 0.01 --pseudo_pairs 1 --restyle --tone_pairs 1 --part 16".split()),
           ("code_ARN", ["--part", "16"]),
           ("code_HHL", ["--target_images", "4", "--generated", "DRAWN", "--part", "16"]),
           ("code_ECN", ["--target_images", "4", "--generated", "DRAWN", "--neighbours_from", "1"])]


@pytest.mark.parametrize("folder, flags", METHODS, ids=[folder for folder, _ in METHODS])
def test_a_killed_adaptation_ends_as_one_that_was_not(folder, flags, sides, tmp_path):
    flags = [str(sides / "drawn") if flag == "DRAWN" else flag for flag in flags]
    command = [f"{folder}/train.py", "--data_path", sides / "data", *SMALL, *flags]
    done = script(*command, "--result_path", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kill_when(tmp_path / "killed", "epoch 2:", *command, "--result_path", tmp_path / "killed")
    assert not (tmp_path / "killed/metrics.json").exists()
    done = script(*command, "--result_path", tmp_path / "killed")
    assert done.returncode == 0 and has_logged(tmp_path / "killed", "going on"), done.stderr
    whole, killed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    test = script("code_Adapt/test.py", "--run", tmp_path / "whole", "--batchnorm", "target", "--whiten", "--querybank")
    assert test.returncode == 0 and "queries" in test.stdout, test.stderr
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    right = sum(region == "right" for region in load_splits(sides / "data", ("test",), 8, 1)[0].regions)
    assert metrics["queries"] == metrics["gallery"] == right < 16
    # The plain test evaluates where training did.
    plain = script(f"{folder}/test.py", "--run", tmp_path / "whole")
    assert plain.returncode == 0 and f"{right} queries" in plain.stdout
    assert json.loads((tmp_path / "whole/test.json").read_text())["FC"]["top1"] == metrics["FC"]["top1"]


def test_nothing_to_adapt_by_is_an_error(sides):
    done = script("code_Adapt/train.py", "--data_path", sides / "data", *SMALL)
    assert done.returncode == 2
    assert "nothing to adapt by: give --coral, --critic, --pseudo_pairs, --restyle or --tone_pairs" in done.stderr


def test_batchnorm_of_a_target_needs_one(demo, tmp_path):
    done = script("code/train.py", "--data_path", demo, "--recipe", "cpu", "--img_size", "32", "--batch_size", "8",
                  "--epochs", "1", "--result_path", tmp_path)
    assert done.returncode == 0, done.stderr
    for flags in (["--batchnorm", "target", "--whiten"], ["--agreement"]):
        done = script("code_Adapt/test.py", "--run", tmp_path, *flags)
        assert done.returncode == 2 and "was trained without a target" in done.stderr


def test_whitened_embeddings_score_as_by_the_inverse_covariance():
    """Inner products are those of (x - m)^T (C + shrink I)^-1 (y - m), normalised, worked out the long way."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    sample = torch.randn(200, 6, generator=generator) @ mix + 3
    vectors = torch.randn(5, 6, generator=generator) @ mix + 2
    mean = sample.mean(0)
    covariance = (sample - mean).T @ (sample - mean) / len(sample)
    inverse = torch.linalg.inv(covariance + SHRINK * covariance.trace() / 6 * torch.eye(6))
    products = (vectors - mean) @ inverse @ (vectors - mean).T
    norms = products.diagonal().sqrt()
    whitened = whitening(sample)(vectors)
    torch.testing.assert_close(whitened @ whitened.T, products / norms[:, None] / norms, rtol=1e-4, atol=1e-4)
    flat = torch.cat([sample, torch.zeros(200, 2)], 1)    # where the sample does not vary, nothing is blown up
    stray = torch.cat([vectors, torch.full((5, 2), 100.0)], 1)
    torch.testing.assert_close(whitening(flat)(stray) @ whitening(flat)(stray).T, whitened @ whitened.T,
                               rtol=1e-2, atol=1e-2)


def two_modalities(generator, places):
    """Embeddings of the same places, each modality with an offset of its own and much of two directions of noise."""
    content = torch.randn(places, 16, generator=generator)
    return [torch.cat([content + 0.1 * torch.randn(content.shape, generator=generator),
                       5 * torch.randn(places, 2, generator=generator) + offset], 1) for offset in (4, -4)]


def test_whitening_finds_places_that_a_common_direction_hid():
    generator = torch.Generator().manual_seed(0)
    opt, sar = two_modalities(generator, places=100)
    whiten_opt, whiten_sar = (whitening(sample) for sample in two_modalities(generator, places=100))
    truth = torch.arange(100)
    before = retrieval_metrics(sar, opt, truth, truth)["top1"]
    after = retrieval_metrics(whiten_sar(sar), whiten_opt(opt), truth, truth)["top1"]
    assert before < 20 and after > 90, (before, after)


def test_scores_without_hubs_equal_a_loop_and_a_hub_is_no_longer_first():
    generator = torch.Generator().manual_seed(0)
    query, gallery, bank = (F.normalize(torch.randn(n, 8, generator=generator)) for n in (6, 7, 30))
    gallery[2] = F.normalize(bank.sum(0), dim=0)                      # near to all queries of the bank
    q, g = without_hubs(query, gallery, bank)
    for i in range(6):
        for j in range(7):
            nearest = sorted((float(gallery[j] @ row) for row in bank), reverse=True)[:NEIGHBOURS]
            expected = float(query[i] @ gallery[j]) - sum(nearest) / len(nearest) / 2
            assert float(q[i] @ g[j]) == pytest.approx(expected, abs=1e-6)
    few = without_hubs(query, gallery, bank[:3])[1]
    assert torch.allclose(few[:, -1], -(gallery @ bank[:3].T).mean(1) / 2, atol=1e-6)
    # Every query shows 0.6 of its place and 0.8 of what all share, and one optical image shows nothing else than that.
    places, common = torch.eye(12)[:11], torch.eye(12)[11]
    sar, opt = 0.6 * places + 0.8 * common, torch.cat([places[:5], common[None]])
    assert (sar[:5] @ opt.T).argmax(1).tolist() == [5] * 5
    q, g = without_hubs(sar[:5], opt, bank=sar[5:])
    assert (q @ g.T).argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_agreement_counts_mutual_neighbours_of_the_targets_training_images(sides, tmp_path):
    done = script("code_Con/train.py", "--data_path", sides / "data", *SMALL, "--result_path", tmp_path)
    assert done.returncode == 0, done.stderr
    told = script("code_Adapt/test.py", "--run", tmp_path, "--agreement")
    train, = load_splits(sides / "data", ("train",), 32, 1)
    train = train.of_regions(["right"], "")
    model, _ = load_model(tmp_path, CPU)
    opt, sar = (embed(model, images, modality, CPU, autocast(CPU, "auto"))["FC"]
                for modality, images in (("opt", train.opt), ("sar", train.sar)))
    scores = sar @ opt.T
    mutual = sum(scores[:, scores[i].argmax()].argmax() == i for i in range(len(sar)))
    assert f"agreement: {100 * mutual / len(sar):.2f}%" in told.stdout, told.stdout + told.stderr
    assert 0 < mutual < len(sar) and not (tmp_path / "test.json").exists(), "the test split is not looked at"


def test_what_adapts_at_test_time_is_fitted_to_the_targets_images_each_modality_to_its_own(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sar, opt = two_modalities(generator, places=50)
    target_sar, target_opt = two_modalities(generator, places=80)

    def embed_pairs(model, images, *rest):
        return {"FC": F.normalize(images.sar)}, {"FC": F.normalize(images.opt)}

    monkeypatch.setattr("without_training.embed_pairs", embed_pairs)
    target = SimpleNamespace(sar=target_sar, opt=target_opt)
    monkeypatch.setattr("without_training.load_target_of", lambda run, args: target)
    run = SimpleNamespace(model=None, device=CPU, autocast=None)

    def adapted(whiten, querybank):
        args = SimpleNamespace(batchnorm="source", whiten=whiten, querybank=querybank, tta="none")
        query, gallery = embed_adapted(run, args, SimpleNamespace(sar=sar, opt=opt))
        return query["FC"], gallery["FC"]

    q, g, bank, other = (F.normalize(images) for images in (sar, opt, target_sar, target_opt))
    assert all(torch.equal(*both) for both in zip(adapted(False, False), (q, g)))
    assert all(torch.equal(*both) for both in zip(adapted(False, True), without_hubs(q, g, bank)))
    whitened = whitening(bank)(q), whitening(other)(g)
    assert all(torch.equal(*both) for both in zip(adapted(True, False), whitened))
    both_ways = without_hubs(*whitened, whitening(bank)(bank))
    assert all(torch.equal(*both) for both in zip(adapted(True, True), both_ways))
