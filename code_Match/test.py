"""Where SAR queries lie on the tiles of the test split: how far off, how turned, and how honest about it.

    python code_Match/test.py --run results/NAME --retrieval results/RETRIEVAL
    python code_Match/test.py --run results/NAME --method ncc

--method: matcher (every position), coarse-to-fine (where --retrieval's embeddings point), centre (of the patch that
retrieval finds), voting (of neighbouring patches), graph (attention over the first 20 answers), and without learning
structure (oriented gradients), ncc (gradient correlation) and mi (mutual information). Each query is looked for on its
own tile and on all of them.
--method trust looks for each on its own tile and on another: how often the matcher says rightly that it is there.
"""
import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

import numpy as np
import torch
from tqdm import tqdm

from baselines import StructureCorrelation, best_position, displacement, gradient_correlation, mutual_information
from calibrate import error_px, maps_of
from graph import graph_of, train_graph, vote
from queries import draw_queries
from tiles import load_tiles
from shared import options
from shared.calibration import RIGHT_PX, load_calibration
from shared.fingerprint import fingerprint
from shared.finished_run import read_settings, require_row_of
from shared.layouts import find_data
from shared.lines import Lines
from shared.localization import Answer, Search, difference_of_angles, rotations_to_try
from shared.matcher import load_matcher
from shared.model import load_model
from shared.neighbourhoods import Patches, crop_of, embed_maps, embedding_size, rank_patches
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, run_script
from shared.plumbing.files import write_text
from shared.reading import readers_of_run

