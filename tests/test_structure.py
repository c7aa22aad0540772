"""Oriented gradients, networks that see them, and how the image beside them is shown."""
import json
import math

import numpy as np
import pytest
import torch

from conftest import SMALL, script
from shared.filters import FILTERS, pseudo_modal
from shared.model import INPUTS, PseudoSiamese, initialize, load_model
from shared.plumbing.files import load_tensors, write_tensors
from shared.structure import EPSILON, GAIN, GREY, ORIENTATIONS, SIGMA_CHANNELS, SIGMA_GREY, structure
from shared.views import KNOTS, random_tones, with_shown


def scene(count=2, height=40, width=48, seed=0):
    """Smooth images (count, 3, height, width) in [0, 1], their contrast everywhere far above rounding."""
    rough = torch.rand(count, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, (height, width), mode="bicubic").clamp(0, 1)


def filtered(plane, kernel):
    """The rows of a plane (H, W) filtered by an odd kernel, one pixel at a time, mirrored without the edge pixel."""
    radius, out = len(kernel) // 2, np.zeros_like(plane)
    padded = np.pad(plane, ((0, 0), (radius, radius)), mode="reflect")
    for i, weight in enumerate(kernel):
        out += weight * padded[:, i:i + plane.shape[1]]
    return out


def by_loop(image):
    """structure() of one image (3, H, W), plane by plane and pixel by pixel, in float64."""
    def gaussian(sigma):
        offsets = np.arange(-round(3 * sigma), round(3 * sigma) + 1)
        kernel = np.exp(-offsets ** 2 / (2 * sigma ** 2))
        return kernel / kernel.sum()

    def both_ways(plane, rows, columns):
        return filtered(filtered(plane, rows).T, columns).T

    grey = sum(weight * channel for weight, channel in zip(GREY, image.double().numpy()))
    blurred = both_ways(grey, gaussian(SIGMA_GREY), gaussian(SIGMA_GREY))
    along_x, along_y = both_ways(blurred, [-1, 0, 1], [1, 2, 1]), both_ways(blurred, [1, 2, 1], [-1, 0, 1])
    planes = []
    for k in range(ORIENTATIONS):
        angle = k * math.pi / ORIENTATIONS
        strength = np.abs(math.cos(angle) * along_x + math.sin(angle) * along_y)
        planes.append(both_ways(strength, gaussian(SIGMA_CHANNELS), gaussian(SIGMA_CHANNELS)))
    planes = np.stack(planes)
    out = np.zeros_like(planes)
    for row in range(planes.shape[1]):
        for column in range(planes.shape[2]):
            pixel = planes[:, row, column]
            smoothed = [pixel[k - 1] + 2 * pixel[k] + pixel[(k + 1) % ORIENTATIONS] for k in range(ORIENTATIONS)]
            out[:, row, column] = np.array(smoothed) / (np.linalg.norm(smoothed) + EPSILON)
    return GAIN * (out - out.mean((1, 2), keepdims=True))


@pytest.mark.parametrize("height, width", [(24, 31), (7, 5), (1, 9)])
def test_structure_equals_a_plain_loop(height, width):
    images = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0))
    channels = structure(images)
    assert channels.shape == (3, ORIENTATIONS, height, width) and channels.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(structure(images), channels), "mixed precision leaves it alone"
    if height > 1:                                      # numpy cannot mirror a single row
        assert np.abs(channels.numpy() - np.stack([by_loop(image) for image in images])).max() < 1e-3


def test_structure_is_the_same_of_one_image_and_of_many():
    images = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0))       # several portions
    alone = torch.cat([structure(image[None]) for image in images[::13]])
    assert torch.allclose(structure(images)[::13], alone, atol=1e-5)


def likeness(one, other):
    """The cosine of whole vectors of channels, image by image."""
    return torch.cosine_similarity(one.flatten(1), other.flatten(1))


@pytest.mark.parametrize("curve", [torch.sqrt, torch.square, lambda x: 0.3 + 0.2 * x, lambda x: torch.log1p(9 * x)])
def test_a_monotone_curve_of_the_grey_values_changes_little(curve):
    images = scene()[:, :1].expand(-1, 3, -1, -1)
    others = scene(seed=1)[:, :1].expand(-1, 3, -1, -1)
    channels = structure(images)
    assert likeness(channels, structure(curve(images))).min() > 0.97
    assert likeness(channels, structure(curve(others))).max() < 0.3, "another place is told apart"


def test_a_negative_has_the_same_structure():
    images = scene()
    assert torch.allclose(structure(1 - images), structure(images), atol=1e-2)
    assert likeness(structure(1 - images), structure(images)).min() > 0.9999


