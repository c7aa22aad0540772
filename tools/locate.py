"""Where on a map is a SAR image, how is it turned, and can that be trusted?

    python tools/locate.py --map map.tif --query sar.tif
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif [sar2.png ...] --resolution 10
    python tools/locate.py --run results/NAME --map map.tif --query FOLDER --out answers
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --prior -118.2,34.1 --radius 3000
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --check
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --prior own --radius 500 --tie_points 64
    python tools/locate.py --run results/NAME --map map.tif --query sar.tif --warp
    python tools/locate.py --run results/NAME --map map.tif --query FOLDER --map_mask land.tif --query_mask MASKS

--run: a run of code_Con/train.py with --pooling cells, calibrated by code_Match/calibrate.py; without it the network
that comes with the repository (models/README.md). The map is whatever GDAL
opens that is georeferenced, in any CRS or by control points, in any kind of numbers (docs/data.md), read in windows of
ground metres; its cells are kept in --cache and used again. A query is the same, and is then seen north up; or an image
without a georeference, with --resolution (metres of a pixel on the ground). Rotations are those of the query as it is
seen. Several files, folders and globs are a list of queries. Writes to --out, as the answers come: answers.csv and
answers.jsonl, of each query a picture (NAME.png), and at the end answers.geojson, answers.html (a page to look at) and,
with geopandas, answers.gpkg. Where there is a place, also the query as a picture on the map (NAME.tif), control points
for QGIS (NAME.points) and the query itself with them, in its own numbers (NAME.gcps.tif); with --warp that is warped by
them, too (NAME.warped.tif). With --tie_points control points are where parts of it lie, each by itself
(NAME.tie_points.csv). The same command again goes on; --fresh starts over. "not on this map" is an answer; "error" is a
query that could not be read, with the reason, and makes the exit status 2. What each file and column is: docs/use.md.
"""
import argparse
import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository's root, where shared/ is

from shared import options
from shared.mapping.locator import ROTATIONS, Locator, circle_of, require_truth
from shared.mapping.turned import difference_of_angles
from shared.plumbing.device import autocast, choose_device
from shared.plumbing.errors import InputError, OutputError, installation, run_script, several
from shared.plumbing.files import write_bytes, write_text
from shared.plumbing.packed import SHIPPED, require_run
from shared.reading.readers import readers_of_run
from tools.answers_on_map import (PACKAGE, PAGE, Journal, describe, line_of, list_queries, masks_of, picture,
                                  printable, shapes_of, summary, warp, write_package)
from tools.answers_page import page
from tools.control_points import copy_with_points, points_of_answer, warp_by_points
from tools.tie_points import (LEAST_OF_A_QUERY, MOST_TIE_POINTS, Field, find_tie_points, part_side, points_text,
                              rows_of_points, table_text)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=SHIPPED,
                        help="a finished run of code_Con/train.py, calibrated; or a packed one (default: "
                             f"{SHIPPED.parent.name}/{SHIPPED.name})")
    parser.add_argument("--map", required=True)
    parser.add_argument("--query", required=True, nargs="+", help="files, folders, globs")
    options.add_reading(parser)
    parser.add_argument("--map_mask", metavar="FILE",
                        help="a georeferenced raster: where it is zero or nodata the map is not searched")
    parser.add_argument("--query_mask", type=Path, metavar="FILE",
                        help="of the query's size, zero where it is not to be looked at; or a folder of such, by the "
                             "queries' names")
    parser.add_argument("--resolution", type=options.above_zero,
                        help="metres a pixel of queries that are not georeferenced")
    parser.add_argument("--rotation", choices=tuple(ROTATIONS), default="known",
                        help="known: north is up; 15: within 15 degrees of that; unknown")
    parser.add_argument("--prior", help="where the query roughly is: X,Y in the map's CRS, or lon,lat, or `own`, "
                                        "its own georeference")
    parser.add_argument("--radius", type=options.above_zero, help="metres about the prior")
    parser.add_argument("--tie_points", type=options.positive, metavar="N",
                        help="find also where some N parts of a query lie, each by itself, and warp it by them")
    parser.add_argument("--warp", action="store_true",
                        help="write the query also warped onto the map's CRS, at its own depth, bands and resolution")
    parser.add_argument("--top_k", type=options.positive, default=5, help="answers written")
    parser.add_argument("--check", action="store_true", help="compare with the queries' own georeference")
    parser.add_argument("--cache", type=Path, help="folder that keeps the map's features (default: beside the map)")
    parser.add_argument("--out", type=Path, default=Path("results/locate"))
    parser.add_argument("--fresh", action="store_true", help="start over where --out holds answers")
    options.add_device(parser)
    args = parser.parse_args(_with_negative_priors(sys.argv[1:]))
    if bool(args.prior) != bool(args.radius):
        raise InputError("--prior and --radius go together: give both, or neither")
    if args.tie_points and args.tie_points > MOST_TIE_POINTS:
        raise InputError(f"--tie_points {args.tie_points}: their parts overlap, and more than {MOST_TIE_POINTS} tell "
                         "nothing more; give fewer")
    return args


