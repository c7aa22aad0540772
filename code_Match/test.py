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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
from tqdm import tqdm

from accuracy import figures, honesty
from baselines import StructureCorrelation, best_position, displacement, gradient_correlation, mutual_information
from calibrate import error_px
from graph import embedding_of, graph_of, order_of, patches_of, scores_of, train_graph, vote
from queries import draw_queries
from scaled import TileNetwork, load_tile_network
from tiles import Tiles, add_crs, load_tiles
from unseen import add_halves, unseen_by
from shared import options
from shared.finished_run import asked_of, is_tested, require_row_of
from shared.mapping.calibration import RIGHT_PX, load_calibration
from shared.mapping.cells import load_cell_network
from shared.mapping.localization import Answer
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


@dataclass
class Tested:
    """What is asked, and where. maps: the network's Map of each tile, where the method needs them."""
    network: TileNetwork
    tiles: Tiles
    maps: list


def test(args):
    row, settings = args.result_path, read_settings(args.run)
    data_path = args.data_path or settings["data_path"]
    if row and is_tested(row):
        require_row_of(row, args.run, data_path, asked_of(args))
        if args.method in BY_FINER:
            require_finer_of(row, args.run)
        print(f"{row} is finished")
        return

    device = choose_device(args.device)
    readers = readers_of_run(args.run, args, args.data_path is None)
    load = partial(load_tile_network, data_path=settings["data_path"], device=device,
                   autocast=autocast(device, args.amp))
    network = load(args.run)
    calibration = load_calibration(args.calibration or args.run, network.network) if args.method == "trust" else None
    split = partial(load_tiles, workers=args.workers, readers=readers, crs=args.crs)
    train = split(settings["data_path"], "train") if args.validation or args.method == "graph" else None
    unseen = unseen_by(args.run, args.halves, train) if args.method == "graph" else []
    tiles = unseen_by(args.run, None, train)[0].tiles if args.validation else split(data_path, "test")
    tiles = tiles.subset(range(len(tiles))[:args.tiles])
    tested = Tested(network, tiles, [] if args.method in WITHOUT_LEARNING else network.maps_of(tiles))

    identity = network.network.finer_identity
    asked = asked_of(args)
    lines = Lines((row or outputs_of(args.run)) / f"lines_{args.method}.json", args, **asked, finer=identity)
    metrics = {"lines": lines.lines, "seconds": seconds_of(args.run),
               "evaluated_on": "validation" if args.validation else "test"}
    smallest = min(min(tile.shape[:2]) for tile in tiles.opt)
    sides = [side for side in args.sides if side <= smallest]
    if args.method == "trust":
        for side in sides:
            if not lines.has(side=side):
                lines.add({"side": side, **trust_of(tested, calibration, side, args.queries)})
    else:
        displaced = [displacement(opt, sar) for opt, sar in zip(tiles.opt, tiles.sar)]
        for side in sides:
            left = [(kind, within) for kind, within in settings_of(args.method)
                    if not lines.has(side=side, map=kind, rotation=NAMES[within])]
            if not left:
                continue
            graph = learned_graph(unseen, load, side, GRAPH_OF_EACH * args.queries) if unseen else None
            locate = locator(args.method, tested, graph)
            for kind, within in left:
                line = measure(locate, tiles, displaced, side, kind, within, args.queries)
                if line:
                    lines.add(line)
        metrics["displacement_error_px"] = describe(displaced)

    if row:
        origin = {"data_path": str(data_path), "run": str(args.run), "method": args.method, "finer": identity,
                  "asked": asked, "tested_data": fingerprint(find_data(data_path), "test")}
        write_text(row / "args.json", json.dumps({**settings, **origin}, indent=1))
    file = row / "metrics.json" if row else outputs_of(args.run) / f"test_{args.method}.json"
    write_text(file, json.dumps(metrics, indent=1))
    lines.file.unlink(missing_ok=True)


def require_finer_of(row, run):
    """InputError where a finished row was asked by other finer cells than the run has now. Rows of before there
    were any name none."""
    network, _ = load_cell_network(run, torch.device("cpu"), nullcontext)
    if read_settings(row).get("finer") != network.finer_identity:
        raise InputError(f"{row} was asked by other finer cells, or without: remove it, and the same command makes it "
                         f"anew by those of {run}")


def describe(displaced):
    """Print by how much the tiles are displaced; returns its standard error in px, across and down."""
    error = np.mean([error for _, error in displaced], 0)
    print(f"tiles displaced by a median of {np.median([np.hypot(*shift) for shift, _ in displaced]):.1f} px, "
          f"standard error {error[0]:.1f} px across, {error[1]:.1f} px down")
    return error.tolist()


