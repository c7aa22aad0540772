"""Where SAR queries lie on the tiles of the test split: how far off, how turned, and how honest about it.

    python code_Match/test.py --run results/NAME
    python code_Match/test.py --run results/NAME --method graph --halves results/HALF results/OTHER_HALF

--run: a run of code_Con/train.py with --pooling cells. --method: cells (every position), and of patches of the map as
large as the query, every second cell, voting (of neighbouring patches) and graph (attention over the first 20 answers,
learned on training tiles that the run, or the halves of calibrate.py, did not see); without learning structure
(oriented gradients), ncc (gradient correlation) and mi (mutual information). Each query is looked for on its own tile
and on all of them.
--method trust looks for each on its own tile and on another: how often it is said rightly that it is there; needs
calibrate.py.
"""
import argparse
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
from tqdm import tqdm

from baselines import StructureCorrelation, best_position, displacement, gradient_correlation, mutual_information
from calibrate import error_px
from graph import graph_of, normalized, part_means, patches_of, scores_of, train_graph, vote
from queries import draw_queries
from scaled import load_tile_network
from tiles import add_crs, load_tiles
from unseen import add_halves, unseen_by
from shared import options
from shared.finished_run import asked_of, is_tested, require_row_of
from shared.mapping.calibration import RIGHT_PX, load_calibration
from shared.mapping.cells import load_cell_network
from shared.mapping.localization import Answer
from shared.mapping.turned import difference_of_angles
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_text
from shared.plumbing.lines import Lines
from shared.plumbing.packed import outputs_of
from shared.plumbing.run_files import read_settings, seconds_of
from shared.reading.fingerprint import fingerprint
from shared.reading.layouts import find_data
from shared.reading.readers import readers_of_run

METHODS = ("cells", "voting", "graph", "structure", "ncc", "mi", "trust")
WITHOUT_LEARNING = {"structure": StructureCorrelation(), "ncc": gradient_correlation, "mi": mutual_information}
OF_PATCHES = ("voting", "graph")
BY_FINER = ("cells", "trust")                           # whose answers a run's finer cells put in order
SIDES = (100, 200, 400)
# How many queries of a tile: fewer where one takes longer. Map, half width of the rotations.
SETTINGS = {("tile", 0): 10, ("tile", 15): 3, ("tile", 180): 2, ("mosaic", 0): 3, ("mosaic", 15): 1, ("mosaic", 180): 1}
WITHIN = (1, 3, 5, 10, 20)
AREAS = (3, 5, 10)                                      # px up to which the area under the curve of WITHIN is taken
TRUST_QUERIES = 5                                       # of each tile
GRAPH_QUERIES = 400                                     # of tiles that were not seen, to learn the graph from
GRAPH_OF_EACH = 4                                       # times --queries of them at most are of one tile
NO_ANSWER = np.array([0.0, 0.0, 1.0])                   # as Calibration.confidence gives it: not on this map
NAMES = {0: "known", 15: "within 15°", 180: "unknown"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path,
                        help="a run of code_Con/train.py: its folder, or packed by tools/pack.py")
    parser.add_argument("--method", choices=METHODS, default="cells")
    add_halves(parser)
    parser.add_argument("--calibration", type=Path, metavar="FOLDER",
                        help="that holds the calibration.json of --run (default: --run itself)")
    parser.add_argument("--data_path", help="another data set than the run's own")
    add_crs(parser)
    parser.add_argument("--sides", type=options.positive, nargs="+", default=SIDES, metavar="PX", help="of the queries")
    parser.add_argument("--queries", type=options.positive, default=10, help="of each tile, at most")
    parser.add_argument("--tiles", type=options.positive, metavar="N", help="the first N tiles alone (default: all)")
    parser.add_argument("--validation", action="store_true",
                        help="the training tiles that --run held out instead of the test tiles: for making choices")
    parser.add_argument("--result_path", type=Path, help="write the figures there, as a row of the table")
    options.add_reading(parser)
    options.add_device(parser)
    args = parser.parse_args()
    if args.halves and args.method != "graph":
        raise InputError(f"--halves is what --method graph learns from, and --method {args.method} learns nothing: "
                         "leave it out")
    return args