METHODS = ("trust", "matcher", "coarse-to-fine", "centre", "voting", "graph", "structure", "ncc", "mi")
RETRIEVAL = ("coarse-to-fine", "centre", "voting", "graph")
WITHOUT_LEARNING = {"structure": StructureCorrelation(), "ncc": gradient_correlation, "mi": mutual_information}
SIDES = (100, 200, 400)
# How many queries of a tile: fewer where one takes longer. Map, half width of the rotations.
SETTINGS = {("tile", 0): 10, ("tile", 15): 3, ("tile", 180): 2, ("mosaic", 0): 3, ("mosaic", 15): 1, ("mosaic", 180): 1}
WITHIN = (1, 3, 5, 10, 20)
GRID_STEPS = {"coarse-to-fine": 4}                      # to the side of a patch; half a patch for the other methods
TRUST_QUERIES = 5                                       # of each tile
NEIGHBOURHOODS = {"tile": 10, "mosaic": 20}             # how many the matcher looks at, coarse to fine
GRAPH_QUERIES = 400                                     # of the held-out tiles, to learn the graph from
NAMES = {0: "known", 15: "within 15°", 180: "unknown"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a run of code_Match/train.py")
    parser.add_argument("--retrieval", type=Path, help="the folder of a run whose embeddings find neighbourhoods")
    parser.add_argument("--method", choices=METHODS, default="matcher")
    parser.add_argument("--data_path", help="another data set than the run's own")
    parser.add_argument("--sides", type=options.positive, nargs="+", default=SIDES, metavar="PX", help="of the queries")
    parser.add_argument("--queries", type=options.positive, default=10, help="of each tile, at most")
    parser.add_argument("--tiles", type=options.positive, metavar="N", help="the first N tiles alone (default: all)")
    parser.add_argument("--validation", action="store_true",
                        help="the training tiles that --run held out instead of the test tiles: for making choices")
    parser.add_argument("--result_path", type=Path, help="write the figures there, as a row of the table")
    options.add_reading(parser)
    options.add_device(parser)
    args = parser.parse_args()
    if args.method in RETRIEVAL and not args.retrieval:
        raise InputError(f"--method {args.method} starts from retrieval: give --retrieval RUN")
    return args


class Tested:
    """What all methods need: models, tiles and their features, made once."""

    def __init__(self, args):
        self.args = args
        self.device = choose_device(args.device)
        self.autocast = autocast(self.device, args.amp)
        self.settings = read_settings(args.run)
        self.data_path = args.data_path or self.settings["data_path"]
        readers = readers_of_run(args.run, args, args.data_path is None)
        if args.validation or args.method == "graph":
            train = load_tiles(self.data_path, "train", args.workers, readers)
            _, self.held_out = train.hold_out(self.settings["validate"])
        self.tiles = self.held_out if args.validation else load_tiles(self.data_path, "test", args.workers, readers)
        if args.tiles:
            self.tiles = self.tiles.subset(range(min(args.tiles, len(self.tiles))))
        self.matcher = load_matcher(args.run, self.device)
        self.calibration = load_calibration(args.run)
        if args.retrieval:
            self.retrieval, self.img_size = load_model(args.retrieval, self.device)
            self.crop = crop_of(self.data_path)
        if args.method in ("trust", "matcher", "coarse-to-fine"):
            self.maps = maps_of(self.matcher, self.tiles, self.device, self.autocast)

    def patches(self, tiles, side):
        size = embedding_size(side, self.img_size, self.crop)
        step = max(1, side // GRID_STEPS.get(self.args.method, 2))
        return embed_maps(self.retrieval, tiles.opt, side, step, size, self.device, self.autocast)

    def rank(self, query, patches, within):
        size = embedding_size(patches.side, self.img_size, self.crop)
        return rank_patches(self.retrieval, query, patches, within, size, self.device, self.autocast)


def test(args):
    file = args.result_path and args.result_path / "metrics.json"
    if file and file.is_file():
        data_path = args.data_path or read_settings(args.run)["data_path"]
        require_row_of(args.result_path, args.run, data_path, method=args.method, retrieval=str(args.retrieval))
        print(f"{args.result_path} is finished")
        return
    tested = Tested(args)
    tiles = tested.tiles
    displaced, lines = [], Lines((args.result_path or args.run) / f"lines_{args.method}.json", args)
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
    metrics = {"lines": lines.lines, "seconds": json.loads((args.run / "metrics.json").read_text())["seconds"],
               "evaluated_on": "validation" if args.validation else "test"}
    if displaced:
        error = np.mean([error for _, error in displaced], 0)
        print(f"tiles displaced by a median of {np.median([np.hypot(*shift) for shift, _ in displaced]):.1f} px, "
              f"standard error {error[0]:.1f} px across, {error[1]:.1f} px down")
        metrics["displacement_error_px"] = error.tolist()
    if file:
        origin = {"data_path": str(tested.data_path), "run": str(args.run), "method": args.method,
                  "retrieval": str(args.retrieval), "tested_data": fingerprint(find_data(tested.data_path), "test")}
        write_text(args.result_path / "args.json", json.dumps({**tested.settings, **origin}, indent=1))
        write_text(file, json.dumps(metrics, indent=1))
    else:
        write_text(args.run / f"test_{args.method}.json", json.dumps(metrics, indent=1))
    lines.file.unlink(missing_ok=True)


def settings_of(method):
    """Those of SETTINGS that a method is tested in."""
    if method in WITHOUT_LEARNING:
        return [("tile", 0)]
    if method == "matcher":
        return [setting for setting in SETTINGS if setting != ("mosaic", 180)]   # minutes a query: coarse-to-fine's
    return list(SETTINGS)


# The methods: (query, numbers of the tiles to look on, half width of its rotation) -> Answer -------------------------

def locator(method, tested, side):
    """The function that a method locates queries of `side` px by."""
    if method == "matcher":
        return lambda query, where, within: matched(tested, query, [tested.maps[i] for i in where], within)[0]
    if method in WITHOUT_LEARNING:
        def by_score(query, where, within):
            row, column = best_position(WITHOUT_LEARNING[method](query.image, tested.tiles.opt[where[0]]))
            return Answer(where[0], 0, column + side / 2, row + side / 2, 0.0, 0.0)
        return by_score

    patches = tested.patches(tested.tiles, side)
    if method == "graph":
        graph = learned_graph(tested, side)

    def by_retrieval(query, where, within):
        rows = np.isin(patches.map, where)
        near = Patches(patches.centres[rows], patches.map[rows], patches.embeddings[torch.from_numpy(rows)], side)
        scores, rotations, embedding = tested.rank(query.image, near, within)
        if method == "voting":
            scores = vote(scores, near)
        best = np.argsort(-scores)
        if method == "graph":
            nodes, edges, rows = graph_of(scores, embedding, near)
            with torch.no_grad():
                best = rows[graph(nodes[None], edges[None])[0].argsort(descending=True).numpy()]
        if method == "coarse-to-fine":
            count = NEIGHBOURHOODS["tile" if len(where) == 1 else "mosaic"]
            parts = [tested.maps[near.map[i]].part(*near.centres[i], side) for i in best[:count]]
            return matched(tested, query, parts, within)[0]
        x, y = near.centres[best[0]]
        return Answer(int(near.map[best[0]]), 0, x, y, float(rotations[best[0]]), float(scores[best[0]]))
    return by_retrieval


def matched(tested, query, maps, within):
    """(the best Answer, the Search, all answers) of the matcher on these maps."""
    scale = tested.calibration.scale(len(query.image))
    search = Search(tested.matcher, query.image, rotations_to_try(within), scale, tested.device, tested.autocast)
    for map_ in maps:
        search.look_at(map_)
    answers = search.answers()
    best = answers[0] if answers else Answer(-1, 0, np.inf, np.inf, 0.0, -1.0)
    return best, search, answers


def learned_graph(tested, side):
    """The AnswerGraph, learned on the tiles that the run held out."""
    patches, examples = tested.patches(tested.held_out, side), []
    for query in draw_queries(tested.held_out, side, 0, max(1, GRAPH_QUERIES // len(tested.held_out)), seed=3):
        scores, _, embedding = tested.rank(query.image, patches, 0)
        nodes, edges, rows = graph_of(scores, embedding, patches)
        apart = np.linalg.norm(patches.centres[rows] - (query.x, query.y), axis=1)
        apart[patches.map[rows] != query.tile] = np.inf
        if apart.min() < side / 2:
            examples.append((nodes, edges, torch.tensor(int(apart.argmin()))))
    return train_graph(examples, patches.embeddings.shape[1])


# The figures ---------------------------------------------------------------------------------------------------------

def figures(queries, answers, displaced, metres):
    """A line of the table: shares in percent within WITHIN px of the nominal truth and of the corrected one, median and
    90th percentile in px and metres, median error of the rotation in degrees. None for what is on another map."""
    errors = np.array([error_px(answer, query) for answer, query in zip(answers, queries)])
    corrected = []
    for answer, query in zip(answers, queries):
        (dx, dy), _ = displaced[query.tile]
        moved = Answer(answer.map, 0, answer.x - dx, answer.y - dy, 0.0, 0.0)
        corrected.append(error_px(moved, query))
    turned = [abs(difference_of_angles(a.rotation, q.rotation)) for a, q in zip(answers, queries)]
    line = {"queries": len(queries)}
    line.update({f"within{px}": share(errors, px) for px in WITHIN})
    line.update(median_px=finite(np.median(errors)), p90_px=finite(np.quantile(errors, 0.9, method="higher")),
                median_m=finite(np.median(errors) * metres))
    line.update({f"corrected{px}": share(corrected, px) for px in (1, 3, 5, 10)})
    line.update(corrected_median_px=finite(np.median(corrected)), rotation_error=round(float(np.median(turned)), 2))
    return line


def share(errors, px):
    return round(100 * float(np.mean(np.asarray(errors) <= px)), 2)


def finite(value):
    return round(float(value), 2) if np.isfinite(value) else None


def trust_of(tested, side, count):
    """How honest the matcher is: each query on its own tile, and on the next one, where it is not; rotation known."""
    located, right, inside, off_located, accepted = [], [], [], [], []
    calibration, maps = tested.calibration, tested.maps
    for query in draw_queries(tested.tiles, side, 0, min(count, TRUST_QUERIES), seed=4):
        for is_on in (True, False):
            number = query.tile if is_on else (query.tile + 1) % len(maps)
            answer, search, answers = matched(tested, query, [maps[number]], 0)
            confidence = calibration.confidence(search.evidence(answers))
            is_located = calibration.status(confidence, answer.probability) == "located"
            if not is_on:
                off_located.append(is_located)
                continue
            error = error_px(answer, query)
            located.append(is_located)
            right.append(error <= RIGHT_PX)
            accepted.append(confidence[0])
            inside.append(error <= calibration.radius(confidence))
    located, right = np.array(located), np.array(right)
    order = np.argsort(-np.array(accepted))
    risk = 100 * (1 - right[order].cumsum() / np.arange(1, len(order) + 1))
    return {"side": side, "queries": len(located), "located": percent(located),
            "located_wrongly": percent(~right[located]),
            "off_map_located": percent(off_located), "inside_90_radius": percent(inside),
            "located_inside_90_radius": percent(np.array(inside)[located]),
            **{f"risk_at_{coverage}": round(float(risk[len(risk) * coverage // 100 - 1]), 2)
               for coverage in (25, 50, 75, 100)}}


def percent(values):
    return round(100 * float(np.mean(values)), 2) if len(values) else None


if __name__ == "__main__":
    run_script(test, arguments)
