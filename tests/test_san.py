"""code_SAN: the decoder's shapes and losses, what it draws and how that is kept, the scripts."""
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import kill_when, script
from decoder import Decoder, block_vectors, decoder_triplet, gradient_shares, reconstruction_loss
from drawings import build_decoder, draw_images, likeness, load_decoder, save_decoder, show_strip
from shared.losses import cross_modal_triplet
from shared.model import PseudoSiamese
from shared.plumbing.device import autocast
from shared.plumbing.errors import InputError

CPU = torch.device("cpu")
CHANNELS = (64, 128, 256, 512)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("size, stride", [(64, 1), (52, 2)])
def test_shapes_of_what_is_drawn(arch, size, stride):
    model = PseudoSiamese(arch, layer4_stride=stride).eval()
    decoder = build_decoder(model, None).eval()
    with torch.no_grad():
        maps = model(torch.rand(1, 3, size, size), torch.rand(2, 3, size, size), with_maps=True).maps
        images, drawn = decoder(maps, (size, size))
    assert images.shape == (3, 3, size, size) and images.dtype == torch.float32
    last = maps[4].shape[1]
    expected = [(last // 4, *maps[2].shape[2:]), (last // 8, *maps[1].shape[2:]), (last // 16, size // 2, size // 2),
                (last // 32, size, size)]
    assert [tuple(block.shape[1:]) for block in drawn] == expected


def test_each_stage_has_a_say():
    """Skips from layer1 to layer3, and layer4 itself."""
    torch.manual_seed(0)
    decoder = Decoder(CHANNELS).eval()
    maps = [torch.rand(1, 64, 16, 16), torch.rand(1, 64, 16, 16), torch.rand(1, 128, 8, 8), torch.rand(1, 256, 4, 4),
            torch.rand(1, 512, 4, 4)]
    before = decoder(maps, (64, 64))[0]
    for stage in range(5):
        changed = [maps[i] + 1 if i == stage else maps[i] for i in range(5)]
        assert torch.equal(decoder(changed, (64, 64))[0], before) == (stage == 0), stage


def test_what_is_drawn_is_compared_with_the_optical_image_or_with_itself():
    opt, sar, drawn = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), torch.rand(4, 3, 4, 4)
    for what, targets in (("optical", (*opt, *opt)), ("self", (*opt, *sar))):
        by_hand = sum((image - target).abs().mean() for image, target in zip(drawn, targets)) / 4
        assert reconstruction_loss(drawn, opt, sar, what).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_triplet_constraints_sum_over_the_blocks():
    torch.manual_seed(0)
    blocks = [torch.rand(6, 8, 4, 4), torch.rand(6, 5, 8, 8)]
    vectors = block_vectors(blocks)
    assert torch.allclose(vectors[0][2], F.normalize(blocks[0][2].mean((1, 2)), dim=0))
    expected = sum(cross_modal_triplet(part, kinds=2, margin=0.3) for part in vectors)
    assert decoder_triplet(vectors, 0.3).item() == pytest.approx(expected.item()) and expected > 0


def test_shares_of_the_gradients():
    maps = torch.ones(2, 3, requires_grad=True)
    shares = gradient_shares({"small": maps.sum(), "large": -3 * maps.sum(), "none": 0 * maps.sum()}, maps)
    assert shares == {name: pytest.approx(share) for name, share in
                      (("share_small", 0.25), ("share_large", 0.75), ("share_none", 0))}


def test_two_images_are_learned_until_they_are_drawn():
    torch.manual_seed(0)
    model, decoder = PseudoSiamese("resnet18", layer4_stride=2).train(), Decoder(CHANNELS).train()
    opt = F.interpolate(torch.rand(2, 3, 4, 4), size=(32, 32), mode="bilinear")
    sar = torch.rand(2, 1, 32, 32).expand(2, 3, 32, 32)
    optimizer = torch.optim.Adam([*model.parameters(), *decoder.parameters()], 3e-3)
    losses = []
    for _ in range(24):
        drawn, _ = decoder(model(opt, sar, with_maps=True).maps, (32, 32))
        loss = reconstruction_loss(drawn, opt, sar, "optical")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.08 < 0.4 < losses[0], losses[::4]
    by_sar = drawn[2:]
    assert (by_sar[0] - opt[0]).abs().mean() < 0.5 * (by_sar[0] - opt[1]).abs().mean(), "each its own place"


# Pictures ------------------------------------------------------------------------------------------------------------

class Constant(torch.nn.Module):
    """Draws one colour."""

    def __init__(self, *colour):
        super().__init__()
        self.colour = torch.tensor(colour).view(1, 3, 1, 1)

    def forward(self, maps, size):
        return self.colour.expand(len(maps[0]), 3, *size), []


def test_what_is_drawn_is_clipped_and_stays_rgb(tmp_path):
    """1.54 is white, not 1.54 x 255 counted round; red stays red in the file."""
    model = PseudoSiamese("resnet18").eval()
    drawn = draw_images(model, Constant(1.54, 0.5, -0.3), torch.zeros(3, 32, 32, 3, dtype=torch.uint8), "sar", CPU,
                        autocast(CPU, "off"))
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 32, 32, 3) and drawn[2, 5, 7].tolist() == [255, 128, 0]
    red = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    red[..., 0] = 255
    show_strip({"red": red, "what is drawn": drawn[:1]}, tmp_path / "strip.png")
    colours = {colour for _, colour in Image.open(tmp_path / "strip.png").convert("RGB").getcolors(1 << 20)}
    assert (255, 0, 0) in colours and (255, 128, 0) in colours and (0, 0, 255) not in colours


def test_likeness_of_images():
    torch.manual_seed(0)
    true = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    same = likeness(true, true)
    assert same["psnr"] > 100 and same["ssim"] == pytest.approx(1)
    off = likeness((true.int() + 10).clamp(0, 255).byte(), (true.int()).clamp(0, 245).byte())
    assert off["psnr"] == pytest.approx(28.13, abs=0.01), "20 log10(255 / 10)"
    assert likeness(true, true.roll(1, 0))["ssim"] < 0.2


def test_a_decoder_is_kept_and_belongs_to_its_architecture(tmp_path):
    decoder = Decoder(CHANNELS)
    save_decoder(decoder, tmp_path)
    again = load_decoder(tmp_path, "--decoder")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in decoder.state_dict().items())
    with pytest.raises(InputError, match="draws from another architecture"):
        build_decoder(PseudoSiamese("resnet50"), tmp_path)
    with pytest.raises(InputError, match="there is no file .*decoder.pt"):
        build_decoder(PseudoSiamese("resnet18"), tmp_path / "none")
    torch.save({"model": {}}, tmp_path / "decoder.pt")
    with pytest.raises(InputError, match="is not what code_SAN/train.py writes"):
        load_decoder(tmp_path, "--decoder")


