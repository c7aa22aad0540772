"""What tools/locate.py writes: a journal of the queries, rows of answers.csv, layers, the warped query, a picture."""
import csv
import glob
import io
import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import rasterio
from filelock import FileLock, Timeout
from matplotlib.colors import ListedColormap
from matplotlib.patheffects import Normal, Stroke
from rasterio.transform import from_origin

from shared.mapping.locator import WITH_A_PLACE
from shared.mapping.maps import state_of
from shared.mapping.turned import turn
from shared.plumbing.errors import InputError, OutputError
from shared.plumbing.files import append_text, halves_of, make_folder, write_bytes, write_text, written_beside
from shared.reading.raster import SUFFIXES
from tools.figures import GREEN, GREY, ORANGE, SAR, SKY, panels, plt, png

COLUMNS = ("query", "rank", "x", "y", "crs", "rotation", "scale", "score", "probability", "radius", "status", "reason")
NUMBERS = ("x", "y", "rotation", "scale", "score", "probability", "radius")
# The files that there may be of a query.
OF_A_QUERY = (".tif", ".png", ".points", ".tie_points.csv", ".gcps.tif", ".warped.tif")
JOURNAL, TABLE, SHAPES, LOCK = "answers.jsonl", "answers.csv", "answers.geojson", ".answers.lock"
PACKAGE, PAGE = "answers.gpkg", "answers.html"
AT_THE_END = PACKAGE, PAGE                              # what is written besides, when all is answered
LAYERS = {"footprints": "footprint", "centres": "centre", "radii": "90% radius"}     # the parts of a package's layers
# Every status, in the order in which they are counted, and its colour in pictures and on the page.
COLOURS = {"located": GREEN, "ambiguous": ORANGE, "not on this map": SAR, "too little texture": GREY,
           "too much nodata": GREY, "resolution does not fit": GREY, "error": GREY, "alternative": SKY}
DASHED = "not on this map"                              # the status whose place is no answer: its line is dashed
MOST_SHOWN, SQUARE = 1200, 32                           # px of the picture of a map, and of the checkerboard's squares
PICTURE, STRIP = (9, 4.95), 1 / 11                      # inches of a picture, and the legend's share of its height
OWN_PLACE = "own georeference"                          # what the legend calls the place that a query tells itself


