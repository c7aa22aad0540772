"""code_SimSiam: the loss and what it stops, boxes and crops, and what is left behind for --init."""
import json
import re

import numpy as np
import pytest
import torch

from conftest import kill_when, script
from crops import Boxes, boxes_of, cut_crops, draw_crops, heat_of, vary
from probe import cut_out, probe, top1
from shared.dataset import Pairs
from shared.model import PseudoSiamese, initialize
from shared.plumbing.device import autocast
from simsiam import SimSiam, output_std, simsiam_loss

CPU = torch.device("cpu")
WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def simsiam_by_loop(z, p, views):
    """Image by image, view by view."""
    total = 0
    for a, b in views:
        for here, there in ((a, b), (b, a)):
            for i in range(z.shape[1]):
                x, y = p[here, i], z[there, i]
                total = total - (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt() / 2 / z.shape[1]
    return total / len(views)


@pytest.mark.parametrize("views", [((0, 1),), ((0, 1), (2, 3))])
def test_the_loss_and_its_gradient_equal_a_loop_with_constants(views):
    torch.manual_seed(0)
    z, p = torch.randn(4, 5, 6, requires_grad=True), torch.randn(4, 5, 6, requires_grad=True)
    value, expected = simsiam_loss(z, p, views), simsiam_by_loop(z.detach(), p, views)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, = torch.autograd.grad(value, p, retain_graph=True)
    assert torch.allclose(ours, torch.autograd.grad(expected, p)[0], atol=1e-6)
    assert torch.autograd.grad(value, z, allow_unused=True) == (None,), "the gradient stops at z"
    moving = simsiam_loss(z, p, views, stop_gradient=False)
    ours, = torch.autograd.grad(moving, z)
    assert torch.allclose(ours, torch.autograd.grad(simsiam_by_loop(z, p, views), z)[0], atol=1e-6) and ours.any()


def test_views_that_agree_have_the_least_loss_and_pairs_alone_count():
    z = torch.randn(4, 8, 16)
    z[1], z[3] = z[0], z[2]
    assert simsiam_loss(z, 3 * z, ((0, 1), (2, 3))).item() == pytest.approx(-1)
    assert simsiam_loss(z, z, ((0, 2),)).item() > -0.5


def test_the_output_scatters_or_has_collapsed():
    torch.manual_seed(0)
    assert output_std(torch.randn(2, 400, 64)).item() == pytest.approx(1, abs=0.02)
    assert output_std(torch.randn(2, 1, 64).expand(2, 400, 64)).item() == pytest.approx(0, abs=1e-5)


def test_each_batch_of_views_has_statistics_of_its_own():
    torch.manual_seed(0)
    model = SimSiam(PseudoSiamese("resnet18", pooling="avg")).train()
    opt, sar = [torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)], [torch.rand(3, 3, 32, 32)]
    z, p = model(opt, sar)
    assert z.shape == p.shape == (3, 3, 512) and z.dtype == torch.float32
    assert torch.allclose(z.mean(1), torch.zeros(3, 512), atol=1e-4), "the projector's last BatchNorm, for each batch"
    p.sum().backward()
    assert all(x.grad is None for x in model.backbone.embedding.parameters())
    assert all(x.grad is not None for x in model.backbone.backbone_parameters())


# Boxes and crops -----------------------------------------------------------------------------------------------------

def test_the_box_is_about_what_is_above_the_threshold():
    heat = torch.zeros(3, 10, 20)
    heat[0, 2:5, 4] = 0.5
    heat[0, 8, 15:18] = 0.15
    heat[1, 9, 19] = 1
    assert boxes_of(heat, 0.1).tolist() == [pytest.approx(box) for box in (
        [0.2, 0.2, 0.9, 0.9], [0.9, 0.95, 1, 1], [0, 0, 1, 1])]
    assert boxes_of(heat, 0.2)[0].tolist() == pytest.approx([0.2, 0.2, 0.5, 0.25])


