"""Generators between the modalities, and what is done with the images that they draw."""
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import has_logged, kill_when, script
from shared.adapting.generated import read_generated, true_and_generated, with_generated, write_images
from shared.dataset import load_splits
from shared.plumbing.errors import InputError
from shared.plumbing.files import load_tensors
from stargan import Discriminator, Generator, discriminator_terms, generator_terms, gradient_penalty
from test_dataset import make_data
from tools.compare_generated import frechet_distance

SMALL = "--recipe cpu --img_size 32 --batch_size 8".split()


# StarGAN -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("side", [32, 64, 96])
def test_shapes_and_ranges_of_the_generator_and_the_discriminator(side):
    images, modality = torch.rand(2, 3, side, side), torch.tensor([0, 1])
    drawn = Generator(width=8, blocks=2)(images, modality)
    assert drawn.shape == images.shape and drawn.dtype == torch.float32 and 0 <= drawn.min() and drawn.max() <= 1
    scores, logits = Discriminator(side, width=4)(images)
    assert scores.ndim == 3 and len(scores) == 2 and logits.shape == (2, 2)


def test_the_generator_is_told_what_to_draw():
    torch.manual_seed(0)
    network, images = Generator(width=8, blocks=1), torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1)
    optical, sar = network(images, torch.tensor([0, 1]))
    assert not torch.allclose(optical, sar)


def test_the_gradient_penalty_equals_one_by_hand():
    """Of a linear score the gradient is the same everywhere: its weights."""
    weights = torch.randn(3, 4, 4)

    def linear(images):
        return (images * weights).flatten(1).sum(1), None

    penalty = gradient_penalty(linear, torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4), torch.Generator())
    assert torch.allclose(penalty, (weights.norm() - 1) ** 2, rtol=1e-4)


def test_signs_of_the_adversarial_losses():
    """The discriminator wants true images to score high, the generator its own; each raises its term by its weight."""
    true, drawn = torch.full((2, 3, 8, 8), 0.9), torch.full((2, 3, 8, 8), 0.1)
    modality = torch.tensor([0, 1])

    def brightness(images):
        sure = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
        return images.mean((1, 2, 3)), sure

    weights = {"modality": 2.0, "penalty": 10.0, "cycle": 10.0}
    losing = discriminator_terms(brightness, true, modality, drawn, torch.Generator(), weights)
    assert torch.allclose(losing["score"], torch.tensor(0.1 - 0.9))
    assert torch.allclose(losing["modality"], 2 * F.cross_entropy(brightness(true)[1], modality))

    def darken(images, wanted):
        return images / 9

    winning = generator_terms(darken, brightness, true, modality, weights)
    assert torch.allclose(winning["score"], torch.tensor(-0.1))
    assert winning["modality"] > 15, "the discriminator sees the modality that was there, not the one wanted"
    assert torch.allclose(winning["cycle"], 10 * torch.tensor(0.9 - 0.9 / 81), rtol=1e-4)


