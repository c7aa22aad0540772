"""answers.html, the page of a run of tools/locate.py: a map with the footprints, and of each query a row and a picture.

One file that needs no network; the pictures and files that it links to lie beside it.
"""
import base64
import io
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from shared.mapping.locator import WITH_A_PLACE
from shared.mapping.maps import GeoMap
from tools.answers_on_map import summary
from tools.figures import GREEN, ORANGE, SAR

MOST_SIDE, MOST_BYTES, QUALITIES = 1000, 300 * 1024, (85, 70, 50, 30)         # of the picture of the map
COLOURS = {"located": GREEN, "ambiguous": ORANGE, "not on this map": SAR, "error": "#888"}
BAR = 0.3                                               # of the map's width, which its scale bar does not exceed

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ queries|length }} SAR images on {{ map }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 0 1rem 4rem; color: #222;
         background: #fff; }
  h1 { font-size: 1.5rem; overflow-wrap: anywhere; } a { color: #0072B2; }
  .map { margin: 1rem 0; max-width: min(100%, 80vh * {{ width }} / {{ height }}); } svg { display: block; width: 100%; }
  polygon { fill-opacity: 0.15; stroke-width: 2px; vector-effect: non-scaling-stroke; }
  svg a { filter: drop-shadow(0 0 1px #000); }
  .no polygon { fill: none; stroke-dasharray: 4 4; } svg a:hover polygon, svg a:focus polygon { fill-opacity: 0.5; }
  .bar { border: solid currentColor; border-width: 0 2px 3px; text-align: center; white-space: nowrap;
         font-size: 0.85rem; box-sizing: border-box; margin-top: 0.3rem; }
  .mark { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.3em; border-radius: 50%; }
  .counts { display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; padding: 0; }
  .query { display: grid; grid-template-columns: minmax(0, 26rem) minmax(0, 1fr); gap: 0 1.2rem; padding: 1rem 0;
           border-top: 1px solid #ccc; } .query:target { background: #8883; }
  .query img { width: 100%; background: #fff; } h2 { font-size: 1rem; margin: 0 0 0.4rem; } p { margin: 0.3rem 0; }
  .query > * { overflow-wrap: anywhere; } dl { display: grid; grid-template-columns: auto 1fr; gap: 0 0.8rem; }
  dl { margin: 0; font-variant-numeric: tabular-nums; } dt { color: #666; } dd { margin: 0; }
  @media (max-width: 40rem) { .query { grid-template-columns: minmax(0, 1fr); } }
  @media (prefers-color-scheme: dark) {
    body { color: #ddd; background: #16181b; } a { color: #7cc4f0; } dt { color: #aaa; }
    .query { border-color: #444; }
  }
</style>
</head>
<body>
<h1>{{ queries|length }} SAR images on {{ map }}</h1>
<p id="summary">{{ summary }}</p>
<figure class="map">
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="the map with the footprints">
<image href="data:image/jpeg;base64,{{ overview.jpeg }}" width="{{ overview.width }}" height="{{ overview.height }}"
  preserveAspectRatio="none"/>
{% for query in queries if query.corners -%}
<a href="#{{ query.anchor }}" class="{{ 'yes' if query.row.status in placed else 'no' }}">
  <title>{{ query.row.query }}: {{ query.row.status }}</title>
  <polygon points="{{ query.corners }}" fill="{{ query.colour }}" stroke="{{ query.colour }}"/>
  <circle cx="{{ query.middle[0] }}" cy="{{ query.middle[1] }}" r="{{ dot }}" fill="{{ query.colour }}"/></a>
{% endfor -%}
</svg>
<div class="bar" style="width: {{ bar.percent }}%">{{ bar.text }}</div>
</figure>
<ul class="counts">
{% for status, (count, colour) in counts.items() -%}
<li><span class="mark" style="background: {{ colour }}"></span>{{ count }} {{ status }}</li>
{% endfor -%}
</ul>
<p>Coordinates in {{ crs }}; the map is searched at {{ "%.3g"|format(metres) }} m a pixel, north up. Dashed: the best
place of a query that is taken not to be on this map.</p>
{% for query in queries -%}
<section class="query" id="{{ query.anchor }}">
<div>{% if query.picture %}<img src="{{ query.picture }}" alt="the map, the answers and a checkerboard of both"
  loading="lazy">{% endif %}</div>
<div><h2><span class="mark" style="background: {{ query.colour }}"></span>{{ query.row.query }}: {{ query.row.status }}
</h2>
{% if query.row.reason %}<p>{{ query.row.reason }}</p>{% endif %}
<dl>{% for name, text in query.figures %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
<p>{% for name, link in query.files %}<a href="{{ link }}">{{ name }}</a> {% endfor %}</p></div>
</section>
{% endfor -%}
</body>
</html>
"""


def page(answers, geo):
    """The page's text. answers: of each query its line of the journal."""
    rows = [line["rows"][0] for line in answers]
    counts = {}
    for row in rows:
        count, _ = counts.get(row["status"], (0, None))
        counts[row["status"]] = count + 1, COLOURS.get(row["status"], COLOURS["error"])
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    queries = [{**entry(line, geo), "anchor": f"query{number}"} for number, line in enumerate(answers, 1)]
    return template.render(map=Path(geo.file).name, width=geo.width, height=geo.height, metres=geo.metres,
                           crs=geo.map_crs.name, overview=overview(geo), bar=scale_bar(geo), counts=counts,
                           dot=round(max(geo.width, geo.height) / 250, 1), placed=WITH_A_PLACE, summary=summary(rows),
                           queries=queries)


def overview(geo):
    """The map as a JPEG in base64, of some MOST_BYTES at most, and its size in px of the grid."""
    factor = max(1, max(geo.width, geo.height) / MOST_SIDE)
    coarse = GeoMap(geo.file, geo.metres * factor, geo.reader, crs=geo.crs)
    image = Image.fromarray(coarse.read(0, 0, coarse.width, coarse.height)[0])
    for quality in QUALITIES:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        if len(content.getvalue()) <= MOST_BYTES:
            break
    return {"jpeg": base64.b64encode(content.getvalue()).decode(), "width": factor * coarse.width,
            "height": factor * coarse.height}


def scale_bar(geo):
    """The longest of 1, 2, 5, 10 ... metres that is at most BAR of the map's width: words, and percent of the width."""
    most = BAR * geo.width * geo.metres
    power = 10.0 ** np.floor(np.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most)
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    return {"percent": round(100 * length / (geo.width * geo.metres), 3), "text": text}


def entry(line, geo):
    """What the page shows of a query: its first row, its footprint in px of the grid, its picture and its files."""
    row, files = line["rows"][0], {name: quote(name, errors="surrogateescape") for name in line["files"]}
    rings = [shape["geometry"]["coordinates"][0] for shape in line["shapes"]
             if shape["properties"]["part"] == "footprint" and shape["properties"]["rank"] == 1]
    corners, middle, figures = "", None, []
    if rings:
        outline = np.column_stack(geo.from_lonlat(*np.array(rings[0][:-1]).T)).round(1)
        corners = " ".join(f"{x:g},{y:g}" for x, y in outline)
        middle = outline.mean(0).round(1).tolist()
    if row["status"] in WITH_A_PLACE:
        figures = [("x, y", f"{row['x']:.6f}, {row['y']:.6f}" if geo.map_crs.is_geographic
                    else f"{row['x']:.1f}, {row['y']:.1f}"),
                   ("90% within", f"{row['radius']:g} m"), ("probability", f"{row['probability']:g}"),
                   ("rotation", f"{row['rotation']:g}° clockwise"), ("score", f"{row['score']:g}")]
    picture = next((link for name, link in files.items() if name.endswith(".png")), "")
    return {"row": row, "colour": COLOURS.get(row["status"], COLOURS["error"]), "corners": corners, "middle": middle,
            "figures": figures, "picture": picture,
            "files": [(name, link) for name, link in files.items() if link != picture]}