class Tested:
    """What all methods need: network, tiles and their maps, made once."""

    def __init__(self, args):
        self.args = args
        self.device = choose_device(args.device)
        self.autocast = autocast(self.device, args.amp)
        self.settings = read_settings(args.run)
        self.data_path = args.data_path or self.settings["data_path"]
        self.is_own = args.data_path is None
        readers = readers_of_run(args.run, args, self.is_own)
        self.network = self.load(args.run)
        self.calibration = None
        if args.method == "trust":
            self.calibration = load_calibration(args.calibration or args.run, self.network.network)
        if args.validation or args.method == "graph":
            train = load_tiles(self.settings["data_path"], "train", args.workers, readers, args.crs)
            self.unseen = unseen_by(args.run, args.halves, train)
        if args.validation:
            self.tiles = unseen_by(args.run, None, train)[0].tiles
        else:
            self.tiles = load_tiles(self.data_path, "test", args.workers, readers, args.crs)
        if args.tiles:
            self.tiles = self.tiles.subset(range(min(args.tiles, len(self.tiles))))
        if args.method not in WITHOUT_LEARNING:
            self.maps = self.network.maps_of(self.tiles)

    def load(self, run):
        return load_tile_network(run, self.settings["data_path"], self.device, self.autocast)

    def scale(self, side):
        """The factor on scores, which makes probabilities of them; without a calibration no one asks for these."""
        return self.calibration.scale(side * self.network.factor) if self.calibration else 1.0


def test(args):
    file = args.result_path and args.result_path / "metrics.json"
    if file and is_tested(args.result_path):
        data_path = args.data_path or read_settings(args.run)["data_path"]
        require_row_of(args.result_path, args.run, data_path, asked_of(args))
        if args.method in BY_FINER:
            require_finer_of(args.result_path, args.run)
        print(f"{args.result_path} is finished")
        return
    tested = Tested(args)
    tiles = tested.tiles
    identity = tested.network.network.finer_identity
    given = argparse.Namespace(**vars(args), finer=identity) if identity else args
    displaced, lines = [], Lines((args.result_path or outputs_of(args.run)) / f"lines_{args.method}.json", given)
    if args.method != "trust":
        displaced = [displacement(opt, sar) for opt, sar in zip(tiles.opt, tiles.sar)]
    for side in args.sides:
        if side > min(min(tile.shape[:2]) for tile in tiles.opt):
            continue
        if args.method == "trust":
            if not lines.has(side=side):
                lines.add(trust_of(tested, side, args.queries))
            continue
        left = [(kind, within) for kind, within in settings_of(args.method)
                if not lines.has(side=side, map=kind, rotation=NAMES[within])]
        if not left:
            continue
        locate = locator(args.method, tested, side)
        for kind, within in left:
            queries = draw_queries(tiles, side, within, min(SETTINGS[kind, within], args.queries), seed=0)
            if not queries:
                continue
            answers, start = [], time.perf_counter()
            for query in tqdm(queries, desc=f"{side} px, {kind}, {NAMES[within]}", leave=False, disable=None):
                where = [query.tile] if kind == "tile" else range(len(tiles))
                answers.append(locate(query, list(where), within))
            seconds = (time.perf_counter() - start) / len(queries)
            lines.add({"side": side, "map": kind, "rotation": NAMES[within],
                       **figures(queries, answers, displaced, tiles.metres), "seconds": round(seconds, 2)})
    metrics = {"lines": lines.lines, "seconds": seconds_of(args.run),
               "evaluated_on": "validation" if args.validation else "test"}
    if displaced:
        error = np.mean([error for _, error in displaced], 0)
        print(f"tiles displaced by a median of {np.median([np.hypot(*shift) for shift, _ in displaced]):.1f} px, "
              f"standard error {error[0]:.1f} px across, {error[1]:.1f} px down")
        metrics["displacement_error_px"] = error.tolist()
    if file:
        origin = {"data_path": str(tested.data_path), "run": str(args.run), "method": args.method, "finer": identity,
                  "asked": asked_of(args), "tested_data": fingerprint(find_data(tested.data_path), "test")}
        write_text(args.result_path / "args.json", json.dumps({**tested.settings, **origin}, indent=1))
        write_text(file, json.dumps(metrics, indent=1))
    else:
        write_text(outputs_of(args.run) / f"test_{args.method}.json", json.dumps(metrics, indent=1))
    lines.file.unlink(missing_ok=True)