def test_a_generator_learns_to_draw_the_other_modality():
    """Optical images are red, SAR images green: some steps of the very losses, and the colours change over."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network, discriminator = Generator(width=8, blocks=1), Discriminator(16, width=8)
    optimizers = [torch.optim.Adam(module.parameters(), 2e-3, betas=(0.5, 0.999))
                  for module in (network, discriminator)]
    weights = {"modality": 1.0, "penalty": 10.0, "cycle": 1.0}
    modality = torch.tensor([0, 1]).repeat_interleave(4)

    def take(optimizer, terms):
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()

    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1]])[modality].view(8, 3, 1, 1)
    for _ in range(60):
        images = (colours + 0.05 * torch.randn(8, 3, 16, 16, generator=generator)).clamp(0, 1)
        drawn = network(images, 1 - modality).detach()
        take(optimizers[1], discriminator_terms(discriminator, images, modality, drawn, generator, weights))
        take(optimizers[0], generator_terms(network, discriminator, images, modality, weights))
    with torch.no_grad():
        mean = network(images, 1 - modality).mean((2, 3))
    assert (mean[:4, 1] > mean[:4, 0] + 0.3).all() and (mean[4:, 0] > mean[4:, 1] + 0.3).all(), mean


# Diffusion -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def denoiser():
    pytest.importorskip("diffusers", reason="requirements-optional.txt is not installed")
    import denoiser
    return denoiser


def test_sampling_with_a_perfect_noise_predictor_gives_the_image_back(denoiser):
    scheduler = denoiser.build_scheduler()
    image, condition = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    seen = []

    def perfect(noisy, beside, times, modality):
        seen.append((beside, modality))
        kept = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - kept.sqrt() * (2 * image - 1)) / (1 - kept).sqrt()

    for steps in (1, 4, 20):
        drawn = denoiser.sample(perfect, scheduler, condition, torch.tensor([0, 1]), steps, torch.Generator())
        assert torch.allclose(drawn, image, atol=2e-3), steps
    assert len(seen) == 25 and all(torch.equal(beside, 2 * condition - 1) for beside, _ in seen)


def test_the_noise_loss_is_zero_for_who_knows_the_noise_and_one_for_who_says_nothing(denoiser):
    scheduler = denoiser.build_scheduler()
    images = torch.rand(64, 3, 8, 8)

    def perfect(noisy, beside, times, modality):
        kept = scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        return (noisy - kept.sqrt() * (2 * images - 1)) / (1 - kept).sqrt()

    def nothing(noisy, beside, times, modality):
        return torch.zeros_like(noisy)

    def loss(network):
        modality = torch.zeros(64, dtype=torch.int64)
        return denoiser.noise_loss(network, scheduler, images, images, modality, torch.Generator().manual_seed(0))

    assert loss(perfect) < 1e-3 and abs(loss(nothing) - 1) < 0.05


def test_the_cosine_schedule_is_the_papers(denoiser):
    scheduler = denoiser.build_scheduler()
    times = torch.tensor([0, 250, 500, 900])
    papers = torch.cos(((times + 1) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    papers = papers / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    assert torch.allclose(scheduler.alphas_cumprod[times], papers, atol=2e-3)


def test_the_denoiser_sees_the_condition_the_time_and_the_modality(denoiser):
    torch.manual_seed(0)
    network = denoiser.Denoiser(channels=(32, 32)).eval()
    noisy, condition = torch.randn(2, 1, 3, 16, 16)
    time, modality = torch.tensor([10]), torch.tensor([0])
    with torch.no_grad():
        noise = network(noisy, condition, time, modality)
        assert noise.shape == (1, 3, 16, 16) and noise.dtype == torch.float32
        for other in ((noisy, -condition, time, modality), (noisy, condition, time + 500, modality),
                      (noisy, condition, time, 1 - modality)):
            assert not torch.allclose(network(*other), noise, atol=1e-5)


# The scripts ---------------------------------------------------------------------------------------------------------

GENERATORS = [("code_HHL", "train_generator.py", ["--width", "4"], []),
              ("code_Diffusion", "train.py", ["--channels", "32", "32"], ["--steps", "2"])]


@pytest.mark.parametrize("folder, trains, flags, how", GENERATORS, ids=[folder for folder, *_ in GENERATORS])
def test_a_generator_is_killed_resumed_and_its_images_are_a_data_set(folder, trains, flags, how, demo, tmp_path):
    if folder == "code_Diffusion":
        pytest.importorskip("diffusers", reason="requirements-optional.txt is not installed")
    command = [f"{folder}/{trains}", "--data_path", demo, *SMALL, "--epochs", "3", *flags]
    done = script(*command, "--result_path", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kill_when(tmp_path / "killed", "epoch 2:", *command, "--result_path", tmp_path / "killed")
    done = script(*command, "--result_path", tmp_path / "killed")
    assert done.returncode == 0 and has_logged(tmp_path / "killed", "going on"), done.stderr
    whole, killed = (load_tensors(tmp_path / name / "weights.pt", "")["model"] for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())

    done = script(f"{folder}/generate.py", "--run", tmp_path / "whole", "--result_path", tmp_path / "drawn", *how)
    assert done.returncode == 0, done.stderr
    true = load_splits(demo, ("train", "test"), 32, 1)
    drawn = load_splits(tmp_path / "drawn", ("train", "test"), 32, 1)
    for ours, theirs in zip(drawn, true):
        assert ours.names == theirs.names and ours.regions == theirs.regions and not torch.equal(ours.opt, theirs.opt)
    took = json.loads((tmp_path / "drawn/generated.json").read_text())
    assert took["images"] == 72 and took["seconds_for_1000"] > 0 and took["peak_memory_MiB"] > 100
    again = script(f"{folder}/generate.py", "--run", tmp_path / "whole", "--result_path", tmp_path / "drawn", *how)
    assert again.returncode == 0 and "is finished" in again.stdout
    shutil.copytree(tmp_path / "whole", tmp_path / "another")
    other = script(f"{folder}/generate.py", "--run", tmp_path / "another", "--result_path", tmp_path / "drawn", *how)
    assert other.returncode == 2 and f"{tmp_path}/whole drew of {demo}, another run" in other.stderr

    # Any script reads them as a data set; auxiliary training as pseudo-modal images.
    small = [*SMALL, "--stages", "3", "--epochs", "1"]
    done = script("code/train.py", "--data_path", tmp_path / "drawn", *small, "--result_path", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    for method in ("code_Aux", "code_Adv"):
        done = script(f"{method}/train.py", "--data_path", demo, *small, "--generated", tmp_path / "drawn",
                      "--result_path", tmp_path / method)
        assert done.returncode == 0, done.stderr
    args = json.loads((tmp_path / "code_Aux/args.json").read_text())
    assert not args["channel_exchange"] and args["lr"] == 0.05, "generated images stand instead of exchange"
    done = script("tools/compare_generated.py", "--data_path", demo, "--run", tmp_path / "code_Aux", "--generated",
                  tmp_path / "drawn", "--result_path", tmp_path / "figures")
    assert done.returncode == 0 and "12 test places" in done.stdout, done.stderr
    table = (tmp_path / "figures/generated.md").read_text()
    assert table.count(f"{tmp_path / 'drawn'}") == 2 and (tmp_path / "figures/generated.png").is_file()
    wrong = script(f"{folder}/generate.py", "--run", tmp_path / "code_Aux", "--result_path", tmp_path / "other")
    assert wrong.returncode == 2 and "is not what" in wrong.stderr and "Traceback" not in wrong.stderr


# Read beside the true images -----------------------------------------------------------------------------------------

def test_generated_images_come_with_their_place_and_turn_with_it(tmp_path):
    data, drawn = make_data(tmp_path / "d", train=6), make_data(tmp_path / "g", train=6, seed=1)
    (data / "train/sar/p02.png").rename(data / "train/sar/p02__a.png")
    (data / "train/sar/p02__b.png").write_bytes((data / "train/sar/p03.png").read_bytes())
    pairs, = load_splits(data, ("train",), 20, 1)
    generated, = load_splits(drawn, ("train",), 20, 1)
    both = with_generated(pairs, drawn, 1)
    opt, sar = both.draw(torch.arange(6), torch.Generator().manual_seed(0))
    plain = pairs.draw(torch.arange(6), torch.Generator().manual_seed(0))
    assert torch.equal(opt[..., :3], plain[0]) and torch.equal(sar[..., :3], plain[1]), "nothing else is drawn"
    flips = 0
    for i in range(6):
        flipped = not torch.equal(opt[i, ..., :3], pairs.opt[i])
        flips += flipped
        for image, true in ((opt[i, ..., 3:], generated.opt[i]), (sar[i, ..., 3:], generated.sar[i])):
            assert torch.equal(image, true.flip(1) if flipped else true)
    assert 0 < flips < 6
    images = torch.rand(2, 6, 4, 4)
    assert torch.equal(torch.cat(true_and_generated(images), 1), images)
    assert all(torch.equal(each, images[:, :3]) for each in true_and_generated(images[:, :3]))


def test_what_is_missing_among_generated_images_is_named(tmp_path):
    data, drawn = make_data(tmp_path / "d"), make_data(tmp_path / "g")
    (drawn / "train/opt/p01.png").unlink()
    (drawn / "train/opt/p04.png").unlink()
    pairs, = load_splits(data, ("train",), 20, 1)
    with pytest.raises(InputError, match="(?s)no image of p01.*no image of p04"):
        with_generated(pairs, drawn, 1)
    (drawn / "train/sar/p00.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 image.s. cannot be used"):
        read_generated(drawn, ["p00", "p01"], "sar", 20, 1)
    with pytest.raises(InputError, match="none of windows"):
        with_generated(object(), drawn, 1)


def test_the_frechet_distance_of_two_gaussians():
    """Of Gaussians along the axes it is the distance of the means and of the standard deviations."""
    torch.manual_seed(0)
    a = torch.randn(200_000, 3) * torch.tensor([1.0, 2, 0.5])
    b = torch.randn(200_000, 3) * torch.tensor([3.0, 2, 0.5]) + torch.tensor([0.0, 1, 0])
    assert abs(frechet_distance(a, b) - ((3 - 1) ** 2 + 1)) < 0.05
    assert frechet_distance(a, a) < 1e-6


def test_images_are_written_in_rgb(tmp_path):
    """Red stays red in the file."""
    red = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    write_images(tmp_path / "opt", ["p"], red)
    assert Image.open(tmp_path / "opt/p.png").convert("RGB").getpixel((3, 3)) == (255, 0, 0)