def _with_negative_priors(words):
    """--prior -118.2,34.1 as --prior=-118.2,34.1: argparse takes what begins with a minus for a flag."""
    joined = []
    for word in words:
        if joined and joined[-1] == "--prior":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def main(args):
    device = choose_device(args.device)
    locator = Locator(args.run, device, autocast(device, args.amp), readers_of_run(args.run, args, is_own_data=False))
    geo = locator.open_map(args.map, args.map_mask)
    files = list_queries(args.query)
    masks = masks_of(args.query_mask, files)
    inputs = [args.map, *files, *([args.map_mask] if args.map_mask else [])]
    journal = Journal(args.out, settings_of(args, geo), inputs, masks, args.fresh)
    print(f"map: {geo.look[2]}; {geo.width} x {geo.height} px of {geo.metres:g} m on the ground")
    # All that is wrong by the files' headers is said before the long work.
    asked = {file: opened(file, masks[file], locator, geo, args) for file in files if not journal.has(file)}
    refused = [printable(str(error)) for error in asked.values() if isinstance(error, InputError)]
    if refused and len(refused) == len(files):
        raise several("none of --query can be looked for:", refused)
    print(*(f"error: {words}\n" for words in refused), sep="", end="", file=sys.stderr, flush=True)
    for file in () if asked else files:                 # all answered before: here they are once more
        print(line_of(journal.answers[file]["rows"]))
    features = locator.features_of(geo, cache_of(args))
    for file in list(asked):
        query_or_error = asked.pop(file)                # its pixels go with it
        name = journal.begin(file)
        try:
            if isinstance(query_or_error, InputError):
                raise query_or_error
            query, circle = query_or_error
            location = locator.locate(query, features, ROTATIONS[args.rotation], circle)
        except OutputError:
            raise                                       # a full disk is no fault of the query's
        except InputError as error:
            words = printable(str(error))
            rows, shapes = [{"query": name, "rank": 1, "status": "error", "reason": words}], []
            if words not in refused:
                print(f"error: {words}", file=sys.stderr)
        else:
            location.answers = location.answers[:args.top_k]
            rows, shapes = write(name, query, location, geo, locator.calibration, args.out, args.tie_points,
                                 args.warp)
            print(line_of(rows) + (check(query, location, geo) if args.check else ""), flush=True)
        journal.add(file, rows, shapes)
    journal.close()
    written = [journal.folder / "answers.csv", "answers.geojson", *layers(journal, geo), PAGE]
    write_text(journal.claim(PAGE), page(list(journal.answers.values()), geo))
    firsts = [journal.answers[file]["rows"][0] for file in files]
    print(f"{summary(firsts)}: {', '.join(map(str, written))}")
    if any(row["status"] == "error" for row in firsts):
        sys.exit(2)


def opened(file, mask, locator, geo, args):
    """The Query of a file and its circle about the --prior or None, or the InputError that tells why it cannot be
    looked for."""
    try:
        if args.query_mask and mask is None:
            raise InputError(f"--query_mask {args.query_mask} holds no mask of the name {Path(file).stem}: add it")
        query = locator.open_query(file, args.resolution, geo, mask)
        if args.check:
            require_truth(query)
        return query, circle_of(args.prior, args.radius, query, geo) if args.prior else None
    except InputError as error:
        return error