# The scripts ---------------------------------------------------------------------------------------------------------

FLAGS = "--arch resnet18 --img_size 32 --init none --batch_size 12 --epochs 3 --amp off --schedule cosine".split()
ON_CPU = ("--device", "cpu")        # the same to the bit: on CUDA the decoder's enlarging adds up in any order


def trained(demo, out, *flags):
    done = script("code_SAN/train.py", "--data_path", demo, "--result_path", out, *FLAGS, *flags)
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_its_decoder_and_its_pictures(demo, tmp_path):
    command = ["code_SAN/train.py", "--data_path", demo, "--result_path", tmp_path / "killed", *FLAGS,
               "--decoder_triplet", *ON_CPU]
    kill_when(tmp_path / "killed", "epoch 2:", *command)
    again = script(*command)
    assert again.returncode == 0 and "going on from epoch" in again.stdout, again.stderr
    done = trained(demo, tmp_path / "whole", "--decoder_triplet", *ON_CPU)
    for file in ("weights.pt", "decoder.pt"):
        one, other = (torch.load(tmp_path / name / file, weights_only=True)["model"] for name in ("killed", "whole"))
        assert all(torch.equal(one[name], other[name]) for name in one), file
    header = (tmp_path / "whole/epochs.csv").read_text().splitlines()[0]
    assert header.startswith("epoch,lr,reconstruction,decoder_triplet,triplet,share_reconstruction,")
    assert "psnr_from_sar" in header and "FC_top1" in header
    saved = torch.load(tmp_path / "whole/weights.pt", weights_only=True)
    PseudoSiamese("resnet18").load_state_dict(saved["model"])
    picture = tmp_path / "whole/pictures/drawn_test.png"
    assert [file.name for file in picture.parent.iterdir()] == ["drawn_test.png"]
    picture.unlink()
    tested = script("code_SAN/test.py", "--run", tmp_path / "whole", "--amp", "off")
    assert tested.returncode == 0 and tested.stdout.splitlines()[-1] in done.stdout, tested.stderr
    figures = json.loads((tmp_path / "whole/test.json").read_text())["drawn"]
    assert f"psnr_from_sar {figures['psnr_from_sar']:.4g}" in done.stdout and picture.is_file()


def test_a_first_stage_by_reconstruction_alone_and_the_whole_from_it(demo, tmp_path):
    trained(demo, tmp_path / "first", "--reconstruction_only", "--draw", "self", "--validate", "0.25")
    first = tmp_path / "first"
    assert json.loads((first / "metrics.json").read_text())["evaluated_on"] == "nothing"
    assert [file.name for file in (first / "pictures").iterdir()] == ["drawn_validation.png"], "not the test split's"
    header = (first / "epochs.csv").read_text().splitlines()[0]
    assert "reconstruction" in header and "triplet" not in header
    done = trained(demo, tmp_path / "whole", "--init", first, "--decoder", first, "--lr", "0", "--lr_decoder", "1e-12",
                   "--epochs", "1")
    ours, theirs = (load_decoder(folder, "") for folder in (tmp_path / "whole", first))
    moved = [(a - b).abs().max().item() for a, b in zip(ours.parameters(), theirs.parameters())]
    assert max(moved) < 1e-9 and "FC: top-1" in done.stdout, "it began with the first stage's decoder"
    assert "top-1" in trained(demo, tmp_path / "self", "--draw", "self", "--epochs", "1").stdout