def test_channels_are_directions_modulo_180_degrees():
    y, x = torch.meshgrid(torch.arange(36.0), torch.arange(36.0), indexing="ij")
    for k in range(ORIENTATIONS):
        angle = math.pi * k / ORIENTATIONS
        waves = 0.5 + 0.4 * torch.sin(0.5 * (math.cos(angle) * x + math.sin(angle) * y))
        # The two halves of an image run in two directions, so that the mean over the image does not take it all.
        waves[:, 18:] = (0.5 + 0.4 * torch.sin(0.5 * (-math.sin(angle) * x + math.cos(angle) * y)))[:, 18:]
        channels = structure(waves.expand(1, 3, -1, -1))[0]
        assert channels[:, 6:-6, 6:12].mean((1, 2)).argmax() == k


def test_a_flat_image_has_none():
    for value in (0.0, 0.4, 1.0):
        channels = structure(torch.full((1, 3, 20, 20), value))
        assert channels.isfinite().all() and channels.abs().max() < 0.05
    faint = structure(0.5 + 1e-6 * torch.rand(1, 3, 20, 20))
    assert faint.abs().max() < 0.1, "noise far below a grey level stays small"


def test_a_shift_of_the_image_shifts_the_structure_within():
    images = scene(height=60, width=60)
    margin = round(3 * SIGMA_GREY) + 1 + round(3 * SIGMA_CHANNELS)
    one, shifted = structure(images[:, :, :50, :50]), structure(images[:, :, 7:57, 3:53])
    inner = one[:, :, 7 + margin:-margin, 3 + margin:-margin]
    same = shifted[:, :, margin:-7 - margin, margin:-3 - margin]
    # But for the mean of each channel, which is that of another cut.
    difference = inner - same
    assert (difference - difference.mean((2, 3), keepdim=True)).abs().max() < 1e-4