def require_finer_of(row, run):
    """InputError where a finished row was asked by other finer cells than the run has now. Rows of before there
    were any name none."""
    network, _ = load_cell_network(run, torch.device("cpu"), nullcontext)
    if read_settings(row).get("finer") != network.finer_identity:
        raise InputError(f"{row} was asked by other finer cells, or without: remove it, and the same command makes it "
                         f"anew by those of {run}")


def settings_of(method):
    """Those of SETTINGS that a method is tested in."""
    if method in WITHOUT_LEARNING:
        return [("tile", 0)]
    if method in OF_PATCHES:
        return [setting for setting in SETTINGS if setting[1] == 0]
    return list(SETTINGS)


# The methods: (query, numbers of the tiles to look on, half width of its rotation) -> Answer, in px of the tiles ------

def locator(method, tested, side):
    """The function that a method locates queries of `side` px by."""
    if method == "cells":
        return lambda query, where, within: located(tested, query, [tested.maps[i] for i in where], within)[0]
    if method in WITHOUT_LEARNING:
        def by_score(query, where, within):
            row, column = best_position(WITHOUT_LEARNING[method](query.image, tested.tiles.opt[where[0]]))
            return Answer(where[0], column + side / 2, row + side / 2, 0.0, 0.0)
        return by_score

    graph = learned_graph(tested, side) if method == "graph" else None
    patches = {}                                        # of one tile, and of all: what queries of a side share

    def by_patches(query, where, within):
        maps = [tested.maps[i] for i in where]
        seen = tested.network.search(query, within, 1.0).seen[0]
        if tuple(where) not in patches:
            patches[tuple(where)] = patches_of(maps, seen)
        near = patches[tuple(where)]
        order = order_of(graph, maps, seen, near)
        answer = Answer(int(near.map[order[0]]), *near.centres[order[0]], 0.0, 0.0)
        return tested.network.in_tile(answer, tested.tiles)
    return by_patches


def located(tested, query, maps, within):
    """(the best Answer, the Search, all answers in the network's px) by cells on these maps."""
    search = tested.network.search(query, within, tested.scale(len(query.image)))
    for map_ in maps:
        search.look_at(map_)
    answers = search.answers()
    if not answers:
        return Answer(-1, np.inf, np.inf, 0.0, -1.0), search, answers
    return tested.network.in_tile(answers[0], tested.tiles), search, answers


def order_of(graph, maps, seen, patches):
    """(N) rows of the patches of some maps, best first: by voting, or by the graph where there is one."""
    scores = scores_of(maps, seen)
    voted = vote(scores, patches)
    if graph is None:
        return np.argsort(-voted)
    nodes, edges, rows = graph_of(scores, voted, embedding_of(seen), patches)
    with torch.no_grad():
        return rows[graph(nodes[None], edges[None])[0].argsort(descending=True).numpy()]


def embedding_of(seen):
    """(PARTS^2, C) of a query."""
    return normalized(part_means(seen.cells[0], seen.size)[None, :, :, 0, 0].cpu())[0]