def list_queries(given):
    """The queries of --query, text: files, folders (their rasters), globs, and whatever else GDAL opens; each once.

    InputError where a folder or a glob holds none.
    """
    queries, empty = [], []
    for text in given:
        found = [text]
        if Path(text).is_dir():
            found = sorted(str(file) for file in Path(text).iterdir()
                           if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
        elif not Path(text).is_file() and "://" not in text and glob.has_magic(text):
            found = sorted(glob.glob(text))
        queries += found
        empty += [] if found else [text]
    if empty:
        raise InputError(f"--query {' '.join(empty)}: there is no image ({', '.join(SUFFIXES)})")
    return list(dict.fromkeys(queries))


def masks_of(given, queries):
    """{query: its mask}. given: of --query_mask: a file for all; or a folder, with a raster of each query's name, or
    None for it; or None. InputError where it is not there."""
    if given is not None and not given.exists():
        raise InputError(f"--query_mask {given} is not there: mend the path")
    if given is None or not given.is_dir():
        return dict.fromkeys(queries, given)
    by_name = {file.stem: file for file in sorted(given.iterdir())
               if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")}
    return {query: by_name.get(Path(query).stem) for query in queries}


def files_of(name):
    return [f"{name}{suffix}" for suffix in OF_A_QUERY]


class Journal:
    """What has been answered, as it comes; the same command again goes on behind the last.

    folder: of --out. settings: what answers depend on beside the query and its mask, for json. inputs: files that must
    not be written over. masks: {query: its mask, or None}. answers.jsonl holds the settings, then of each query a line
    {"query", "name"} when it is begun and one {"query", "name", "state", "files", "rows", "shapes"} when it is
    answered; answers.csv grows with it, and close() writes answers.geojson. A line {"output"} claims the name of what
    is written at the end besides.
    Raises InputError where the folder's answers are of another command and `fresh` is not given, or a file of the
    user's has the name of one of ours.
    """

    def __init__(self, folder, settings, inputs, masks, fresh):
        self.folder, self.masks = folder, masks
        self.inputs = {Path(file).resolve() for file in (*inputs, *filter(None, masks.values()))}
        make_folder(folder, "--out")
        self._require_ours(self._read())                # before anything is left in a folder of the user's
        self.lock = FileLock(folder / LOCK)             # let go of when the process ends, however it ends
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out {folder}: another command is writing there; wait for it, or give another --out")
        kept = self._read()
        self.outputs = [line["output"] for line in kept if "output" in line]
        kept = [line for line in kept if "output" not in line]
        if fresh:
            for line in kept[1:]:
                self._remove_files(line)
            kept = []
        elif kept and kept[0] != settings and not _holds_an_answer(kept[1:]):
            kept = kept[:1]
        elif kept and kept[0] != settings:
            differing = [name for name in settings if kept[0].get(name) != settings[name]]
            raise InputError(f"--out {folder} holds answers of another command (it differs in {', '.join(differing)}): "
                             "give another --out, or --fresh to start over")
        answered = {line["query"]: line for line in kept[1:] if "rows" in line}
        self.answers = {query: line for query, line in answered.items() if line["rows"][0]["status"] != "error"}
        # Of a query that was begun and not answered the files may be there; an error left none, nor a claim to a name.
        self.unanswered = {line["query"] for line in kept[1:] if line["query"] not in answered}
        self.names = {line["query"]: line["name"] for line in kept[1:]
                      if line["query"] in self.answers or line["query"] not in answered}
        self.taken = {file for name in self.names.values() for file in files_of(name)}
        begun = [{"query": query, "name": name} for query, name in self.names.items()]
        lines = settings, *({"output": name} for name in self.outputs), *begun, *self.answers.values()
        write_text(folder / JOURNAL, "\n".join(json.dumps(line) for line in lines))
        write_text(folder / TABLE, _as_csv([COLUMNS, *(row for line in self.answers.values() for row in line["rows"])]))

    def _require_ours(self, kept):
        """InputError where a file of the folder has the name of one that is made for all queries, and is not ours."""
        ours = (JOURNAL, TABLE, SHAPES, *(line.get("output") for line in kept)) if kept else ()
        foreign = [name for name in (JOURNAL, TABLE, SHAPES, *AT_THE_END) if name not in ours
                   and (self.folder / name).exists()]
        if foreign:
            raise InputError(f"--out {self.folder} holds {foreign[0]}, which is not of this tool, or damaged: give "
                             "another --out, or move it away")

    def _read(self):
        """The settings and the whole lines; a last one that was not written to its end is left out. Nothing of a file
        that is no journal."""
        file, lines = self.folder / JOURNAL, []
        for text in file.read_text(errors="replace").splitlines() if file.is_file() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
        is_ours = bool(lines) and isinstance(lines[0], dict) and {"run", "map"} <= lines[0].keys()
        return lines if is_ours and all("output" in line or {"query", "name"} <= line.keys()
                                        for line in lines[1:]) else []

    def has(self, query):
        """Whether a query, as it is now, was answered."""
        return query in self.answers and self.answers[query]["state"] == self._state(query)

    def _state(self, query):
        mask = self.masks.get(query)
        return state_of(query) + (state_of(mask) if mask else [])

    def _remove_files(self, line):
        """Remove what was written of a query."""
        for name in line.get("files", ()):
            if (self.folder / name).resolve() not in self.inputs:
                (self.folder / name).unlink(missing_ok=True)

    def begin(self, query):
        """A name for the query's files: neither another query's, nor one of a file that was there already."""
        self._remove_files(self.answers.get(query, {}))               # of a query that has changed since
        if query in self.unanswered:                                  # what an interruption or a full disk left
            files = files_of(self.names[query])
            halves = [half.name for file in files for half in halves_of(file)]
            self._remove_files({"files": files + halves})
        stem = printable(Path(query).stem) or "query"
        name, number = self.names.get(query, stem), 1
        while query not in self.names and self._is_taken(name):
            number += 1
            name = f"{stem}_{number}"
        if query not in self.names:
            append_text(self.folder / JOURNAL, json.dumps({"query": query, "name": name}) + "\n")
            self.names[query] = name
            self.taken.update(files_of(name))
        return name

    def _is_taken(self, name):
        """Whether one of the files that there may be of a name is another query's, or was there already."""
        files = [self.folder / file for file in files_of(name)]
        return not self.taken.isdisjoint(files_of(name)) or any(
            file.exists() or file.resolve() in self.inputs for file in files)

    def add(self, query, rows, shapes=()):
        """Keep a query's answer."""
        name = self.names[query]
        files = [file for file in files_of(name) if (self.folder / file).exists()]
        line = {"query": query, "name": name, "state": self._state(query), "files": files, "rows": rows,
                "shapes": [*shapes]}
        is_renewed = query in self.answers
        self.answers[query] = line
        append_text(self.folder / JOURNAL, json.dumps(line) + "\n")
        if is_renewed:                                  # a query that has changed since
            every = [row for each in self.answers.values() for row in each["rows"]]
            write_text(self.folder / TABLE, _as_csv([COLUMNS, *every]))
        else:
            append_text(self.folder / TABLE, _as_csv(rows))

    @property
    def shapes(self):
        return [shape for line in self.answers.values() for shape in line["shapes"]]

    def close(self):
        write_text(self.folder / SHAPES, json.dumps({"type": "FeatureCollection", "features": self.shapes}, indent=1))

    def claim(self, name):
        """The path of one of AT_THE_END, which from now on is ours."""
        if name not in self.outputs:
            append_text(self.folder / JOURNAL, json.dumps({"output": name}) + "\n")
            self.outputs.append(name)
        return self.folder / name


def _holds_an_answer(lines):
    """Whether of the lines of a journal, behind the settings, one is an answer, or begins one that did not come."""
    answered = {line["query"]: line["rows"][0]["status"] for line in lines if "rows" in line}
    return any(answered.get(line["query"]) != "error" for line in lines)


def printable(text):
    """Text with bytes of a name that are no UTF-8 as underscores."""
    return re.sub("[\udc80-\udcff]", "_", text)


def _as_csv(rows):
    """Rows of answers.csv as text; a sequence stands for the names of its columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    for row in rows:
        writer.writerow(row if isinstance(row, dict) else dict(zip(COLUMNS, row)))
    return text.getvalue()


def describe(name, query, location, geo):
    """Rows of answers.csv, best first; one without a place where there is no answer.

    Probability and radius are those of a query that lies on this map: one that does not has neither.
    """
    if not location.answers:
        return [{"query": name, "rank": 1, "status": location.status, "reason": location.reason}]
    rows, digits = [], 7 if geo.map_crs.is_geographic else 2          # about a centimetre
    for rank, answer in enumerate(location.answers, 1):
        x, y = geo.to_map(answer.x, answer.y)
        row = {"query": name, "rank": rank, "x": round(x, digits), "y": round(y, digits),
               "crs": name_of_crs(geo.map_crs), "rotation": round(answer.rotation % 360, 2),
               "score": round(answer.score, 4), "status": location.status if rank == 1 else "alternative"}
        if location.has_place:
            row["probability"] = round(answer.probability, 4)
        if rank == 1:
            row.update(scale=round(location.search.zoom_of(answer), 3), reason=location.reason)
        if rank == 1 and location.has_place:
            row["radius"] = round(location.radius, 1)
        rows.append(row)
    return rows


def name_of_crs(crs):
    """Authority and code, as EPSG:32611; of a CRS that has none its name."""
    return ":".join(crs.to_authority() or [crs.name])


def footprint(query, answer):
    """The query's corners on the grid, (4, 2) px, upper left first, clockwise as the query has them."""
    height, width = query.pixels.shape[:2]
    angle = np.deg2rad(answer.rotation)
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2
    return corners @ turned.T + (answer.x, answer.y)


def shapes_of(query, answers, rows, geo):
    """GeoJSON features (RFC 7946): of each answer its footprint, its centre and the circle of its radius, each with the
    columns of its row, the covariance and the part as properties."""
    shapes = []
    for answer, row in zip(answers, rows):
        # Outer rings go counter-clockwise (section 3.1.6): the corners as they are go clockwise.
        corners = [list(map(float, geo.to_lonlat(*corner))) for corner in footprint(query, answer)[::-1]]
        properties = {name: row.get(name) for name in COLUMNS}
        (xx, xy), (_, yy) = np.array(answer.covariance) * geo.metres ** 2
        properties["covariance_m2"] = [round(xx, 1), round(-xy, 1), round(yy, 1)]         # east, both, north
        centre = list(map(float, geo.to_lonlat(answer.x, answer.y)))
        shapes.append({"type": "Feature", "properties": {**properties, "part": "footprint"},
                       "geometry": {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}})
        shapes.append({"type": "Feature", "properties": {**properties, "part": "centre"},
                       "geometry": {"type": "Point", "coordinates": centre}})
        if row.get("radius"):
            ring = [list(map(float, geo.to_lonlat(answer.x + row["radius"] / geo.metres * np.cos(a),
                                                  answer.y - row["radius"] / geo.metres * np.sin(a))))
                    for a in np.linspace(0, 2 * np.pi, 48, endpoint=False)]
            shapes.append({"type": "Feature", "properties": {**properties, "part": "90% radius"},
                           "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}})
    return shapes


def write_package(file, shapes, geo):
    """Write shapes_of all queries as a GeoPackage with a layer for each of LAYERS, in the map's CRS. Needs geopandas.
    """
    import geopandas
    import pyogrio
    from shapely.geometry import shape
    from shapely.ops import transform

    def on_map(longitude, latitude):
        return geo.to_map(*geo.from_lonlat(np.asarray(longitude), np.asarray(latitude)))

    columns = [*COLUMNS, "covariance_m2", "part"]
    with written_beside(file) as beside:
        for layer, part in LAYERS.items():
            chosen = [each for each in shapes if each["properties"]["part"] == part]
            rows = [{**each["properties"], "query": readable(each["properties"]["query"]),
                     "covariance_m2": json.dumps(each["properties"]["covariance_m2"])} for each in chosen]
            places = [transform(on_map, shape(each["geometry"])) for each in chosen]
            frame = geopandas.GeoDataFrame(rows, columns=columns, geometry=places, crs=geo.map_crs)
            frame = frame.astype(dict.fromkeys(NUMBERS, float))       # a column of numbers also where all are empty
            try:
                frame.to_file(beside, layer=layer, driver="GPKG", engine="pyogrio",
                              geometry_type="Point" if part == "centre" else "Polygon")
                is_whole = pyogrio.read_info(beside, layer=layer)["features"] == len(chosen)
            except RuntimeError as error:               # GDAL's; not all that a full disk does to it is one
                raise OutputError(f"{file} cannot be written ({error})")
            if not is_whole:
                raise OutputError(f"{file} cannot be written: the disk is full")


def readable(name):
    """A file's name as text that can be encoded: of bytes that are no UTF-8 a sign that says so."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def line_of(rows):
    """What is printed of a query: its first row."""
    row = rows[0]
    text = f"{row['query']}: {row['status']}"
    if row["status"] in WITH_A_PLACE:
        text += (f", x {row['x']}, y {row['y']} in {row['crs']}, rotation {row['rotation']}°, probability "
                 f"{row['probability']}, 90% within {row['radius']} m")
    return text + (f"; {row['reason']}" if row["reason"] else "")


def counted(rows):
    """{status: words}, in the order of COLOURS, of the first rows of all queries: how many have it, and the median
    radius of the located."""
    counts = Counter(row["status"] for row in rows)
    words = {status: f"{counts[status]} {status}" for status in sorted(counts, key=list(COLOURS).index)}
    radii = [row["radius"] for row in rows if row["status"] == "located"]
    if radii:
        words["located"] += f" (90% within {np.median(radii):.0f} m in the median)"
    return words


def summary(rows):
    """One line on the first rows of all queries."""
    return ", ".join(counted(rows).values())


def warp(query, answer, geo, file, field=None):
    """Write the query, north up on the grid of the map, in the grid's CRS. field: of its tie points, if there are."""
    views, masks = turn(query.pixels, [answer.rotation], shown=query.shown)
    side = views.shape[1]
    if field:
        sources = field.sources(query.pixels.shape, answer, answer.x - side / 2, answer.y - side / 2, side) - 0.5
        views = cv2.remap(query.pixels, sources, None, cv2.INTER_LINEAR)[None]
        masks = cv2.remap(query.shown.astype(np.uint8) * 255, sources, None, cv2.INTER_LINEAR)[None] > 254
    views = views * masks[..., None]
    left, top = geo.transform * (answer.x - side / 2, answer.y - side / 2)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", width=side, height=side, count=4, dtype="uint8", crs=geo.crs.to_wkt(),
                         transform=from_origin(left, top, geo.metres, geo.metres), compress="deflate") as out:
            out.write(views[0].transpose(2, 0, 1), (1, 2, 3))
            out.write(masks[0].astype(np.uint8) * 255, 4)
            out.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
        write_bytes(file, memory.read())


def picture(name, query, location, geo):
    """PNG: left the map about the answers with their footprints and the upper half of the scores; right a checkerboard
    of query and map; below the name and a legend. Transparent beside a map that does not fill its half."""
    figure, (wide, near) = panels(2, width=PICTURE[0] / 2, height=PICTURE[1])
    figure.set_layout_engine(None)
    figure.subplots_adjust(left=0, right=1, bottom=STRIP, top=1, wspace=0.01)
    figure.set_facecolor("none")
    figure.add_artist(plt.Rectangle((0, 0), 1, 0.95 * STRIP, color="white", linewidth=0, zorder=-1))
    for axis in (wide, near):
        axis.set_axis_off()
    left, top, right, bottom = view = view_of(query, location)
    factor = max(1, max(right - left, bottom - top) // MOST_SHOWN)
    ground = read_coarsely(geo, view, factor)
    # Grey, and neither black nor white: scores and lines are what has a colour.
    wide.imshow(ground.mean(-1), extent=(left, right, bottom, top), cmap="gray", vmin=-90, vmax=300)
    heat = draw_scores(wide, location)
    handles = draw_footprints(wide, query, location, view)
    wide.set(xlim=(left, right), ylim=(bottom, top))
    near.imshow(checkerboard(query, location.answers[0], geo))

    figure.text(0.008, 0.72 * STRIP, f"{readable(name)}: {location.status}", va="center", fontsize=9,
                parse_math=False)
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.004, 0.27 * STRIP), ncols=len(handles),
                  fontsize=9, handlelength=2.5, borderaxespad=0, columnspacing=1.5, markerscale=0.4)
    bar = figure.colorbar(heat, cax=figure.add_axes((0.84, 0.55 * STRIP, 0.14, 0.15 * STRIP)), orientation="horizontal")
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    bar.outline.set_linewidth(0.5)
    figure.text(0.83, 0.62 * STRIP, "score where its middle would lie", va="center", ha="right", fontsize=9)
    return png(figure)


def read_coarsely(geo, view, factor):
    """Every factor-th pixel of a part of the map, (h, w, 3) uint8, in strips: a part may be as large as the map."""
    left, top, right, bottom = view
    rows = factor * max(1, 1024 // factor)
    strips = [geo.read(left, y, right - left, min(rows, bottom - y))[0][::factor, ::factor]
              for y in range(top, bottom, rows)]
    return np.concatenate(strips)


def view_of(query, location):
    """(left, top, right, bottom), px of the grid, about the footprints of all answers, in what was searched."""
    corners = np.concatenate([footprint(query, answer) for answer in location.answers])
    reach = max(query.pixels.shape[:2])
    left, top = np.maximum(corners.min(0) - reach, location.area[:2]).astype(int)
    right, bottom = np.minimum(corners.max(0) + reach, location.area[2:]).astype(int)
    return left, top, right, bottom


def draw_scores(axis, location):
    """The score where the query's middle would lie, more opaque the higher it is; below the median nothing is drawn."""
    heat, extent = location.search.heat(location.answers[0])
    least = np.median(heat[heat > -1])                  # -1: where it cannot be
    most = max(heat.max(), least + 1e-6)
    colours = plt.get_cmap("inferno")(np.linspace(0.2, 1, 256))
    colours[:, 3] = np.linspace(0, 1, 256)
    return axis.imshow(heat, extent=extent, cmap=ListedColormap(colours), vmin=least, vmax=most)


def draw_footprints(axis, query, location, view):
    """Of all answers and, where the query's own georeference puts its middle into the view, a ring about that. Returns
    the legend's handles. view: (left, top, right, bottom), px of the grid."""
    handles = {}
    for rank, answer in reversed(list(enumerate(location.answers, 1))):
        status, width = (location.status, 3) if rank == 1 else ("alternative", 2)
        outline = footprint(query, answer)
        label = {"alternative": "next best", DASHED: "best place looked at"}.get(status, "answer")
        handles[label], = axis.plot(*np.concatenate([outline, outline[:1]]).T, color=COLOURS[status], label=label,
                                    linewidth=width, linestyle=(0, (2.5, 1.2)) if status == DASHED else "-",
                                    path_effects=[Stroke(linewidth=width + 1.5, foreground="black"), Normal()])
    if query.truth is not None and np.all(np.clip(query.truth, view[:2], view[2:]) == query.truth):
        for colour, width in (("black", 3), ("white", 1)):
            ring, = axis.plot(*query.truth, "o", markersize=16, markerfacecolor="none", markeredgecolor=colour,
                              markeredgewidth=width)
            handles.setdefault(OWN_PLACE, ring).set_label(OWN_PLACE)
    order = ("answer", "best place looked at", "next best", OWN_PLACE)
    return [handles[label] for label in order if label in handles]


def checkerboard(query, answer, geo):
    """(h, w, 3) uint8: in turns a square of the query, north up, and of the map under it."""
    views, masks = turn(query.pixels, [answer.rotation], shown=query.shown)
    side = views.shape[1]
    x, y = round(answer.x - side / 2), round(answer.y - side / 2)
    first_x, first_y = max(0, -x), max(0, -y)
    last_x, last_y = min(side, geo.width - x), min(side, geo.height - y)
    ground, _ = geo.read(x + first_x, y + first_y, last_x - first_x, last_y - first_y)
    view, mask = (part[0, first_y:last_y, first_x:last_x] for part in (views, masks))
    squares = np.add.outer(np.arange(len(view)) // SQUARE, np.arange(view.shape[1]) // SQUARE) % 2 == 0
    return np.where((squares & mask)[..., None], view, ground)