def test_heat_is_the_channels_sum_from_least_to_most():
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, :, 0, 1], maps[0, 1, 1, 0] = 2.0, -8.0
    heat = heat_of(maps, 2)
    assert heat[0].flatten().tolist() == pytest.approx([0.5, 1, 0, 0.5])
    large = heat_of(maps, 8)
    assert large.shape == (1, 8, 8) and large.min() == 0 and large.max() == 1


def test_crops_stay_in_the_image_and_about_the_box():
    random = np.random.default_rng(0)
    boxes = torch.tensor([[0.6, 0.1, 0.8, 0.3]]).repeat(4000, 1)
    top, left, height, width = draw_crops(boxes, 0.6, random).T
    assert top.min() >= 0 and left.min() >= 0 and (top + height).max() <= 1 + 1e-6 and (left + width).max() <= 1 + 1e-6
    area, ratio = height * width, width / height
    assert 0.19 < area.min() < 0.25 and area.max() > 0.9 and 0.74 < ratio.min() and ratio.max() < 1.34
    middle = top + height / 2
    is_free = height < 0.4                                            # so small that the edge does not push it
    assert middle[is_free].min() >= 0.6 - 1e-6 and middle[is_free].max() <= 0.8 + 1e-6
    whole = draw_crops(WHOLE.repeat(4000, 1), 0.6, random)
    assert whole[:, 0].mean() < top.mean() - 0.05 and left.mean() < whole[:, 1].mean() - 0.05, "pulled to the box"


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_middles_scatter_by_beta(alpha):
    """Of Beta(a, a) the variance is 1 / (4 (2a + 1)): even at 1, at the box's edges below, in its middle above."""
    crops = draw_crops(WHOLE.repeat(20000, 1), alpha, np.random.default_rng(1))
    is_small = crops[:, 2] < 0.95
    place = (crops[:, 0] / (1 - crops[:, 2]))[is_small]
    assert place.mean().item() == pytest.approx(0.5, abs=0.01)
    assert place.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


def test_what_a_crop_shows():
    image = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8) / 8
    right = cut_crops(image, torch.tensor([[0.25, 0.5, 0.5, 0.5]]), 4)
    assert torch.allclose(right[0, 0], image[0, 0, :4, 4:], atol=1e-6)
    assert torch.allclose(cut_crops(image, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 8), image, atol=1e-6)
    down = cut_crops(image.transpose(2, 3), torch.tensor([[0.5, 0.0, 0.5, 0.5]]), 4)
    assert torch.allclose(down[0, 0], image.transpose(2, 3)[0, 0, 4:, :4], atol=1e-6)


def test_sar_keeps_its_colour_and_optical_images_do_not():
    images = torch.rand(40, 1, 16, 16).expand(40, 3, 16, 16) * 0.2 + 0.3
    sar = vary(images, True, np.random.default_rng(0))
    assert torch.allclose(sar[:, 0], sar[:, 2]) and not torch.allclose(sar, images)
    assert 0 <= sar.min() and sar.max() <= 1
    colours = images * torch.tensor([1.5, 1.0, 0.5]).view(3, 1, 1)
    opt = vary(colours, False, np.random.default_rng(0))
    is_grey = (opt.amax(1) - opt.amin(1)).amax((1, 2)) < 1e-6
    assert 2 <= is_grey.sum() <= 16, "a fifth of 40"


def test_boxes_come_from_the_network_as_it_was_at_the_renewal():
    torch.manual_seed(0)
    backbone = PseudoSiamese("resnet18", pooling="avg").eval()
    boxes, images = Boxes(backbone, 0.5, 0.2), torch.rand(4, 3, 64, 64)
    boxes.renew(backbone, 0, 10)
    assert torch.equal(boxes(opt=images), WHOLE.expand(4, 4)), "the first fifth: everywhere"
    due = []
    for epoch in range(10):
        boxes.is_ready.fill_(False)
        boxes.renew(backbone, epoch, 10)
        due.append(bool(boxes.is_ready))
    assert [epoch for epoch, was in enumerate(due) if was] == [2, 4, 6, 8]
    boxes.is_ready.fill_(True)
    before = boxes(sar=images)
    with torch.no_grad():
        maps = backbone(sar=images, with_maps=True).maps[-1]
        assert torch.equal(before, boxes_of(heat_of(maps, 64), 0.5)) and not torch.equal(before, WHOLE.expand(4, 4))
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(boxes(sar=images), before)


