"""Channel exchange, the guided filter and pseudo-modal images."""
import numpy as np
import pytest
import torch
from PIL import Image

from shared.filters import EXCHANGES, channel_exchange, guided_filter, pseudo_modal
from shared.guided_filter import guided_filter_opencv


def images_of(folder, split, modality, count):
    files = sorted((folder / split / modality).iterdir())[:count]
    return (
        torch.stack([torch.from_numpy(np.array(Image.open(f).convert("RGB"))) for f in files]).permute(0, 3, 1, 2) / 255
    )


def test_channel_exchange_fills_all_channels_with_one_choice_for_each_image():
    images = torch.rand(400, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    out = channel_exchange(images, torch.Generator().manual_seed(0))
    grey = 0.2989 * images[:, 0] + 0.5870 * images[:, 1] + 0.1140 * images[:, 2]
    choices = torch.stack([images[:, 0], images[:, 1], images[:, 2], grey], 1)
    match = (choices - out[:, :1]).abs().amax((2, 3)) < 1e-6
    assert (match.sum(1) == 1).all(), "every image is one of the four"
    counts = match.sum(0)
    assert (counts > 70).all() and (counts < 130).all(), f"drawn uniformly: {counts}"
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])


def test_channel_exchange_is_repeated_by_the_generator():
    images = torch.rand(16, 3, 4, 4)
    assert torch.equal(
        channel_exchange(images, torch.Generator().manual_seed(3)),
        channel_exchange(images, torch.Generator().manual_seed(3)),
    )
    assert EXCHANGES[3].sum() == pytest.approx(0.9999)


@pytest.mark.parametrize("radius", [2, 4, 8])
@pytest.mark.parametrize("eps", [0.0004, 0.01, 0.36])
@pytest.mark.parametrize("source", ["demo", "real"])
def test_guided_filter_agrees_with_opencv(request, source, radius, eps):
    folder = request.getfixturevalue(source)
    opt, sar = images_of(folder, "test", "opt", 3), images_of(folder, "test", "sar", 3)
    for guide, images in ((opt, opt), (sar, sar), (opt, sar)):
        ours = guided_filter(guide, images, radius, eps)
        for i in range(len(guide)):
            theirs = guided_filter_opencv(
                guide[i].permute(1, 2, 0).numpy(), images[i].permute(1, 2, 0).numpy(), radius, eps
            )
            difference = np.abs(ours[i].permute(1, 2, 0).numpy() - theirs)
            assert difference.max() < 1e-4, (
                f"image {i}: {difference.max()} at {np.unravel_index(difference.argmax(), difference.shape)}"
            )


def test_guided_filter_does_what_it_is_for():
    flat = torch.full((1, 3, 20, 20), 0.3)
    assert torch.allclose(guided_filter(flat, flat), flat, atol=1e-6)
    images = torch.rand(2, 3, 24, 24)
    assert torch.allclose(guided_filter(images, images, 4, 1e-8), images, atol=1e-3), "a vanishing eps keeps the image"
    assert guided_filter(images, images, 4, 0.36).std() < 0.3 * images.std(), "a large eps blurs"
    assert torch.allclose(guided_filter(images, images.clone()), guided_filter(images, images), atol=1e-5)


def test_guided_filter_rejects_what_does_not_fit():
    with pytest.raises(ValueError, match="differ in shape"):
        guided_filter(torch.rand(1, 3, 9, 9), torch.rand(2, 3, 9, 9))
    with pytest.raises(ValueError, match="radius"):
        guided_filter(torch.rand(1, 3, 9, 9), torch.rand(1, 3, 9, 9), radius=10)
    with pytest.raises(ValueError, match="shape"):
        channel_exchange(torch.rand(3, 9, 9))


def test_pseudo_modal_filters_then_exchanges():
    images = torch.rand(6, 3, 24, 24)
    images[0, 1] = 0                                             # a black channel must not become NaN
    filtered = pseudo_modal(images, exchange=False, filter_name="guided")
    plain = guided_filter(images, images)
    assert torch.allclose(filtered[1:], plain[1:] / plain[1:].amax((2, 3), keepdim=True))
    assert filtered[0, 1].abs().max() < 1e-3
    both = pseudo_modal(images, True, "guided", torch.Generator().manual_seed(0))
    assert torch.equal(both, channel_exchange(filtered, torch.Generator().manual_seed(0)))
    assert torch.equal(pseudo_modal(images, False), images)
