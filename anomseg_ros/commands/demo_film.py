"""Style and script of the film on the demo's page; colours are those of reports."""

from __future__ import annotations

STYLE = """
.big { border-block: 1px solid var(--line); padding: .9rem 0; margin: 1rem 0; }
.big dd { font-size: 1.5rem; line-height: 1.3; }
.pace { border-left: 4px solid var(--good); padding-left: .8rem; }
.pace.slow { border-color: var(--bad); }
.film { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.film figure { max-width: none; }
.film img { aspect-ratio: 16 / 9; background: #000; border-radius: 4px; display: block; height: auto;
  object-fit: contain; width: 100%; }
#strip { background: var(--raised); border-radius: 4px; display: block; height: 40px; margin-top: .8rem; width: 100%; }
#strip .at { fill: var(--s0); }
#strip .elsewhere { fill: var(--s1); }
#cursor { fill: var(--ink); opacity: .35; }
.strip-legend { color: var(--soft); font-size: .8rem; margin: .2rem 0 0; max-width: none; }
.strip-legend span { border-radius: 2px; display: inline-block; height: .7em; margin: 0 .35em 0 .8em; width: .7em; }
.strip-legend span:first-child { margin-left: 0; }
.strip-legend .at { background: var(--s0); }
.strip-legend .elsewhere { background: var(--s1); }
.controls { align-items: center; display: flex; flex-wrap: wrap; gap: .4rem .8rem; margin: .4rem 0 1.6rem; }
.controls button { background: var(--accent); border: 0; border-radius: 50%; color: var(--ground); cursor: pointer;
  font-size: 1rem; height: 44px; width: 44px; }
.controls input { accent-color: var(--accent); flex: 1; min-width: 10rem; }
.controls output { color: var(--soft); font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 19rem; }
.classes { display: flex; flex-wrap: wrap; font-size: .8rem; gap: .1rem .9rem; list-style: none; margin: .4rem 0 0;
  padding: 0; }
.classes i { border-radius: 2px; display: inline-block; height: .8em; margin-right: .35em; width: .8em; }
.scale { align-items: center; display: flex; font-size: .8rem; font-variant-numeric: tabular-nums; gap: .5rem;
  margin-top: .4rem; }
.scale b { background: linear-gradient(to right, #30123b, #4662d7, #36aaf9, #1ae4b6, #72fe5e, #c8ef34, #faba39, #f66b19,
  #ca2a04, #7a0403); border-radius: 2px; flex: 1; height: .8rem; position: relative; }
.scale i { background: var(--ink); height: 1.3rem; outline: 1px solid var(--ground); position: absolute; top: -.25rem;
  width: 2px; }
@media print { .controls { display: none; } }
"""

SCRIPT = """
"use strict";
(() => {
  const frames = JSON.parse(document.getElementById("frames").textContent);
  const screens = ["camera", "overlay", "score"].map((id) => document.getElementById(id));
  const [play, slider, where, cursor, strip] = ["play", "frame", "where", "cursor", "strip"]
    .map((id) => document.getElementById(id));
  // Loaded beforehand, or the film would stutter.
  const loaded = frames.map((frame) => frame.files.map((name) => Object.assign(new Image(), { src: name })));
  let shown = 0, timer = 0;

  const show = (index) => {
    shown = index;
    const frame = frames[index];
    screens.forEach((screen, k) => { screen.src = loaded[index][k].src; });
    slider.value = index;
    cursor.setAttribute("x", (1000 * index) / frames.length);
    const others = frame.road - frame.known;
    const told = [
      frame.known ? `${frame.known} on the road at a known anomaly` : "",
      others ? `${others} on the road` : "",
      frame.other ? `${frame.other} beside` : "",
    ].filter(Boolean).join(", ");
    where.textContent = `${frame.t.toFixed(2)} s · frame ${index + 1} of ${frames.length} · ` +
      (told ? `alarms: ${told}` : "no alarm");
  };
  const pause = () => { clearTimeout(timer); timer = 0; play.textContent = "▶"; };
  const step = () => {
    const next = (shown + 1) % frames.length;
    const gap_ms = next ? 1000 * (frames[next].t - frames[shown].t) : 800;
    timer = setTimeout(() => { show(next); step(); }, gap_ms);
    play.textContent = "❚❚";
  };
  play.addEventListener("click", () => (timer ? pause() : step()));
  slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    pause();
    show(Math.min(frames.length - 1, Math.floor((frames.length * (event.clientX - box.left)) / box.width)));
  });
  show(0);
  if (frames.length > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) step();
})();
"""
