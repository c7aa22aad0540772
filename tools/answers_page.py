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
from tools.answers_on_map import COLOURS, DASHED, PICTURE, STRIP, counted

MOST_SIDE, MOST_BYTES, QUALITIES = 1000, 300 * 1024, (85, 70, 50, 30)         # of the picture of the map
BAR = 0.3                                               # of the map's width, which its scale bar does not exceed
MOST_NAMES = 30                                         # of footprints; more would cover the map and each other
# What is said of a status that may have no reason, beside that.
MEANINGS = {"ambiguous": "Another place of this map is as likely, or more so.",
            "not on this map": "More likely off this map than at any place of it that was looked at.",
            "too little texture": "Its grey levels vary too little to be told from other ground."}

TEMPLATE = """{% macro mark(status) -%}
<span class="mark{{ ' no' if status == dashed }}" style="color: {{ colours[status] }}"></span>
{%- endmacro -%}
<!DOCTYPE html>
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
  .ground { position: relative; overflow: hidden; }
  svg a * { vector-effect: non-scaling-stroke; } path { fill: none; stroke: #000; stroke-width: 5px; }
  polygon { fill-opacity: 0.15; stroke-width: 3px; } circle { stroke: #000; stroke-width: 1px; }
  .no polygon { fill-opacity: 0; stroke-dasharray: 10 4; }
  svg a:hover polygon, svg a:focus polygon { fill-opacity: 0.5; }
  .name { position: absolute; transform: translate(-50%, 0.5rem); max-width: 10rem; overflow: hidden;
          text-overflow: ellipsis; white-space: nowrap; font-size: 0.8rem; padding: 0 0.3rem; border-radius: 3px;
          background: #000b; color: #fff; text-decoration: none; }
  .bar { border: solid currentColor; border-width: 0 2px 3px; text-align: center; white-space: nowrap;
         font-size: 0.85rem; box-sizing: border-box; margin-top: 0.3rem; }
  .mark { display: inline-block; width: 1.6em; border-top: 4px solid; margin-right: 0.4em; vertical-align: 0.25em; }
  .mark.no { border-top-style: dashed; }
  .counts { display: flex; flex-wrap: wrap; gap: 0 1.5rem; list-style: none; padding: 0; }
  .query { display: grid; grid-template-columns: minmax(0, 30rem) minmax(0, 1fr); gap: 0 1.2rem; padding: 1rem 0;
           border-top: 1px solid #ccc; } .query:target { background: #8883; }
  /* Of the picture what lies above its legend, which would be too small to be read. */
  .query img { display: block; width: 100%; aspect-ratio: {{ shape }}; object-fit: cover; object-position: top; }
  h2 { font-size: 1rem; margin: 0 0 0.4rem; } p { margin: 0.3rem 0; }
  .query > * { overflow-wrap: anywhere; } dl { display: grid; grid-template-columns: auto 1fr; gap: 0 0.8rem; }
  dl { margin: 0; font-variant-numeric: tabular-nums; } dt { color: #666; } dd { margin: 0; }
  @media (max-width: 40rem) { .query { grid-template-columns: minmax(0, 1fr); gap: 0.6rem 0; } }
  @media (prefers-color-scheme: dark) {
    body { color: #ddd; background: #16181b; } a { color: #7cc4f0; } dt { color: #aaa; }
    .query { border-color: #444; }
  }
</style>
</head>
<body>
<h1>{{ queries|length }} SAR images on {{ map }}</h1>
<ul class="counts">
{% for status, words in counts.items() -%}
<li>{{ mark(status) }}{{ words }}</li>
{% endfor -%}
</ul>
<figure class="map">
<div class="ground">
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="the map with the footprints">
<image href="data:image/jpeg;base64,{{ overview.jpeg }}" width="{{ overview.width }}" height="{{ overview.height }}"
  preserveAspectRatio="none"/>
{% for query in queries if query.corners -%}
<a href="#{{ query.anchor }}" class="{{ 'no' if query.row.status == dashed else 'yes' }}">
  <title>{{ query.row.query }}: {{ query.row.status }}</title>
  <path d="M{{ query.corners }}Z"/>
  <polygon points="{{ query.corners }}" fill="{{ query.colour }}" stroke="{{ query.colour }}"/>
  <circle cx="{{ query.middle[0] }}" cy="{{ query.middle[1] }}" r="{{ dot }}" fill="{{ query.colour }}"/></a>
{% endfor -%}
</svg>
{% for query in queries if query.corners and is_named -%}
<a class="name" href="#{{ query.anchor }}" style="left: {{ (100 * query.middle[0] / width)|round(2) }}%; top: {{
  (100 * query.middle[1] / height)|round(2) }}%">{{ query.row.query }}</a>
{% endfor -%}
</div>
<div class="bar" style="width: {{ bar.percent }}%">{{ bar.text }}</div>
</figure>
<p>Coordinates in {{ crs }}; the map is searched at {{ "%.3g"|format(metres) }} m a pixel, north up. Dashed: the best
place of a query that is taken not to be on this map. Beside each query: the footprint on the map, coloured by the score
where its middle would lie, and a checkerboard of query and map; a click shows both larger, with a legend.</p>
{% for query in queries -%}
<section class="query" id="{{ query.anchor }}">
<div>{% if query.picture %}<a href="{{ query.picture }}"><img src="{{ query.picture }}" loading="lazy"
  alt="the map with the answers, and a checkerboard of query and map"></a>{% endif %}</div>
<div><h2>{{ mark(query.row.status) }}{{ query.row.query }}: {{ query.row.status }}</h2>
{% if query.row.status in meanings %}<p>{{ meanings[query.row.status] }}</p>{% endif %}
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
    queries = [{**entry(line, geo), "anchor": f"query{number}"} for number, line in enumerate(answers, 1)]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    return template.render(map=Path(geo.file).name, width=geo.width, height=geo.height, metres=geo.metres,
                           crs=geo.map_crs.name, overview=overview(geo), bar=scale_bar(geo), colours=COLOURS,
                           counts=counted([query["row"] for query in queries]), dashed=DASHED, meanings=MEANINGS,
                           dot=round(max(geo.width, geo.height) / 250, 1), queries=queries,
                           is_named=sum(query["corners"] != "" for query in queries) <= MOST_NAMES,
                           shape=round(PICTURE[0] / (PICTURE[1] * (1 - STRIP)), 4))


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
    if "x" in row:
        place = f"{row['x']:.6f}, {row['y']:.6f}" if geo.map_crs.is_geographic else f"{row['x']:.1f}, {row['y']:.1f}"
        figures = [("best place" if row["status"] == DASHED else "x, y", place),
                   ("rotation", f"{row['rotation']:g}° clockwise"), ("score", f"{row['score']:g}")]
    if row["status"] in WITH_A_PLACE:
        figures[1:1] = [("90% within", f"{row['radius']:g} m"), ("probability", f"{row['probability']:g}")]
    picture = next((link for name, link in files.items() if name.endswith(".png")), "")
    return {"row": row, "colour": COLOURS[row["status"]], "corners": corners, "middle": middle,
            "figures": figures, "picture": picture,
            "files": [(name, link) for name, link in files.items() if link != picture]}
