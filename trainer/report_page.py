"""The page of a report as a jinja2 template: its style, its words that never change, and its one script.

Without the script everything is visible; with it, lost examples are collapsed and can be searched.
"""

SCRIPT = """
"use strict";
const controls = document.getElementById("controls");
if (controls) {
  const words = document.getElementById("words"), which = document.getElementById("which");
  const told = document.getElementById("told"), groups = [...document.querySelectorAll("section.lost")];
  const examples = [...document.querySelectorAll("details.example")].map((element) => ({
    element,
    capability: element.dataset.capability,
    text: [...element.querySelectorAll(".text")].map((part) => part.textContent).join("\\n").toLowerCase(),
  }));
  const openAll = (open) => examples.forEach(({ element }) => { element.open = open; });
  const search = () => {
    const wanted = words.value.toLowerCase();
    let shown = 0;
    for (const { element, capability, text } of examples) {
      element.hidden = !text.includes(wanted) || (which.selectedIndex > 0 && capability !== which.value);
      shown += !element.hidden;
    }
    for (const group of groups) group.hidden = !group.querySelector("details.example:not([hidden])");
    told.textContent = `${shown} of ${examples.length} shown`;
  };
  words.addEventListener("input", search);
  which.addEventListener("change", search);
  document.getElementById("open").addEventListener("click", () => openAll(true));
  document.getElementById("close").addEventListener("click", () => openAll(false));
  addEventListener("beforeprint", () => openAll(true));
  openAll(false);
  controls.hidden = false;
  search();
}
"""

STYLE = """
:root { color-scheme: light; --paper: #fff; --card: #f6f7f9; --ink: #1a1a1a; --soft: #595959; --line: #d0d5dd;
  --band: #dfe5ee; --regressed: #b23a00; --inconclusive: #7a5c00; --non-inferior: #005ea2; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --paper: #16181c; --card: #1f2329; --ink: #e8e8e8; --soft: #b0b0b0; --line: #41454d;
    --band: #3a4454; --regressed: #ff9e6b; --inconclusive: #f2c94c; --non-inferior: #7cc0ff; }
}
body { margin: 0 auto; max-width: 64rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.1rem; font-weight: 500; margin: 0; color: var(--soft); }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1.05rem; line-height: 1.3; margin: 0; }
h4 { margin: 0.5rem 0 0.15rem; font-size: 0.85rem; font-weight: 600; color: var(--soft); }
p { margin: 0.5rem 0; }
.soft, caption, dt, figcaption { color: var(--soft); }
.overall { margin: 0.5rem 0 1rem; padding: 1rem 1.25rem; border: 1px solid var(--line); border-left: 0.6rem solid;
  border-radius: 0.5rem; background: var(--card); }
.overall .answer { margin: 0.25rem 0; font-size: clamp(1.3rem, 4vw, 1.9rem); font-weight: 700; line-height: 1.25; }
.overall li, .overall p, .card > * { color: var(--ink); }
.overall ul { margin: 0.5rem 0; padding-left: 1.25rem; }
.REGRESSED { border-color: var(--regressed); color: var(--regressed); }
.INCONCLUSIVE { border-color: var(--inconclusive); color: var(--inconclusive); }
.NON-INFERIOR { border-color: var(--non-inferior); color: var(--non-inferior); }
.verdict { font-weight: 700; }
.cards { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.card { padding: 0.75rem 1rem; border: 1px solid var(--line); border-left: 0.35rem solid; border-radius: 0.5rem;
  background: var(--card); break-inside: avoid; }
.card .measure { margin-top: 0.5rem; padding-top: 0.5rem; border-top: 1px solid var(--line); }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 0.1rem 0.75rem; margin: 0.25rem 0; }
.card dd { margin: 0; font-variant-numeric: tabular-nums; }
.change { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.why { font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
thead th { vertical-align: bottom; }
table.wrap td { white-space: normal; }
tr > :first-child { position: sticky; left: 0; padding-left: 0; background: var(--paper); white-space: normal;
  min-width: 7.5rem; max-width: min(16rem, 32vw); }
figure { margin: 1rem 0; break-inside: avoid; }
figure svg { display: block; width: 100%; max-width: 54rem; min-width: 34rem; height: auto; }
.controls { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; align-items: end; margin: 0.5rem 0; }
.controls[hidden] { display: none; }
.controls label { display: grid; font-size: 0.9rem; }
input, select, button { font: inherit; max-width: 80vw; padding: 0.3rem 0.5rem; }
section.lost { margin: 1rem 0; }
details.example { margin: 0.5rem 0; padding: 0.5rem 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem; }
summary { cursor: pointer; }
.pair { display: grid; gap: 0 0.75rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.text { max-height: 24rem; overflow: auto; padding: 0.5rem; border-radius: 0.3rem; background: var(--card);
  white-space: pre-wrap; font: 0.875rem/1.5 ui-monospace, monospace; tab-size: 4; }
@media print { .controls { display: none; } .text { max-height: none; } .scroll { overflow: visible; }
  figure svg { min-width: 0; } body { max-width: none; font-size: 0.8rem; } th, td { white-space: normal; } }
"""

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{{ script_sha256 }}'">
<title>{{ title }}: {{ answer.verdict }}</title>
<style>{{ style }}</style>
</head>
<body>
{% macro table(it) %}
<div class="scroll" role="region" aria-label="{{ it.caption }}" tabindex="0">
<table{{ ' class="wrap"'|safe if it.wraps }}>
<caption>{{ it.caption }}</caption>
<thead><tr>{% for column in it.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in it.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro figure(name) %}
{% if name in figures %}
<figure>
<div class="scroll" role="region" aria-label="Figure: {{ captions[name] }}" tabindex="0">{{ figures[name] }}</div>
<figcaption>{{ captions[name] }}</figcaption>
</figure>
{% endif %}
{% endmacro %}
{% macro text(words) %}<div class="text" dir="auto">{{ words or "(empty)" }}</div>{% endmacro %}
<main>
<header>
<h1>{{ title }}: what was learnt, what was forgotten</h1>
<div class="overall {{ answer.verdict }}">
<span class="verdict">{{ answer.sign }} {{ answer.verdict }}</span>
<p class="answer">{{ answer.line }}</p>
{% if answer.details %}
<ul>
{% for detail in answer.details %}
<li>{{ detail }}</li>
{% endfor %}
</ul>
{% endif %}
<p class="headline">{{ headline }}</p>
</div>
</header>

