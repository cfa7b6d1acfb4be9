# SPDX-License-Identifier: Apache-2.0
"""The look of a page: HTML (Jinja2, with everything escaped), CSS and the few lines of JavaScript that draw figures."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

CSS = """
:root { --ink: #22262b; --soft: #6a727c; --line: #e4e4df; --paper: #fdfdfb; --card: #fff; --accent: #2b6cb0; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 44px 0 12px; font-weight: 620; }
h3 { font-size: 13px; margin: 0 0 6px; font-weight: 600; color: var(--soft); }
p { margin: 0 0 10px; } .note { color: var(--soft); font-size: 13.5px; max-width: 82ch; }
a { color: var(--accent); }
nav { margin-top: 14px; font-size: 13.5px; display: flex; flex-wrap: wrap; gap: 4px 18px; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
.facts { color: var(--soft); overflow-wrap: anywhere; } .facts b { color: var(--ink); font-weight: 550; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 0 0 16px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 25px; font-weight: 620; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile b small { font-size: 14px; font-weight: 500; color: var(--soft); } .tile span { color: var(--soft); font-size: 13px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 16px; align-items: start; }
.masonry { columns: 3 310px; column-gap: 16px; } .masonry .card { break-inside: avoid; margin-bottom: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; min-width: 0; }
.card.bare { padding: 0; overflow: hidden; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
td { padding: 3px 8px 3px 0; vertical-align: baseline; border-top: 1px solid #f0f0ec; overflow-wrap: anywhere; }
tr:first-child td, tr:has(td:first-child:empty) td { border-top: 0; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } td.u { color: var(--soft); }
pre { font: 12px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: #f6f6f3; border-radius: 8px;
  padding: 14px; overflow: auto; max-height: 480px; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
.strips { display: flex; gap: 10px; overflow-x: auto; padding: 12px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; scrollbar-width: thin; }
.strips .labels { position: sticky; left: -12px; margin: -12px 0 -12px -12px; padding: 12px 8px 12px 12px; z-index: 1;
  background: var(--card); border-right: 1px solid var(--line); flex: none; width: 96px; }
.strips .labels div { display: flex; align-items: center; color: var(--soft); font-size: 13px; line-height: 1.3; }
.view { flex: none; width: 168px; cursor: zoom-in; border: 0; background: none; padding: 0; font: inherit; color: inherit;
  text-align: left; display: block; }
.view h3 { height: 20px; color: var(--ink); } .labels h3 { height: 20px; }
.strips .cell { height: calc(168px / var(--shape)); margin-bottom: 6px; }
.view img { display: block; width: 100%; height: 100%; border-radius: 4px; object-fit: contain; }
.view small { display: block; font-size: 12.5px; line-height: 1.4; font-variant-numeric: tabular-nums; }
.badge { font-weight: 500; font-size: 11px; color: #7b4b12; background: #fdeed8; border-radius: 4px; padding: 1px 5px; }
.scale { display: flex; align-items: center; gap: 8px; font-size: 12.5px; color: var(--soft); margin: 10px 0 0; }
.scale i { display: block; width: 220px; height: 10px; border-radius: 3px; border: 1px solid var(--line); }
dialog { border: 0; border-radius: 12px; padding: 18px 20px; max-width: 96vw; } dialog::backdrop { background: #1118; }
dialog div { display: flex; flex-wrap: wrap; gap: 12px; justify-content: center; }
dialog figure { margin: 0; } dialog img { display: block; width: 380px; max-width: 90vw; }
figcaption { color: var(--soft); font-size: 13px; text-align: center; }
.plot { width: 100%; } .downloads { display: flex; flex-wrap: wrap; gap: 10px; }
.downloads a { border: 1px solid var(--line); background: var(--card); border-radius: 8px; padding: 8px 14px;
  text-decoration: none; } .downloads a:hover { border-color: var(--accent); }
.downloads small { color: var(--soft); }
footer { max-width: 1180px; margin: 48px auto 32px; padding: 12px 24px 0; color: var(--soft); font-size: 13px; }
"""

# Figures are drawn when they come near the window, and Plotly is run for the first of them: the page is there at once,
# and a browser has few WebGL contexts.
JAVASCRIPT = """
const plotly = () => {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
};
const near = new IntersectionObserver(entries => {
  for (const {isIntersecting, target} of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    plotly();
    const {data, layout} = JSON.parse(target.nextElementSibling.textContent);
    Plotly.newPlot(target, data, layout, {responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["resetCameraLastSave3d", "tableRotation", "select2d", "lasso2d", "autoScale2d"]})
      .then(() => { target.dataset.drawn = "yes"; });
  }
}, {rootMargin: "200px"});
document.querySelectorAll(".plot").forEach(plot => near.observe(plot));
const dialog = document.querySelector("dialog");
document.querySelectorAll(".view").forEach(view => view.addEventListener("click", () => {
  const pictures = document.createElement("div");
  for (const image of view.querySelectorAll("img")) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = image.alt;
    figure.append(Object.assign(new Image(), {src: image.src}), caption);
    pictures.append(figure);
  }
  dialog.replaceChildren(view.querySelector("h3").cloneNode(true), pictures);
  dialog.showModal();
}));
dialog.addEventListener("click", () => dialog.close());
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ css | safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<p class="facts">{% for label, value in facts %}{{ label }} <b>{{ value }}</b>{{ " · " if not loop.last }}{% endfor %}</p>
<nav>{% for section in sections %}<a href="#{{ section.name }}">{{ section.title }}</a>{% endfor %}</nav>
</header>
<main>
{% for section in sections %}
<section id="{{ section.name }}"><h2>{{ section.title }}</h2>
{{ section.body }}
</section>
{% endfor %}
</main>
<footer>{{ footer }}</footer>
<dialog></dialog>
{% if plotly %}<script type="text/plain" id="plotly">{{ plotly | safe }}</script>
{% endif %}<script>{{ javascript | safe }}</script>
</body>
</html>
"""

MACROS = """
{% macro note(text) %}<p class="note">{{ text }}</p>{% endmacro %}

{% macro plot(json) %}<div class="card bare"><div class="plot"></div><script type="application/json">{{ json | safe }}</script></div>
{% endmacro %}

{% macro metrics(tiles, tables) %}
{% if tiles %}<div class="tiles">
{% for label, value, unit in tiles %}<div class="tile"><b>{{ value }} <small>{{ unit }}</small></b><span>{{ label }}</span></div>
{% endfor %}</div>{% endif %}
<div class="masonry">{% for rows in tables %}<div class="card"><table>
{% for label, value, unit in rows %}<tr><td>{{ label }}</td><td class="n">{{ value }}</td><td class="u">{{ unit }}</td></tr>
{% endfor %}</table></div>{% endfor %}</div>
{% endmacro %}

{% macro settings(columns, file, text) %}
<div class="columns">{% for rows in columns %}<div class="card"><table>
{% for label, value in rows %}<tr><td class="u">{{ label }}</td><td>{{ value }}</td></tr>
{% endfor %}</table></div>{% endfor %}</div>
<details><summary>The whole file, {{ file }}</summary><pre>{{ text }}</pre></details>
{% endmacro %}

{% macro strips(views, labels, end_deg, stops, units) %}
<div class="strips" tabindex="0" style="--shape: {{ views[0].size[0] / views[0].size[1] }}">
<div class="labels"><h3></h3>{% for label in labels %}<div class="cell">{{ label }}</div>{% endfor %}</div>
{% for view in views %}<button class="view" title="Enlarge">
<h3>{{ view.name }}{% if view.held_out %} <span class="badge">held out</span>{% endif %}</h3>
{% for uri in (view.known, view.rendered, view.error) %}<div class="cell"><img loading="lazy" decoding="async" \
width="{{ view.size[0] }}" height="{{ view.size[1] }}" src="{{ uri }}" alt="{{ labels[loop.index0] }}"></div>
{% endfor %}
{% if view.mae_deg is not none %}<small>normals {{ "%.2f" | format(view.mae_deg) }}° mean</small>{% endif %}
{% if view.rot_deg is not none %}<small>rotation {{ "%.2g" | format(view.rot_deg) }}° off</small>{% endif %}
{% if view.position is not none %}<small>position {{ "%.3g" | format(view.position) }} {{ units }} off</small>{% endif %}
</button>{% endfor %}
</div>
<div class="scale">angular error <span>0°</span><i style="background: linear-gradient(to right, {{ stops }})"></i>\
<span>{{ "%g" | format(end_deg) }}° and more</span></div>
{% endmacro %}

{% macro downloads(files) %}
<div class="downloads">{% for file in files %}<a download="{{ file.name }}" href="{{ file.uri }}">{{ file.name }} \
<small>{{ file.about }}</small></a>{% endfor %}</div>
{% endmacro %}
"""

_ENVIRONMENT = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.DictLoader({"page": PAGE, "macros": MACROS}),
)


def render(name: str, /, *args: object) -> Markup:
    """The HTML of one of the macros above."""
    return getattr(_ENVIRONMENT.get_template("macros").module, name)(*args)


def render_page(**values: object) -> str:
    """The HTML of a page."""
    return _ENVIRONMENT.get_template("page").render(css=CSS, javascript=JAVASCRIPT, **values)
