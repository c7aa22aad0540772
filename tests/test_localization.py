"""Where a query lies on a map: the correlation, turned and shifted queries, candidates, tie points, calibration."""
import itertools
import json
import math
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from baselines import StructureCorrelation, best_position, displacement, gradient_correlation, mutual_information
from calibrate import calibrate
from graph import FAR, REACH, STEP, graph_of, normalized, part_means, patches_of, scores_of, vote
from queries import draw_queries
from scaled import TileNetwork
from shared.mapping.calibration import (OUTCOMES, Calibration, conformal_quantile, fit_calibration, load_calibration,
                                        radius_by_tile)
from shared.mapping.cells import CellMaps, CellNetwork, StructureCells
from shared.mapping.localization import EVIDENCE, Search, distinct_peaks, map_of, rotations_to_try
from shared.mapping.turned import cut_turned, difference_of_angles, filled, turn
from shared.plumbing.errors import InputError
from tiles import Tiles
from tools.tie_points import Field, TiePoints, find_tie_points, outliers, part_side

CPU = torch.device("cpu")


def ground(side=200, seed=0):
    """A picture with detail of all sizes, (side, side, 3) uint8."""
    random = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for grain in (2, 5, 12):
        noise = random.standard_normal((side // grain + 2, side // grain + 2, 3)).astype(np.float32)
        image += np.kron(noise, np.ones((grain, grain, 1), np.float32))[:side, :side]
    return np.clip(128 + 30 * image, 0, 255).astype(np.uint8)


def structure_network(cell=8):
    """Structure where a trained network stands: it sees both modalities alike."""
    return CellNetwork(StructureCells(cell), cell, CPU, nullcontext)


def searched(query, maps, within=0, scale=100.0, cell=8, **more):
    search = Search(structure_network(cell), query, rotations_to_try(within), scale, **more)
    for map_ in maps:
        search.look_at(map_)
    return search


def test_correlation_is_that_of_a_plain_loop():
    """With the norm of what lies under the query, the map's mask and the query's, and at least a share on the map."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((2, 4, 13, 11), generator=generator) * torch.tensor([1.0, 6.0]).view(2, 1, 1, 1)
    map_mask = (torch.rand((2, 1, 13, 11), generator=generator) > 0.2).float()
    _, masks = turn(ground(8), [0.0, 30.0], side=10)
    query = torch.randn((2, 4, 5, 5), generator=generator)
    query_mask = torch.from_numpy(masks[:, ::2, ::2].copy()).float()[:, None]
    assert 0 < query_mask[1].mean() < 1, "the query that came turned shows a part of its square"
    scores = CellMaps(maps, map_mask).cosines(query, query_mask, least=0.8)
    assert scores.shape == (2, 2, 9, 7) and (scores == -1).any() and (scores > -1).any()
    for q, m, y, x in itertools.product(range(2), range(2), range(9), range(7)):
        both = (query_mask[q, 0] * map_mask[m, 0, y:y + 5, x:x + 5]).bool()
        under = maps[m, :, y:y + 5, x:x + 5]
        expected = F.cosine_similarity(query[q][:, both].flatten(), under[:, both].flatten(), dim=0)
        expected = float(expected) if both.sum() >= 0.8 * query_mask[q].sum() else -1
        assert scores[q, m, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_turning_a_query_back_undoes_its_cutting():
    image = ground(160)
    straight = cut_turned(image, 80, 70, 60, 0)
    assert (straight == image[40:100, 50:110]).all()
    east_up = cut_turned(image, 80, 80, 60, 90)
    assert np.abs(east_up.astype(int) - np.rot90(image[50:110, 50:110])).max() <= 1, "what is up lies to the east"
    views, masks = turn(east_up, [0.0, 90.0])
    assert masks.all() and np.abs(views[1].astype(int) - image[50:110, 50:110]).max() <= 1
    views, masks = turn(cut_turned(image, 80, 80, 60, 25), [25.0])
    middle = np.s_[views.shape[1] // 2 - 15:views.shape[1] // 2 + 15]
    error = np.abs(views[0][middle, middle].astype(int) - image[65:95, 65:95]).mean()
    wrong = np.abs(views[0][middle, middle].astype(int) - image[66:96, 68:98]).mean()
    assert error < 0.6 * wrong and 0.4 < masks.mean() < 0.8
    assert turn(image, [0.0], zoom=0.5)[0].shape == (1, 80, 80, 3)


def test_where_an_image_shows_nothing_its_nearest_pixels_go_on():
    image = ground(40)
    shown = np.ones((40, 40), bool)
    shown[:, 30:] = False
    seen = filled(image * shown[..., None], shown)
    assert (seen[:, :30] == image[:, :30]).all() and (seen[:, 30:] == image[:, 29:30]).all()
    views, masks = turn(image, [45.0])
    assert not masks[0, 0, 0] and (views[0, 0, 0] > 0).any(), "no black corner, and no part of the query"


@pytest.mark.parametrize("within, rotation", [(0, 0.0), (15, 11.3), (180, -100.7)])
def test_a_planted_query_is_found(within, rotation):
    image, other = ground(240), ground(240, seed=9)
    maps = [map_of(structure_network(4), i, number=number) for number, i in enumerate((other, image))]
    query = cut_turned(image, 131, 117, 72, rotation)
    search = searched(query, maps, within, cell=4)
    answers = search.answers()
    best = answers[0]
    assert best.map == 1 and math.hypot(best.x - 131, best.y - 117) < 1.5
    assert abs(difference_of_angles(best.rotation, rotation)) < 1.5
    evidence = dict(zip(EVIDENCE, search.evidence(answers)))
    assert best.score > 0.7 and evidence["lead"] > 10 and evidence["quarters"] == 4
    assert best.probability > 0.5 and abs(search.zoom_of(best) - 1) < 0.03
    (xx, xy), (_, yy) = best.covariance
    assert 0 <= xx < 100 and 0 <= yy < 100 and xy ** 2 <= xx * yy + 1e-6

    away = searched(query, maps[:1], within, cell=4)
    nowhere = away.answers()
    unsure = dict(zip(EVIDENCE, away.evidence(nowhere)))
    assert nowhere[0].score < 0.7 * best.score and unsure["quarters"] < 4 and unsure["lead"] < evidence["lead"]


@pytest.mark.parametrize("cell, rule", [(4, np.max), (8, np.median)])
def test_places_between_cells_are_exact_to_half_a_pixel(cell, rule):
    """At every part of a cell, half of one among them, in the other modality, whose contrast is the reverse."""
    image = cv2.GaussianBlur(ground(256, seed=2), (0, 0), 1.0)
    map_ = map_of(structure_network(cell), image)
    errors = []
    for part in np.arange(0, cell + 1, cell / 8):
        x, y = 121 + part, 130 - part
        answer = searched(255 - cut_turned(image, x, y, 96, 0.0), [map_], cell=cell).answers()[0]
        errors.append((answer.x - x, answer.y - y))
    assert rule(np.abs(errors)) <= 0.5 and np.max(np.abs(errors)) < 0.75


def test_two_answers_near_each_other_are_told_apart():
    """What a second candidate finds at the edge of what it looks at is the first one's peak, not another answer."""
    image = ground(200, seed=4)
    for x in range(60, 141, 10):
        answer = searched(image[40:140, x - 50:x + 50], [map_of(structure_network(4), image)], cell=4).answers()[0]
        assert abs(answer.x - x) < 0.5 and abs(answer.y - 90) < 0.5


def test_a_part_of_a_map_keeps_its_coordinates():
    image = ground(240)
    whole = map_of(structure_network(), image)
    part = whole.part(150, 90, 70)
    assert part.origin == (80, 16) and part.cells.shape[1:] == (18, 18) and whole.part(120, 120, 130) is whole
    answer = searched(image[60:124, 110:174], [part]).answers()[0]
    assert math.hypot(answer.x - 142, answer.y - 92) < 1


def test_what_a_map_does_not_show_is_not_compared():
    image = ground(240)
    shown = np.ones((240, 240), bool)
    shown[:120, :100] = False
    map_ = map_of(structure_network(), image * shown[..., None], shown)
    assert (map_.mask[0, :15, :12] == 0).all() and (map_.mask[0, :15, 13:] == 1).all(), "nor cells half shown"
    query = image[100:180, 84:164]                                    # a part of it lies where nothing is shown
    answer = searched(query, [map_]).answers()[0]
    assert math.hypot(answer.x - 124, answer.y - 140) < 2
    collar = np.ones((80, 80), bool)
    collar[:30] = False
    answer = searched(query * collar[..., None], [map_of(structure_network(), image)], shown=collar).answers()[0]
    assert math.hypot(answer.x - 124, answer.y - 140) < 2


def test_peaks_are_distinct():
    scores = torch.zeros(3, 40, 40)
    scores[0, 10, 10], scores[0, 12, 11], scores[2, 10, 10], scores[0, 30, 30] = 0.9, 0.8, 0.7, 0.6
    peaks = distinct_peaks(scores, np.array([0.0, 6.0, 90.0]), 5, 3)
    assert [peak[1:] for peak in peaks] == [(0, 10, 10), (2, 10, 10), (0, 30, 30)]
    assert difference_of_angles(359, 1) == -2 and len(rotations_to_try(180)) == 24


def test_baselines_find_what_is_there():
    image = ground(160)
    inverted = 255 - image[40:110, 60:130]
    assert best_position(gradient_correlation(inverted, image)) == (40, 60)
    assert best_position(mutual_information(inverted, image)) == (40, 60)
    correlate_structure = StructureCorrelation()
    cosines = correlate_structure(inverted, image)
    assert best_position(cosines) == (40, 60) and cosines.shape == (91, 91) and 0.8 < cosines.max() <= 1
    assert best_position(correlate_structure(inverted, image[10:])) == (30, 60), "another image"
    # Mutual information against a histogram that is counted, at one position.
    smooth = mutual_information(image[40:110, 60:130], image)
    assert smooth[40, 60] == smooth.max() and smooth.min() >= -1e-6
    large = ground(480)
    shift, error = displacement(large, np.roll(large, (3, -5), (0, 1)))
    assert shift.tolist() == [5, -3] and (error < 0.5).all()


def test_queries_of_a_tile_keep_out_of_what_is_hidden():
    image = ground(200)
    tiles = Tiles(["a"], [image], [image], [[(0, 0, 200, 90)]], 10.0)
    queries = draw_queries(tiles, 60, 180, 20, 0)
    assert len(queries) == 20 and all(query.x - 30 >= 90 for query in queries)
    assert {query.image.shape for query in queries} == {(60, 60, 3)}
    assert draw_queries(tiles, 210, 0, 5, 0) == []


def test_patches_are_a_grid_of_cells_and_neighbours_vote():
    network, image = structure_network(), ground(160)
    maps = [map_of(network, image), map_of(network, ground(160, seed=1), number=1)]
    query = image[32:96, 64:128]
    seen = Search(network, query, [0.0], 1.0).seen[0]
    patches, scores = patches_of(maps, seen), scores_of(maps, seen)
    assert len(scores) == len(patches.centres) == 2 * 7 ** 2 and patches.embeddings.shape == (98, 9, 9)
    best = scores.argmax()
    assert patches.map[best] == 0 and patches.centres[best].tolist() == [96, 64] and scores[best] > 0.8
    means = part_means(maps[0].cells, (8, 8))[:, :, 2 * STEP, 4 * STEP]
    parts = [maps[0].cells[:, y:y + 2, x:x + 2].mean((1, 2)) for y in (4, 7, 10) for x in (8, 11, 14)]
    assert torch.allclose(means, torch.stack(parts), atol=1e-5)
    voted = vote(np.array([0.5, 0.5, 0.6, 0.0]), patches_at([[0.0, 0], [20, 0], [200, 0], [0, 0]], [0, 0, 0, 1]))
    assert voted == pytest.approx([0.15, 0.15, 0.2, -0.4])
    own = normalized(part_means(seen.cells[0], seen.size)[None, :, :, 0, 0])[0]
    nodes, edges, rows = graph_of(scores, vote(scores, patches), own, patches)
    assert nodes.shape == (20, 11) and edges.diagonal().all() and (edges == edges.T).all() and rows[0] == best
    assert nodes[0, :9].sum() > 0.8 and FAR > 1e5 and patches.reach == REACH * 8


def patches_at(centres, numbers):
    patches = patches_of([map_of(structure_network(), ground(64))],
                         Search(structure_network(), ground(64), [0.0], 1.0).seen[0])
    patches.centres, patches.map, patches.reach = np.array(centres), np.array(numbers), 40
    return patches


# Tie points ----------------------------------------------------------------------------------------------------------

def displaced(image, amplitude=7.0):
    """(an image whose parts are displaced smoothly, the offset (N, 2) at places (N, 2) of it to where it was taken)."""
    side = len(image)

    def offset(places):
        x, y = np.asarray(places, float).T / side * 2 * np.pi
        return amplitude * np.stack([np.sin(0.7 * y + 0.4) * np.cos(0.5 * x), np.cos(0.6 * x - 0.3)], -1)

    rows, columns = np.mgrid[:side, :side] + 0.5
    at = np.stack([columns, rows], -1)
    sources = (at + offset(at.reshape(-1, 2)).reshape(side, side, 2) - 0.5).astype(np.float32)
    return cv2.remap(image, sources, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), offset


def test_tie_points_tell_a_planted_field():
    image = cv2.GaussianBlur(ground(400, seed=3), (0, 0), 1.0)
    seen, offset = displaced(255 - image)
    query = seen[40:360, 40:360]
    search = searched(query, [map_of(structure_network(), image)])
    answer = search.answers()[0]
    points = find_tie_points(search, answer, 64, 100.0)
    assert len(points.places) == 64 and points.kept.sum() >= 48 and part_side(search) == 96
    true = points.places + 40 + offset(points.places + 40) - (points.places - 160 + (answer.x, answer.y))
    errors = np.hypot(*(points.offsets - true).T)
    assert np.median(errors[points.kept]) <= 1.0 and np.quantile(errors[points.kept], 0.9) <= 2.0
    assert np.median(np.hypot(*true.T)) > 3, "an offset for all would not do"
    field = Field(query.shape, points)
    places = np.random.default_rng(0).uniform(60, 260, (100, 2))
    true = places + 40 + offset(places + 40) - (places - 160 + (answer.x, answer.y))
    assert np.median(np.hypot(*(field(places) - true).T)) <= 1.0
    # Warped by it the query lies on the map as if nothing had been displaced.
    left, top = answer.x - 100, answer.y - 100
    sources = field.sources(query.shape, answer, left, top, 200)
    rows, columns = np.mgrid[:200, :200] + 0.5
    back = sources.reshape(-1, 2) + 40 + offset(sources.reshape(-1, 2) + 40)
    off = np.hypot(*(back - np.stack([left + columns, top + rows], -1).reshape(-1, 2)).T)
    assert np.median(off) <= 1.0


def test_a_tie_point_apart_from_its_neighbours_is_out():
    places = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 40.0
    offsets = places @ np.array([[0.02, 0.0], [0.01, -0.02]])
    offsets[27] += (9.0, 0.0)
    kept = np.ones(64, bool)
    assert np.flatnonzero(outliers(places, offsets, kept)).tolist() == [27]
    few = TiePoints(places, offsets, np.ones(64), np.arange(64) < 3)
    assert (Field((320, 320), few)(places) == 0).all(), "of three points there is no field"


# Calibration ---------------------------------------------------------------------------------------------------------

def test_calibration_asks_every_network_for_its_own_tiles():
    tiles = [Tiles(list(names), images, images, [[]] * 2, 10.0) for names, images in
             (("ab", [ground(96, 1), ground(96, 2)]), ("cd", [ground(96, 3), ground(96, 4)]))]
    asked = [(TileNetwork(structure_network(4), 0.5), part) for part in tiles]
    fitted, count = calibrate(asked, 2)
    assert fitted.sides == [24] and fitted.metres == 20 and count == 16, "px of the network's, half of the tiles'"
    network = asked[0][0]
    query = draw_queries(tiles[0], 48, 0, 1, seed=0)[0]
    search = network.search(query, 0, float(fitted.scale(24)))
    search.look_at(network.maps_of(tiles[0])[query.tile])
    answer = network.in_tile(search.answers()[0], tiles[0])
    assert math.hypot(answer.x - query.x, answer.y - query.y) < 2, "answers come back in px of the tile"


def test_calibration_tells_right_from_wrong():
    random = np.random.default_rng(0)
    outcomes = random.integers(0, 3, 600)
    evidence = random.standard_normal((600, len(EVIDENCE)))
    evidence[:, 0] += np.array([8.0, 0.0, -4.0])[outcomes]
    errors = np.where(outcomes == 0, np.abs(random.standard_normal(600)), np.where(outcomes == 1, 300.0, np.inf))
    textures = np.where(outcomes == 1, 5.0, 50.0)
    fitted = fit_calibration([100, 400], [50.0, 200.0], evidence, outcomes, errors, np.arange(600) % 40, textures, 10.0)
    confidence = fitted.confidence(evidence)
    assert np.allclose(confidence.sum(1), 1)
    status = np.array([fitted.status(c, 1.0) for c in confidence])
    assert fitted.status(confidence[outcomes == 0][0], 0.3) == "ambiguous", "another place is as likely"
    assert (status[outcomes == 0] == "located").mean() > 0.95
    assert (status[outcomes == 2] == "located").mean() <= 0.05
    assert (status[outcomes == 2] == OUTCOMES[2]).mean() > 0.9
    radius = np.array([fitted.radius(c) for c in confidence])
    assert 0.87 <= (errors <= radius)[outcomes == 0].mean() <= 0.95
    # Queries of a tile are displaced alike: the radius is that of another tile, not of another query.
    shift = np.repeat(np.arange(1.0, 21), 30)
    assert radius_by_tile(shift, np.repeat(np.arange(20), 30)) == 19 and radius_by_tile(np.array([]), np.array([])) == 0
    assert fitted.texture == 5.0 and fitted.scale(200) == pytest.approx(100)
    assert conformal_quantile(range(1, 10), 0.9) == 9 and conformal_quantile(np.arange(1, 100), 0.9) == 90


def test_the_radius_holds_what_it_says_on_tiles_never_seen():
    """Tiles that are displaced by their own lengths, many of them: the 90% radius of some holds 87 to 93% of others."""
    random = np.random.default_rng(1)

    def asked(tiles, of_each=8):
        shift = random.gamma(2.0, 1.5, tiles)
        errors = np.abs(np.repeat(shift, of_each) + random.normal(0, 0.5, tiles * of_each))
        return errors, np.repeat(np.arange(tiles), of_each)

    held = [np.mean(asked(400)[0] <= radius_by_tile(*asked(96), resamples=30)) for _ in range(20)]
    assert 0.87 <= np.mean(held) <= 0.93


NUMBERS = {"sides": [100, 200], "scales": [50, 90], "mean": [0.0] * 6, "std": [1.0] * 6, "weights": [[0.0] * 6] * 3,
           "bias": [0.0] * 3, "threshold": 0.5, "edges": [0.0, 0.5, 1.0], "radii": [9.0, 3.0], "texture": 4.0,
           "metres": 8.4}


def test_calibration_is_kept_as_data(tmp_path):
    Calibration(**NUMBERS).save(tmp_path / "calibration.json")
    kept = load_calibration(tmp_path)
    assert {name: getattr(kept, name).tolist() for name in NUMBERS} == NUMBERS


@pytest.mark.parametrize("name, value, words", [
    ("metres", float("nan"), "no number"), ("metres", 0.0, "not above zero"), ("metres", [8.4], "shape"),
    ("sides", [], "shape"), ("sides", [200, 100], "does not grow"), ("scales", [50], "shape"), ("mean", [0.0], "shape"),
    ("std", [0.0] * 6, "not above zero"), ("weights", [[0.0] * 6] * 2, "shape"), ("bias", "none", "could not convert"),
    ("edges", [0.0, 1.0], "shape"), ("edges", [0.0, 0.5, float("inf")], "no number"), ("radii", [9.0, -3.0], "below"),
    ("radii", [], "shape"), ("threshold", None, "no number"), ("texture", {}, "TypeError")])
def test_a_calibration_of_wrong_numbers_is_one_sentence(tmp_path, name, value, words):
    (tmp_path / "calibration.json").write_text(json.dumps({**NUMBERS, name: value}))
    with pytest.raises(InputError, match=f"calibration.json cannot be used .*{words}.*calibrate.py makes it anew"):
        load_calibration(tmp_path)