{% if cards %}
<h2>Verdicts on base abilities</h2>
<div class="cards">
{% for card in cards %}
<article class="card {{ card.verdict }}">
<h3>{{ card.capability }}{{ " (worst)" if card.is_worst }}</h3>
<span class="verdict {{ card.verdict }}">{{ card.sign }} {{ card.verdict }}</span>
<span class="soft">{{ card.words }}</span>
{% for measure in card.measures %}
<div class="measure">
<div class="change">{{ measure.change }}</div>
<dl>
{% for name, value in measure.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
<p class="why">{{ measure.why }}</p>
</div>
{% endfor %}
</article>
{% endfor %}
</div>
{% endif %}

<h2>Changes and their intervals</h2>
{{ figure("forest") }}
{% if "stages" in figures %}
<h2>Stages</h2>
{{ figure("stages") }}
{{ table(stages) }}
<ul>
{% for measure in stage_measures %}
<li>{{ measure }}</li>
{% endfor %}
</ul>
{% endif %}
{% if "learning" in figures %}
<h2>Learning against forgetting</h2>
{{ figure("learning") }}
{% endif %}
{% if drift or "drift" in figures %}
<h2>Drift of predictions</h2>
{{ figure("drift") }}
{% if drift %}
{{ table(drift) }}
{% endif %}
{% endif %}

<h2>All measures</h2>
{{ table(all_rows) }}
<p class="soft">No clear change: the interval includes zero, which shows no change and does not show that there is none.
NON-INFERIOR: the interval excludes a loss as large as the margin. REGRESSED: the loss is clear, also after Holm's
correction over all base rows, and reaches the margin. INCONCLUSIVE: neither. Each interval stands alone: of many, about
one in twenty excludes zero by chance. Intervals cover the choice of examples, not the training seed. Made by:
{{ methods }}.</p>
{% if answers %}
<h2>Single answers</h2>
{{ table(answers) }}
{% endif %}
{% if recovery %}
<h2>Recovery probe</h2>
{{ table(recovery) }}
{% endif %}
{% if lost %}
<h2>Lost examples</h2>
<div class="controls" id="controls" hidden>
<label>Search <input type="search" id="words"></label>
<label>Capability <select id="which">
<option value="">all</option>
{% for capability in lost_capabilities %}
<option value="{{ capability }}">{{ capability }}</option>
{% endfor %}
</select></label>
<button type="button" id="open">Open all</button>
<button type="button" id="close">Close all</button>
<span id="told" role="status"></span>
</div>
{% for group in lost %}
<section class="lost">
<h3>{{ group.label }}</h3>
<p class="soft">{{ group.counts }}</p>
{% for example in group.examples %}
<details class="example" data-capability="{{ group.capability }}" open>
<summary>Example {{ loop.index }}: {{ example.prompt|truncate(90, true) }}</summary>
<h4>Prompt</h4>{{ text(example.prompt) }}
<h4>Right answer</h4>{{ text(example.target) }}
<div class="pair">
{% if example.answer_before is not none %}
<div><h4>Answer before</h4>{{ text(example.answer_before) }}</div>
{% endif %}
{% if example.answer_after is not none %}
<div><h4>Answer now</h4>{{ text(example.answer_after) }}</div>
{% endif %}
</div>
</details>
{% endfor %}
</section>
{% endfor %}
{% endif %}
{% if provenance %}
<h2>Provenance</h2>
{{ table(provenance) }}
{% endif %}
</main>
<script>{{ script }}</script>
</body>
</html>
"""
