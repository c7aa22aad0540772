"""The filters of the comparison and the figures that compare them, against cases worked by hand; and the command."""
import csv
import json

import cv2
import numpy as np
import pytest
import torch

from conftest import SMALL, script
from shared.filters import (
    FILTERS,
    anisotropic_diffusion,
    gaussian_filter,
    guided_filter,
    lee_filter,
    pseudo_modal,
)
from shared.plumbing.errors import InputError
from tools.compare_filters import (correlation, edge_preservation, edges_left, flattest, gradient_correlation, grey,
                                   looks, similarity, trained_retrieval)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 3, 40, 48)


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in ("none", "structure")])
def test_every_smoothing_filter_keeps_shape_range_and_flat_images(images, name):
    out = FILTERS[name](images, images.flip(0))
    assert out.shape == images.shape and out.dtype == torch.float32 and out.min() > -0.01 and out.max() < 1.01
    flat = torch.full_like(images, 100 / 255)
    assert torch.allclose(FILTERS[name](flat, images), flat, atol=1e-3)
    assert out.std() < images.std(), "each smooths noise"


def test_none_gives_each_image_twice(images):
    images[:, :, 0, 0] = 1                                            # as of any filter, each channel's maximum is 1
    assert torch.equal(pseudo_modal(images, exchange=False, filter_name="none"), images)


def test_lee_by_loop(images):
    radius, looks_, image = 2, 4, images[0, 0]
    padded = np.pad(image.numpy().astype(np.float64), radius, mode="symmetric")
    expected = np.empty(image.shape)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            window = padded[i:i + 5, j:j + 5]
            weight = max(0, 1 - (1 / looks_) / (window.var() / window.mean() ** 2))
            expected[i, j] = window.mean() + weight * (image[i, j].item() - window.mean())
    assert np.abs(lee_filter(images, radius, looks_)[0, 0].numpy() - expected).max() < 1e-4