def settings_of(method):
    """Those of SETTINGS that a method is tested in."""
    if method in WITHOUT_LEARNING:
        return [("tile", 0)]
    if method in OF_PATCHES:
        return [setting for setting in SETTINGS if setting[1] == 0]
    return list(SETTINGS)


def measure(locate, tiles, displaced, side, kind, within, count):
    """A line of the table: `count` queries of each tile at most, looked for on their own tile or on all (kind).

    displaced: of each tile, as displacement gives it. None where no tile has room for a query.
    """
    queries = draw_queries(tiles, side, within, min(SETTINGS[kind, within], count), seed=0)
    if not queries:
        return None
    answers, start = [], time.perf_counter()
    for query in tqdm(queries, desc=f"{side} px, {kind}, {NAMES[within]}", leave=False, disable=None):
        where = [query.tile] if kind == "tile" else list(range(len(tiles)))
        answers.append(locate(query, where, within))
    seconds = round((time.perf_counter() - start) / len(queries), 2)
    return {"side": side, "map": kind, "rotation": NAMES[within],
            **figures(queries, answers, displaced, tiles.metres), "seconds": seconds}


# The methods: (query, numbers of the tiles to look on, half width of its rotation) -> Answer, in px of the tiles ------

def locator(method, tested, graph=None):
    """The function that a method locates queries of one side by. graph: the AnswerGraph of `graph`."""
    if method == "cells":
        return lambda query, where, within: by_cells(tested, query, where, within)[0]
    if method in WITHOUT_LEARNING:
        return partial(by_score, WITHOUT_LEARNING[method], tested.tiles)
    return partial(by_patches, tested, graph, {})


def by_cells(tested, query, where, within, scale=1.0):
    """(the best Answer, the Search, all answers in the network's px) by every position on these tiles.

    scale: on scores, which makes probabilities of them; without a calibration no one asks for these.
    """
    search = tested.network.search(query, within, scale)
    for number in where:
        search.look_at(tested.maps[number])
    answers = search.answers()
    if not answers:
        return Answer(-1, np.inf, np.inf, 0.0, -1.0), search, answers
    return tested.network.in_tile(answers[0], tested.tiles), search, answers


def by_score(score, tiles, query, where, within):
    """By one of WITHOUT_LEARNING, on one tile, as the map lies."""
    row, column = best_position(score(query.image, tiles.opt[where[0]]))
    half = len(query.image) / 2
    return Answer(where[0], column + half, row + half, 0.0, 0.0)


def by_patches(tested, graph, patches, query, where, within):
    """By patches of the tiles. patches: of one tile, and of all, as queries of one side share them; filled here."""
    maps = [tested.maps[number] for number in where]
    seen = tested.network.search(query, within, 1.0).seen[0]
    if tuple(where) not in patches:
        patches[tuple(where)] = patches_of(maps, seen)
    near = patches[tuple(where)]
    best = order_of(graph, maps, seen, near)[0]
    answer = Answer(int(near.map[best]), *near.centres[best], 0.0, 0.0)
    return tested.network.in_tile(answer, tested.tiles)


def learned_graph(unseen, load, side, most):
    """The AnswerGraph, learned from queries of training tiles that a run did not see, `most` at most of each.

    unseen: [Unseen]. load: run -> its TileNetwork.
    """
    examples = []
    for part in unseen:
        network, tiles = load(part.run), part.tiles
        maps = network.maps_of(tiles)
        patches, count = None, max(1, GRAPH_QUERIES // len(unseen) // len(tiles))
        for query in draw_queries(tiles, side, 0, min(count, most), seed=3):
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


def trust_of(tested, calibration, side, count):
    """How honest the answers are: each query on its own tile, and on the next one, where it is not; rotation known."""
    scale, factor = calibration.scale(side * tested.network.factor), tested.network.factor
    is_located, is_right, is_inside, accepted, off_map = [], [], [], [], []
    for query in draw_queries(tested.tiles, side, 0, min(count, TRUST_QUERIES), seed=4):
        for is_on in (True, False):
            number = query.tile if is_on else (query.tile + 1) % len(tested.tiles)
            answer, search, answers = by_cells(tested, query, [number], 0, scale)
            confidence = calibration.confidence(search.evidence(answers)) if answers else NO_ANSWER
            says_located = calibration.status(confidence, answer.probability) == "located"
            if not is_on:
                off_map.append(says_located)
                continue
            error = error_px(answer, query)
            is_located.append(says_located)
            is_right.append(error <= RIGHT_PX)
            is_inside.append(error * factor <= calibration.radius(confidence))
            accepted.append(confidence[0])
    return honesty(is_located, is_right, is_inside, accepted, off_map)


if __name__ == "__main__":
    run_script(test, arguments)
