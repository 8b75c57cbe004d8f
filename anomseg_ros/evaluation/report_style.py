"""The style sheet of reports: light and dark, from 320 px to a wide screen, and on paper.

Series colours follow Okabe and Ito's palette for colour-blind readers, darkened on light and lightened on dark grounds
until every line has a contrast of 3:1; dash patterns tell series apart without any colour.
"""

from __future__ import annotations

LIGHT = """
  --ground: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --line: #d5dae1; --grid: #e7eaee;
  --accent: #0b5cad; --best: #e6f1fb; --good: #05704f; --bad: #b3420a;
  --s0: #0072b2; --s1: #c75300; --s2: #00805d; --s3: #a8467f; --s4: #8a6100; --s5: #5b4bb8;
"""

DARK = """
  --ground: #14171b; --raised: #1c2026; --ink: #e7eaee; --soft: #a5aeb9; --line: #363d47; --grid: #272c34;
  --accent: #79b8f5; --best: #17324a; --good: #4fd1a1; --bad: #ff9a5c;
  --s0: #56b4e9; --s1: #ff8f47; --s2: #35c79b; --s3: #e79ac6; --s4: #e9b93c; --s5: #b3a4ff;
"""

_RULES = """
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: clamp(1rem, 4vw, 3rem) 1rem 4rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; line-height: 1.3; margin: 3.2rem 0 .25rem; }
h3, h4 { display: inline; font-size: 1rem; margin: 0; }
h4 { display: block; margin: 1.4rem 0 .4rem; }
summary h4 { margin: 0; }
.origins { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.origins h2 { margin-top: 1.4rem; }
p { margin: 0 0 .8rem; max-width: 75ch; }
a { color: var(--accent); }
code { font: .85em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.lead, .note, caption { color: var(--soft); }
.note, caption { font-size: .85rem; }
.protocol { border: 1px solid var(--line); border-radius: 1em; color: var(--soft); font-size: .78rem;
  font-weight: 400; letter-spacing: 0; padding: .1em .7em; white-space: nowrap; vertical-align: .12em; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; margin: 1rem 0 0; padding: 0; }
.origin { border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); display: grid; font-size: .85rem;
  gap: .4rem 1.2rem; grid-template-columns: max-content 1fr; margin: 1.2rem 0 0; padding: .9rem 0; }
.origin dt { color: var(--soft); }
.origin dd { margin: 0; min-width: 0; }
.pair { color: var(--soft); display: inline-block; margin-right: 1rem; }
.pair b { color: var(--ink); font-weight: 500; }
.scroll + .scroll { margin-top: 1.6rem; }
.scroll { max-width: 100%; overflow-x: auto; position: relative; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.hidden-text { clip-path: inset(50%); height: 1px; overflow: hidden; position: absolute; white-space: nowrap;
  width: 1px; }

table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; padding: 0 0 .5rem; text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .42rem .8rem; text-align: right; vertical-align: middle; }
th { font-weight: 600; }
thead th { color: var(--soft); font-size: .82rem; white-space: nowrap; }
thead tr:last-child th { border-bottom-color: var(--soft); }
thead th[colspan] { color: var(--ink); text-align: center; }
th[scope=row], thead tr:first-child th:first-child, th[data-kind=text] { text-align: left; }
th:first-child[scope=row], td:first-child, thead tr:first-child th:first-child { padding-left: 0; }
caption span { display: block; left: 0; max-width: calc(100vw - 2rem); position: sticky; width: max-content; }
td { white-space: nowrap; }
.summary { min-width: min(100%, 34rem); }
.summary th[scope=row] { background: var(--ground); left: 0; overflow-wrap: normal; position: sticky; z-index: 1; }
.summary th[scope=row] span { color: var(--soft); display: block; font-size: .85em; font-weight: 400; }
.summary .first { border-left: 1px solid var(--line); }
.summary .best { background: var(--best); font-weight: 700; }
.better { color: var(--good); }
.worse { color: var(--bad); }

.charts { display: grid; gap: 1.6rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr));
  margin: 1rem 0 1.6rem; }
figure { margin: 0; max-width: 520px; min-width: 0; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .2rem; }
figcaption span { color: var(--soft); font-weight: 400; }
.chart svg { display: block; height: auto; touch-action: pan-y; width: 100%; }
.chart svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart svg .value { fill: var(--ink); }
.grid { stroke: var(--grid); }
.axis { stroke: var(--soft); }
.reference { fill: none; stroke: var(--soft); stroke-dasharray: 2 4; }
.series { fill: none; stroke-linejoin: round; stroke-width: 2; }
.cursor { stroke: var(--ink); stroke-width: 1; visibility: hidden; }
.legend { display: grid; font-size: .85rem; list-style: none; margin: .3rem 0 0; padding: 0; }
.legend button { align-items: center; background: none; border: 0; border-radius: 4px; color: inherit; cursor: pointer;
  display: flex; font: inherit; gap: .6rem; min-height: 32px; padding: .1rem .2rem; text-align: left; width: 100%; }
.legend svg { flex: none; height: 10px; width: 28px; }
.legend output { font-variant-numeric: tabular-nums; margin-left: auto; padding-left: .6rem; text-align: right;
  white-space: nowrap; }
.legend [aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.readout { color: var(--soft); font-size: .8rem; margin: .2rem 0 0; min-height: 1.3em; }

details { border-top: 1px solid var(--line); }
details:last-of-type { border-bottom: 1px solid var(--line); }
details.plain, details.plain:last-of-type { border: 0; margin: 0; }
summary { align-items: baseline; cursor: pointer; display: grid; gap: .1rem .5rem;
  grid-template-columns: 1em minmax(0, 1fr) auto; list-style: none; padding: .75rem 0; }
summary::-webkit-details-marker { display: none; }
summary::before { color: var(--soft); content: "▸"; width: .8em; }
details[open] > summary::before { content: "▾"; }
summary .figures { color: var(--soft); font-size: .9rem; font-variant-numeric: tabular-nums; }
.inside { padding: 0 0 1.8rem; }
.facts { display: grid; gap: .9rem 1.4rem; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr));
  margin: .4rem 0 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { font-size: 1.02rem; font-variant-numeric: tabular-nums; margin: 0; }
.facts small { color: var(--soft); display: block; font-size: .75rem; line-height: 1.35; }

.tools { align-items: center; display: flex; flex-wrap: wrap; gap: .6rem 1rem; margin: .2rem 0 .6rem; }
.tools input { background: var(--raised); border: 1px solid var(--soft); border-radius: 6px; color: inherit;
  font: inherit; font-size: 16px; max-width: 100%; padding: .35rem .6rem; width: 15rem; }
.more { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; color: inherit; cursor: pointer;
  font: inherit; font-size: .9rem; margin-top: .8rem; padding: .5rem 1rem; }
.frames thead button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; padding: .3rem 0; }
.frames thead button::after { content: "↕"; display: inline-block; opacity: .5; text-align: right; width: 1.1em; }
.frames [aria-sort=ascending] button::after { content: "↑"; opacity: 1; }
.frames [aria-sort=descending] button::after { content: "↓"; opacity: 1; }
.frames th[scope=row] { font-weight: 500; max-width: 22rem; min-width: 8.2rem; }
.frames .picture { padding-left: 0; text-align: left; width: 1px; }
.thumb { background: none; border: 0; cursor: zoom-in; display: block; padding: 0; width: clamp(96px, 16vw, 220px); }
.thumb img { border-radius: 4px; display: block; height: auto; width: 100%; }
.heats { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.heats .scroll + .scroll { margin-top: 0; }
.heat th, .heat td { padding-bottom: .2rem; padding-top: .2rem; }
.heat td { background: color-mix(in srgb, var(--bad) var(--lost, 0%), transparent); }
.heat tfoot th, .heat tfoot td { border-top: 1px solid var(--line); }
.iou td.bar { min-width: 7rem; padding-right: 0; width: 100%; }
.iou { max-width: 36rem; width: 100%; }
.iou th { white-space: nowrap; }
.notes { color: var(--soft); font-size: .88rem; margin: .9rem 0 0; padding-left: 1.1rem; }
.bar i { background: var(--s0); border-radius: 2px; display: block; height: .6rem; }

dialog { background: var(--ground); border: 0; border-radius: 8px; color: var(--ink); max-height: 96vh; max-width: 96vw;
  padding: 0; width: max-content; }
dialog::backdrop { background: #000c; }
dialog form { align-items: center; display: flex; gap: .3rem; padding: .2rem .4rem; }
dialog form span { flex: 1; font-size: .9rem; min-width: 0; text-align: center; }
dialog button { background: none; border: 0; color: inherit; cursor: pointer; font-size: 1.6rem; height: 44px;
  line-height: 1; width: 44px; }
dialog img { display: block; height: auto; max-height: calc(96vh - 52px); max-width: 100%; min-width: min(92vw, 900px);
  object-fit: contain; }

@media (max-width: 600px) {
  .origin { grid-template-columns: 1fr; gap: 0; }
  .origin dd { margin-bottom: .5rem; }
  th, td { padding: .4rem .55rem; }
  summary .figures { grid-column: 2 / 4; }
  .summary th[scope=row] { max-width: 42vw; min-width: 6.5rem; overflow-wrap: anywhere; }
  .frames { font-size: .85rem; }
  .thumb { width: 84px; }
}
@media print {
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav, .tools, .more, .readout, dialog { display: none; }
  figure, tr, .facts div { break-inside: avoid; }
  h2, h4, summary { break-after: avoid; }
  .scroll { overflow: visible; }
  .summary .best, .heat td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .frames thead button::after, summary::before { content: none; }
}
"""

STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
@media print {{ :root {{ color-scheme: light; {LIGHT} }} }}
{_RULES}"""
