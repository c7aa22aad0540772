"""The figures of tools/analyze.py against small cases worked by hand, and the command itself on the demo pairs."""
import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import SMALL, script
from shared.evaluate import expected_ranks
from tools.analyze import (betweenness, cmc, correlation_text, edge_density, matched_scores, modality_gap, names_of,
                           plot_training, rank_correlation, roc_area)


def test_epochs_are_whole_numbers_where_only_the_last_was_evaluated(monkeypatch):
    monkeypatch.setattr("tools.analyze.save", lambda figure, file: drawn.append(figure))
    drawn = []
    epochs = [{"epoch": str(i), "lr": "0.1", "triplet": "1", "FC_top1": "40" if i == 4 else ""} for i in range(1, 5)]
    plot_training(epochs, None)
    for axis in drawn[0].axes:
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_matched_and_non_matched_scores():
    gallery = torch.eye(3)
    query = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    matched, unmatched = matched_scores(query, gallery, torch.tensor([1, 2, 1, 2]))
    assert torch.allclose(matched, torch.tensor([0.8, 1.0, 1.0, 0.0]))
    assert torch.allclose(unmatched, torch.tensor([0.6, 0, 0, 0, 0, 0, 1, 0]))


@pytest.mark.parametrize(
    "matched, unmatched, area",
    [
        ([3.0, 4.0], [1.0, 2.0], 1.0),
        ([1.0, 2.0], [3.0, 4.0], 0.0),
        ([1.0], [1.0, 1.0], 0.5),
        ([2.0, 5.0], [1.0, 3.0, 5.0], (1 + 2.5) / 6),
    ],
)
def test_roc_area_is_the_share_of_pairs_in_order(matched, unmatched, area):
    assert roc_area(torch.tensor(matched), torch.tensor(unmatched)) == pytest.approx(area)


def test_the_modality_gap_of_planted_embeddings():
    torch.manual_seed(0)
    places = F.normalize(torch.randn(200, 16))
    same = modality_gap(places, places, torch.arange(200))
    assert same["mean_distance"] == pytest.approx(0, abs=1e-6) and same["accuracy"] <= 0.5
    shift = torch.zeros(16)
    shift[0] = 3.0
    apart = modality_gap(places + shift, places, torch.arange(200))
    assert apart["mean_distance"] == pytest.approx(3, abs=1e-5) and apart["accuracy"] == 1


def test_between_is_closer_to_each_than_these_are_to_each_other():
    opt, sar = torch.tensor([[0.0, 0.0]]).expand(5, 2), torch.tensor([[2.0, 0.0]]).expand(5, 2)
    pseudo = torch.tensor([[1.0, 0.0], [1.0, 1.7], [1.0, 1.8], [-0.1, 0.0], [2.0, 0.0]])
    inside = [betweenness(opt[i:i + 1], sar[i:i + 1], pseudo[i:i + 1]) for i in range(5)]
    assert inside == [1, 1, 0, 0, 0], "at the SAR image itself is as far from optical as SAR is"
    assert betweenness(opt, sar, pseudo) == pytest.approx(0.4)


def test_edge_density_is_the_slope_of_a_ramp_and_zero_of_a_plain():
    ramp = torch.arange(32, dtype=torch.uint8).mul(4).view(1, 1, 32, 1).expand(1, 32, 32, 3)
    density = edge_density(torch.cat([ramp, torch.full_like(ramp, 90), ramp.transpose(1, 2)]))
    assert density[1] == 0 and density[0] == pytest.approx(density[2]) and density[0] == pytest.approx(4 * 30 / 32), (
        "the border has no slope"
    )


def test_ranks_and_cmc():
    gallery = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    query = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))
    ranks = expected_ranks(query, gallery, torch.tensor([0, 2, 1]), torch.arange(3)).of_truth()
    assert ranks.tolist() == [1, 3, 1]
    assert cmc(ranks, 3).tolist() == pytest.approx([200 / 3, 200 / 3, 100])


def test_a_rank_correlation_is_not_defined_where_all_are_right():
    density = np.array([0.3, 0.1, 0.2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_correlation(density, np.ones(3)) is None and correlation_text(None) == "not defined, all are alike"
    assert rank_correlation(density, np.array([3.0, 1.0, 2.0])) == pytest.approx(1)
    assert correlation_text(-0.256) == "-0.26"


def test_runs_of_one_row_are_told_apart_by_their_seeds(tmp_path):
    runs = [tmp_path / "triplet/seed0", tmp_path / "triplet/seed1", tmp_path / "adv/seed0", tmp_path / "mine"]
    assert names_of(runs) == ["triplet, seed0", "triplet, seed1", "adv", "mine"]


def test_two_runs_side_by_side(demo, tmp_path):
    runs = [tmp_path / "triplet/seed0", tmp_path / "adv/seed0"]
    for folder, run in zip(("code", "code_Adv"), runs):
        assert script(f"{folder}/train.py", "--data_path", demo, "--result_path", run, *SMALL).returncode == 0
    done = script("tools/analyze.py", "--run", runs[0], "--run", runs[1], "--sample", "10")
    assert done.returncode == 0, done.stderr
    names = {
        f"{name}.{suffix}"
        for name in ("tsne", "matched", "pseudo_modal", "retrieval", "training", "failures")
        for suffix in ("png", "pdf")
    }
    assert {file.name for file in (runs[1] / "analysis").iterdir()} == names | {"figures.json"}
    assert {file.name for file in (runs[0] / "analysis").iterdir()} - names == {
        "figures.json", "tsne_runs.png", "tsne_runs.pdf", "cmc.png", "cmc.pdf",
    }
    figures = json.loads((runs[0] / "analysis/figures.json").read_text())
    assert figures["top1"] == pytest.approx(json.loads((runs[0] / "metrics.json").read_text())["FC"]["top1"])
    assert 0 <= figures["roc_area"] <= 1 and -1 <= figures["rank_edge_density_correlation"] <= 1


def test_a_folder_without_a_run_is_named_first(tmp_path):
    done = script("tools/analyze.py", "--run", tmp_path)
    assert done.returncode == 2 and "holds no run" in done.stderr