def test_gaussian_is_opencvs(images):
    expected = cv2.GaussianBlur(images[0].permute(1, 2, 0).numpy(), (13, 13), 2.0, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(gaussian_filter(images)[0].permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_anisotropic_diffusion_by_loop_and_at_edges(images):
    image = images[0, :, :7, :6].double().numpy()
    expected = image.copy()
    for _ in range(2):
        before = expected.copy()
        for i in range(7):
            for j in range(6):
                for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= k < 7 and 0 <= m < 6:
                        difference = before[:, k, m] - before[:, i, j]
                        expected[:, i, j] += 0.15 * difference * np.exp(-(difference ** 2).mean() / 0.3 ** 2)
    ours = anisotropic_diffusion(images[:1, :, :7, :6], steps=2, kappa=0.3)
    assert np.abs(ours[0].numpy() - expected).max() < 1e-5
    assert torch.allclose(anisotropic_diffusion(images).mean((2, 3)), images.mean((2, 3)), atol=1e-5), (
        "what flows out flows in"
    )
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    assert torch.allclose(anisotropic_diffusion(step), step, atol=1e-6), "an edge far above kappa stays"


def test_guided_by_the_other_takes_the_others_edges():
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = 1
    torch.manual_seed(0)
    noisy = (step * 0.5 + 0.25 + 0.1 * torch.randn(1, 3, 32, 32)).clamp(0, 1)
    out = FILTERS["guided-by-other"](noisy, step)
    assert torch.equal(out, guided_filter(step, noisy, eps=0.01))
    assert (out[..., 17] - out[..., 14]).mean() > 0.4, "a sharp edge where the guide has one"
    assert out[..., 4:12].std() < 0.5 * noisy[..., 4:12].std()


def test_structural_similarity_by_formula(images):
    opt, sar = grey(images), grey(images.flip(0))
    assert similarity(opt, opt) == pytest.approx(1)
    a, b = opt[0].astype(np.float64), sar[0].astype(np.float64)

    def blur(x):
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    ma, mb = blur(a), blur(b)
    va, vb, vab = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()
    assert similarity(opt[:1], sar[:1]) == pytest.approx(expected, abs=1e-4)


def test_correlations(images):
    a = grey(images)
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert correlation(np.array([1.0, 2, 3]), np.ones(3)) == 0
    assert gradient_correlation(a, 255 - a) == pytest.approx(1), "edges do not care for the sign"
    assert edge_preservation(a, a) == pytest.approx(1) and edge_preservation(a, 0.5 * a + 10) == pytest.approx(
        1, abs=1e-5
    )
    assert (
        edges_left(a, a) == pytest.approx(1)
        and edges_left(a, 0.5 * a + 10) == pytest.approx(0.5, abs=1e-5)
        and edges_left(a, np.ones_like(a)) == 0
    )
    assert edge_preservation(a, cv2.blur(a[0], (5, 5))[None]) < 0.5


def test_looks_of_planted_speckle_where_the_optical_image_is_flat():
    rng = np.random.default_rng(0)
    opt = rng.uniform(0, 255, (3, 96, 96)).astype(np.float32)
    opt[:, 40:56, 24:40] = 90
    corners = flattest(opt)
    assert corners.tolist() == [[40, 24]] * 3
    for true in (1, 4, 16):
        speckle = (100 * rng.gamma(true, 1 / true, (200, 96, 96))).astype(np.float32)
        assert looks(speckle, np.repeat(corners, 67, 0)[:200]) == pytest.approx(true, rel=0.1)


def test_the_command_with_a_run(demo, tmp_path):
    assert script("code/train.py", "--data_path", demo, "--result_path", tmp_path / "run", *SMALL).returncode == 0
    done = script(
        "tools/compare_filters.py", "--data_path", demo, "--run", tmp_path / "run", "--sample", "4",
        "--img_size", "64", "--out", tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out/filters.csv") as file:
        rows = {row["filter"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(FILTERS) and float(rows["none"]["epi"]) == pytest.approx(1)
    tested = script("code/test.py", "--run", tmp_path / "run")
    assert f"top-1: {float(rows['none']['top1']):.2f}%" in tested.stdout, "unfiltered, the run's own figure"
    assert rows["guided-by-other"]["top1"] == "" and rows["gaussian"]["top1"] != ""
    assert "trained_top1" not in rows["none"]
    assert (tmp_path / "out/filters.png").exists() and (tmp_path / "out/filters.pdf").exists()


def finished(folder, filter_name, top1, evaluated_on="test"):
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"filter": filter_name}))
    (folder / "metrics.json").write_text(
        json.dumps({"FC": {"top1": top1, "mAP": top1 + 10}, "evaluated_on": evaluated_on})
    )
    return folder


def test_runs_trained_with_a_filter_stand_beside_it(demo, tmp_path):
    runs = [
        finished(tmp_path / "a", "lee", 40.0),
        finished(tmp_path / "b", "lee", 50.0),
        finished(tmp_path / "c", "gaussian", 30.0),
    ]
    assert trained_retrieval(runs) == {
        "lee": {"trained_top1": 45, "trained_mAP": 55, "trained_runs": 2},
        "gaussian": {"trained_top1": 30, "trained_mAP": 40, "trained_runs": 1},
    }
    done = script(
        "tools/compare_filters.py", "--data_path", demo, "--sample", "2", "--img_size", "64", "--out",
        tmp_path / "out", "--trained",
        runs[0],
        "--trained",
        runs[1],
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/filters.md").read_text()
    lee, = (line for line in table.splitlines() if line.startswith("| lee "))
    none, = (line for line in table.splitlines() if line.startswith("| none "))
    assert lee.endswith("| 45.00 | 55.00 | 2 |") and none.endswith("| - | - | - |")


def test_a_run_without_a_filter_cannot_stand_there(tmp_path):
    for folder, words in (
        (finished(tmp_path / "a", None, 1.0), "trained without --filter"),
        (finished(tmp_path / "b", "lee", 1.0, "validation"), "held-out training tiles"),
        (tmp_path / "c", "holds no finished run"),
    ):
        with pytest.raises(InputError, match=words):
            trained_retrieval([folder])
