"use strict";
(() => {
  const frames = [...document.querySelectorAll(".frames button")];
  const [told, names, copy, save] = ["told", "names", "copy", "save"].map((id) => document.getElementById(id));

  const list = () => {
    const struck = frames.filter((frame) => frame.getAttribute("aria-pressed") === "true");
    const lines = struck.flatMap((frame) => frame.dataset.names.split("\n"));
    names.value = lines.map((line) => `${line}\n`).join("");
    told.textContent = lines.length === 0 ? "No frame is struck out"
      : lines.length === 1 ? "1 frame is struck out" : `${lines.length} frames are struck out`;
    copy.disabled = save.disabled = lines.length === 0;
  };
  frames.forEach((frame) => frame.addEventListener("click", () => {
    frame.setAttribute("aria-pressed", String(frame.getAttribute("aria-pressed") !== "true"));
    list();
  }));
  copy.addEventListener("click", async () => {
    names.select();
    try {
      await navigator.clipboard.writeText(names.value);
    } catch {
      document.execCommand("copy"); // pages from a file have no clipboard in some browsers
    }
    told.textContent = "Copied";
  });
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([names.value], { type: "text/plain" }));
    link.download = "leave_out.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
  document.querySelector(".list").hidden = false;
  list();
})();
