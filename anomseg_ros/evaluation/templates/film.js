"use strict";
(() => {
  const frames = JSON.parse(document.getElementById("frames").textContent);
  const screens = ["camera", "overlay", "score"].map((id) => document.getElementById(id));
  const [play, slider, where, cursor, strip, truth] = ["play", "frame", "where", "cursor", "strip", "truth"]
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
    const anomalies = frame.truth === null ? "" : frame.truth
      ? ` · truth: ${frame.truth} ${frame.truth === 1 ? "anomaly" : "anomalies"}` : " · truth: no anomaly";
    truth.textContent = `Frame ${frame.number} of ${truth.dataset.played}${anomalies}`;
    where.textContent = `${frame.t.toFixed(2)} s · ` +
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