# The probe and the scripts -------------------------------------------------------------------------------------------

def test_the_probe_counts_nearest_neighbours():
    query = torch.eye(4)
    assert top1(query, query) == 100 and top1(query, query.flip(0)) == 0
    assert top1(query, query[[0, 1, 3, 2]]) == 50
    images = torch.arange(10, dtype=torch.uint8).view(1, 10, 1, 1).expand(2, 10, 10, 3).contiguous()
    view = cut_out(images)
    assert view.shape == images.shape and (view[:, 0] - view[:, -1] == 0).all() and view.min() > 0 and view.max() < 9

    torch.manual_seed(0)
    model = PseudoSiamese("resnet18", pooling="avg").eval()
    pixels = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8)
    names = [str(i) for i in range(12)]
    pairs = Pairs(names, pixels, names, pixels.clone(), torch.arange(12), names)
    figures = probe(model, pairs, CPU, autocast(CPU, "off"))
    assert figures.keys() == {"across", "within_opt", "within_sar"} and figures["across"] == 100


# On the CPU: resizing crops adds up gradients in any order on CUDA, so that no two runs there are the same to the bit.
FLAGS = ("--arch resnet18 --img_size 32 --init none --batch_size 12 --epochs 4 --probe_every 2 --amp off --device cpu "
         "--crops contrastive --renewal 0.25").split()


@pytest.fixture(scope="module")
def pretrained(demo, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "simsiam"
    done = script("code_SimSiam/train.py", "--data_path", demo, "--result_path", out, *FLAGS)
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_behind_what_init_takes(demo, pretrained, tmp_path):
    header = (pretrained / "epochs.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,lr,simsiam,output_std,seconds,across,within_opt,within_sar")
    assert json.loads((pretrained / "metrics.json").read_text())["evaluated_on"] == "nothing"
    saved = torch.load(pretrained / "weights.pt", weights_only=True)["model"]
    assert not any(name.startswith(("projector", "predictor", "copy")) for name in saved)
    model = PseudoSiamese("resnet18", specify_num=1, pooling="grid")
    head = model.embedding[0].weight.clone()
    initialize(model, str(pretrained))
    assert torch.equal(model.embedding[0].weight, head), "the backbone alone moves"
    for modality in ("opt", "sar"):
        for number, stage in enumerate(model.stages_of(modality)):
            for name, value in stage.state_dict().items():
                assert torch.equal(value, saved[f"shared_stages.{number}.{name}"]), (modality, number, name)
    done = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "from", "--init", pretrained,
                  *FLAGS[:4], "--batch_size", "8", "--epochs", "1")
    assert done.returncode == 0 and "FC: top-1" in done.stdout, done.stderr


def test_a_second_sitting_gives_the_same_bit_for_bit(demo, pretrained, tmp_path):
    out = tmp_path / "run"
    command = ["code_SimSiam/train.py", "--data_path", demo, "--result_path", out, *FLAGS]
    kill_when(out, "epoch 2:", *command)
    assert not (out / "weights.pt").exists()
    again = script(*command)
    assert again.returncode == 0 and "going on from epoch" in again.stdout, again.stderr
    ours, theirs = (torch.load(folder / "weights.pt", weights_only=True)["model"] for folder in (out, pretrained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_test_prints_the_probe_and_draws_boxes(pretrained):
    done = script("code_SimSiam/test.py", "--run", pretrained, "--places", "3")
    assert done.returncode == 0 and "12 places, chance 8.33%" in done.stdout, done.stderr
    shares = [int(share) for share in re.findall(r"k 0\.\d+: (\d+)%", done.stdout)]
    assert len(shares) == 10 and shares[:5] == sorted(shares[:5], reverse=True) and 0 < shares[4] <= shares[0] <= 100
    assert (pretrained / "pictures/boxes.png").read_bytes().startswith(b"\x89PNG")
    refused = script("code_SimSiam/test.py", "--run", pretrained, "--validation")
    assert refused.returncode == 2 and "held nothing out" in refused.stderr