def layers(journal, geo):
    """[the name of the GeoPackage], which is written where geopandas is installed."""
    if find_spec("geopandas") is None:
        print(f"no {PACKAGE} without geopandas: {installation()}", file=sys.stderr)
        return []
    write_package(journal.claim(PACKAGE), journal.shapes, geo)
    return [PACKAGE]


def settings_of(args, geo):
    """What answers depend on beside the query, for json."""
    weights = hashlib.sha256(require_run(args.run, "--run").read_bytes()).hexdigest()[:16]
    return {"run": weights, "map": geo.identity, "sar_bands": args.sar_bands, "scale": args.scale,
            **{name: str(getattr(args, name)) for name in
               ("query_mask", "resolution", "rotation", "prior", "radius", "tie_points", "warp", "top_k", "check")}}


def cache_of(args):
    """The folder that keeps a map's features: the one given, beside the map where that is a file, or in --out."""
    if args.cache:
        return args.cache
    return Path(f"{args.map}.features") if Path(args.map).is_file() else args.out / "features"


def check(query, location, geo):
    """Words: how far the answer is from where the query's own georeference puts it."""
    if not location.answers:
        return ""
    answer = location.answers[0]
    off = np.hypot(query.truth[0] - answer.x, query.truth[1] - answer.y) * geo.metres
    return f"; {off:.1f} m and {abs(difference_of_angles(answer.rotation, 0)):.1f}° from its own georeference"


def write(name, query, location, geo, calibration, folder, tie_points, is_warped):
    """(rows, shapes) of one query, whose picture and, where it has a place, GeoTIFFs and control points are written to
    the folder."""
    if query.pixels is not None:
        print(f"{name}: {query.taken}")
    if location.answers:
        if location.has_place:
            write_place(name, query, location, geo, calibration, folder, tie_points, is_warped)
        write_bytes(folder / f"{name}.png", picture(name, query, location, geo))
    rows = describe(name, query, location, geo)
    return rows, shapes_of(query, location.answers, rows, geo)


def write_place(name, query, location, geo, calibration, folder, tie_points, is_warped):
    """Write where a query lies, by tie points where they are asked for and found: its control points, itself with them
    and, where that is asked for, warped by them, and warped onto the grid of the map."""
    answer = location.answers[0]
    points = tied(name, query, location, geo, calibration, tie_points) if tie_points else None
    field = Field(query.pixels.shape, points) if points else None
    is_bent = bool(field and field.plates)
    tie_rows = rows_of_points(points, query, answer, geo) if points else []
    rows = tie_rows if is_bent else points_of_answer(query, answer, geo)
    # First what reads the query's file once more, which may be damaged in bands that nobody looked at.
    copy_with_points(query.file, rows, geo.map_crs, folder / f"{name}.gcps.tif")
    if is_warped:
        warp_by_points(folder / f"{name}.gcps.tif", folder / f"{name}.warped.tif", is_bent)
    write_text(folder / f"{name}.points", points_text(rows, geo))
    if points:
        write_text(folder / f"{name}.tie_points.csv", table_text(tie_rows))
    warp(query, answer, geo, folder / f"{name}.tif", field)


def tied(name, query, location, geo, calibration, count):
    """A query's TiePoints; None where it is too small for any."""
    search, answer = location.search, location.answers[0]
    least = LEAST_OF_A_QUERY * search.cell
    if min(query.width, query.height) < least:
        location.reason = f"no tie points: {query.width} x {query.height} px, and {least} are needed"
        return None
    points = find_tie_points(search, answer, count, calibration.scale(part_side(search)))
    lengths = np.hypot(*points.offsets[points.kept].T) * geo.metres
    median = f", of {np.median(lengths):.1f} m in the median" if len(lengths) else ""
    print(f"{name}: {points.kept.sum()} of {len(points.kept)} tie points kept{median}")
    return points


if __name__ == "__main__":
    run_script(main, arguments)