def test_the_filter_shows_three_of_the_directions():
    images = scene()
    pictures = FILTERS["structure"](images)
    assert pictures.shape == images.shape and pictures.min() >= 0 and pictures.max() <= 1
    channels = structure(images)[:, [0, 3, 6]]
    difference = channels / GAIN - pictures
    assert (difference - difference.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    brightest = pseudo_modal(images, exchange=False, filter_name="structure").amax((2, 3))
    assert torch.allclose(brightest, torch.ones(2, 3))


# What the network sees ------------------------------------------------------------------------------------------------

def network(input, **settings):
    return PseudoSiamese("resnet18", pooling="cells", stages=3, layer4_stride=2, input=input, **settings).eval()


@pytest.mark.parametrize("input, channels", [("rgb", 3), ("structure", ORIENTATIONS), ("both", ORIENTATIONS + 3)])
@pytest.mark.parametrize("specify_num", [0, 1, 3])
def test_the_first_convolution_sees_the_input(input, channels, specify_num):
    torch.manual_seed(0)
    model, images, seen = network(input, specify_num=specify_num), torch.rand(2, 3, 32, 32), []
    model.stages_of("opt")[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        fc = model(opt=images).fc
        assert torch.equal(model(opt=images, sar=images).fc[:2], fc)
    parts = {"structure": structure(images), "image": (images - model.mean) / model.std}
    assert seen[0].shape[1] == channels
    for kind, where in INPUTS[input].items():
        assert torch.equal(seen[0][:, where], parts[kind])
    for modality in ("opt", "sar"):
        assert model.stages_of(modality)[0][0].in_channels == channels


def test_an_input_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="choose one of rgb, structure, both"):
        network("grey")


def test_what_is_shown_stands_for_the_image_and_not_for_its_structure():
    torch.manual_seed(0)
    images, others = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model = network("both")
        as_it_is, = model._own_maps(images, [])
        shown, = model._own_maps(torch.cat([images, others], 1), [])
        absent, = model._own_maps(torch.cat([images, model.mean.expand(2, 3, 32, 32)], 1), [])
        for x in (shown, absent):
            assert torch.equal(x[:, :ORIENTATIONS], as_it_is[:, :ORIENTATIONS])
        assert torch.equal(shown[:, ORIENTATIONS:], (others - model.mean) / model.std)
        assert (absent[:, ORIENTATIONS:] == 0).all()
        model = network("structure")
        assert torch.equal(model(opt=torch.cat([images, others], 1)).fc, model(opt=images).fc)


def test_init_fills_of_conv1_what_both_inputs_have(tmp_path):
    for theirs in INPUTS:
        torch.manual_seed(1)
        source = network(theirs, specify_num=1)
        (tmp_path / theirs).mkdir()
        write_tensors(tmp_path / theirs / "weights.pt",
                      {**source.settings, "img_size": 32, "model": source.state_dict()})
        for ours in INPUTS:
            torch.manual_seed(2)
            model = network(ours, specify_num=1)
            fresh = model.opt_stages[0][0].weight.detach().clone()
            initialize(model, str(tmp_path / theirs))
            weight, expected = model.opt_stages[0][0].weight, source.opt_stages[0][0].weight
            for kind, where in INPUTS[ours].items():
                there = INPUTS[theirs].get(kind)
                assert torch.equal(weight[:, where], fresh[:, where] if there is None else expected[:, there])
            assert torch.equal(model.shared_stages[0][0].conv1.weight, source.shared_stages[0][0].conv1.weight)


# How the image is shown -----------------------------------------------------------------------------------------------

def test_random_tones_follow_one_curve_for_each_channel_of_each_image():
    images = 0.2 + 0.5 * torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    toned = random_tones(images, torch.Generator().manual_seed(1))
    heights = torch.rand((3, 2, KNOTS), generator=torch.Generator().manual_seed(1)).numpy()
    for i in range(3):
        for c in range(2):
            channel = images[i, c].flatten().numpy()
            at = np.linspace(channel.min(), channel.max(), KNOTS)
            assert np.allclose(toned[i, c].flatten().numpy(), np.interp(channel, at, heights[i, c]), atol=1e-5)
    flat = random_tones(torch.full((1, 1, 4, 4), 0.5), torch.Generator().manual_seed(0))
    assert flat.unique().numel() == 1 and flat.isfinite().all()


def test_each_image_by_itself_is_left_out_toned_or_shown():
    images = torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    blank = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    both = with_shown(images, blank, 0.5, 0.2, torch.Generator().manual_seed(1))
    assert torch.equal(both[:, :3], images)
    absent = (both[:, 3:] == blank).flatten(1).all(1)
    as_they_are = (both[:, 3:] == images).flatten(1).all(1)
    assert 120 < absent.sum() < 180 and 60 < as_they_are.sum() < 120 and not (absent & as_they_are).any()
    again = with_shown(images, blank, 0.5, 0.2, torch.Generator().manual_seed(1))
    assert torch.equal(both, again), "all draws are the generator's"


# The scripts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("folder, flags", [
    ("code", ["--input", "structure"]),
    ("code", ["--input", "both", "--specify_num", "1"]),
    ("code_Aux", ["--input", "structure", "--filter", "structure"]),
    ("code_Aux", ["--input", "both"]),
    ("code_Adv", ["--input", "both", "--filter", "structure", "--channel_exchange"]),
    ("code_Con", ["--input", "structure", "--chunk", "4"]),
    ("code_Con", "--input both --left_out 0.3 --toned 0.3 --chunk 4 --recipe cpu --part 24".split()),
    ("code_SimSiam", ["--input", "both"]),
    ("code_SAN", ["--input", "both", "--stages", "5"]),
])
def test_each_method_learns_from_each_input(demo, tmp_path, folder, flags):
    small = "--arch resnet18 --img_size 32 --init none --batch_size 8".split() if folder == "code_SimSiam" else SMALL
    command = ["--data_path", demo, *small, "--epochs", "1", *flags]
    done = script(f"{folder}/train.py", "--result_path", tmp_path / "run", *command)
    assert done.returncode == 0, done.stderr
    assert load_tensors(tmp_path / "run/weights.pt", "")["input"] == flags[1]
    tested = script(f"{folder}/test.py", "--run", tmp_path / "run")
    assert tested.returncode == 0, tested.stderr
    if folder == "code_Aux":
        tested = script(f"{folder}/test.py", "--run", tmp_path / "run", "--tta", "structure")
        assert tested.returncode == 0 and "FC: top-1" in tested.stdout, tested.stderr


def test_a_run_from_before_there_were_inputs_gives_what_it_gave(demo, tmp_path):
    done = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    saved = load_tensors(tmp_path / "run/weights.pt", "")
    assert saved.pop("input") == "rgb"
    write_tensors(tmp_path / "run/weights.pt", saved)
    settings = json.loads((tmp_path / "run/args.json").read_text())
    del settings["input"]
    (tmp_path / "run/args.json").write_text(json.dumps(settings))
    tested = script("code/test.py", "--run", tmp_path / "run")
    assert tested.returncode == 0 and tested.stdout.splitlines()[-1] in done.stdout
    again = script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL, "--epochs", "1")
    assert "is finished" in again.stdout
    model, _ = load_model(tmp_path / "run", torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        x = ((images - model.mean) / model.std).contiguous(memory_format=torch.channels_last)
        for stage in model.eval().shared_stages:
            x = stage(x)
        expected = torch.nn.functional.normalize(model.embedding(model.pool(x)))
        assert torch.equal(model(opt=images).fc, expected)