def learned_graph(tested, side):
    """The AnswerGraph, learned on training tiles that the run, or its halves, did not see."""
    examples = []
    for part in tested.unseen:
        network, tiles = tested.load(part.run), part.tiles
        maps = network.maps_of(tiles)
        patches, count = None, max(1, GRAPH_QUERIES // len(tested.unseen) // len(tiles))
        for query in draw_queries(tiles, side, 0, min(count, GRAPH_OF_EACH * tested.args.queries), seed=3):
            seen = network.search(query, 0, 1.0).seen[0]
            patches = patches or patches_of(maps, seen)
            scores = scores_of(maps, seen)
            nodes, edges, rows = graph_of(scores, vote(scores, patches), embedding_of(seen), patches)
            apart = np.linalg.norm(patches.centres[rows] - np.array([query.x, query.y]) * network.factor, axis=1)
            apart[patches.map[rows] != query.tile] = np.inf
            if apart.min() < patches.reach:
                examples.append((nodes, edges, torch.tensor(int(apart.argmin()))))
    if not examples:
        raise InputError(f"--method graph: of queries of {side} px none of the first answers is near, so that nothing "
                         "can be learned from them; give another run")
    return train_graph(examples)


# The figures ---------------------------------------------------------------------------------------------------------

def figures(queries, answers, displaced, metres):
    """A line of the table: shares in percent within WITHIN px of the nominal truth and of the corrected one; median,
    90th percentile (CE90) and RMSE of the right ones in px; failures, and the areas under the curve of the shares up to
    AREAS px, in percent; median error of the rotation in degrees. None for what is on another map."""
    errors = np.array([error_px(answer, query) for answer, query in zip(answers, queries)])
    corrected = []
    for answer, query in zip(answers, queries):
        (dx, dy), _ = displaced[query.tile]
        corrected.append(error_px(replace(answer, x=answer.x - dx, y=answer.y - dy), query))
    turned = [abs(difference_of_angles(a.rotation, q.rotation)) for a, q in zip(answers, queries)]
    right = errors[errors <= RIGHT_PX]
    line = {"queries": len(queries)}
    line.update({f"within{px}": share(errors, px) for px in WITHIN})
    line.update(median_px=finite(np.median(errors)), ce90_px=finite(np.quantile(errors, 0.9, method="higher")),
                right_rmse_px=finite(np.sqrt(np.mean(right ** 2))) if len(right) else None,
                failures=round(100 - share(errors, RIGHT_PX), 2), **{f"auc{px}": area(errors, px) for px in AREAS},
                median_m=finite(np.median(errors) * metres))
    line.update({f"corrected{px}": share(corrected, px) for px in (1, 3, 5, 10)})
    line.update(corrected_median_px=finite(np.median(corrected)), rotation_error=round(float(np.median(turned)), 2))
    return line


def area(errors, px):
    """The area under the curve of the shares within up to `px` px, in percent of what it can be."""
    return round(100 * float(np.mean(np.clip(1 - np.asarray(errors) / px, 0, None))), 2)


def share(errors, px):
    return round(100 * float(np.mean(np.asarray(errors) <= px)), 2)


def finite(value):
    return round(float(value), 2) if np.isfinite(value) else None


def trust_of(tested, side, count):
    """How honest the answers are: each query on its own tile, and on the next one, where it is not; rotation known."""
    is_located, right, inside, off_located, accepted = [], [], [], [], []
    calibration, maps = tested.calibration, tested.maps
    for query in draw_queries(tested.tiles, side, 0, min(count, TRUST_QUERIES), seed=4):
        for is_on in (True, False):
            number = query.tile if is_on else (query.tile + 1) % len(maps)
            answer, search, answers = located(tested, query, [maps[number]], 0)
            confidence = calibration.confidence(search.evidence(answers)) if answers else NO_ANSWER
            says_located = calibration.status(confidence, answer.probability) == "located"
            if not is_on:
                off_located.append(says_located)
                continue
            error = error_px(answer, query)
            is_located.append(says_located)
            right.append(error <= RIGHT_PX)
            accepted.append(confidence[0])
            inside.append(error * tested.network.factor <= calibration.radius(confidence))
    is_located, right = np.array(is_located), np.array(right)
    order = np.argsort(-np.array(accepted))
    risk = 100 * (1 - right[order].cumsum() / np.arange(1, len(order) + 1))
    return {"side": side, "queries": len(is_located), "located": percent(is_located),
            "located_wrongly": percent(~right[is_located]),
            "off_map_located": percent(off_located), "inside_90_radius": percent(inside),
            "located_inside_90_radius": percent(np.array(inside)[is_located]),
            **{f"risk_at_{coverage}": round(float(risk[len(risk) * coverage // 100 - 1]), 2)
               for coverage in (25, 50, 75, 100)}}


def percent(values):
    return round(100 * float(np.mean(values)), 2) if len(values) else None


if __name__ == "__main__":
    run_script(test, arguments)
