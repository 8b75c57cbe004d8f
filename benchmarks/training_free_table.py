"""benchmarks/training_free.md from the figures of training_free.py."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = "max_logit"


def as_markdown(result: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the document."""
    rows = result["rows"]
    lines = ["# Training-free scores", "", *_about(result), ""]
    for name in dict.fromkeys(row["set"] for row in rows if not row["own"]):
        lines += _set_table(name, [row for row in rows if row["set"] == name])
    lines += ["## Against the plain score", "", *_against_plain([row for row in rows if not row["own"]]), ""]
    own = [row for row in rows if row["own"]]
    if own:
        lines += [
            "## Choice of the default of cluster_mix on own frames",
            "",
            *_choice(own, [row for row in rows if not row["own"]]),
            "",
        ]
    lines += ["## Not measured", ""]
    lines += [f"- {title}: {reason}" for title, reason in result["missing"].items()] or ["None."]
    return "\n".join(lines) + "\n"


def _about(result: Mapping[str, Any]) -> list[str]:
    most = result["frames_per_set"]
    frames = f"at most {most} frames of each set, evenly spread" if most else "all frames of each set"
    text = (
        f"AuPRC / FPR95 in per cent, protocol `seeds`, {frames}. AuPRC is the average precision of the map that the "
        "column names. Every score of a row is computed of the same prediction and the same features. Scores were "
        f"fitted on {result['fit_frames']} frames of CamVid's training split without labels. Written by "
        "`benchmarks/training_free.py`; docs/training_free.md explains the scores."
    )
    return textwrap.wrap(text, 128, break_on_hyphens=False)


def _set_table(name: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    scores = list(rows[0]["scores"])
    lines = [f"## {name} ({rows[0]['frames']} frames)", "", f"| model | {' | '.join(scores)} |"]
    lines.append(f"|---{'|---' * len(scores)}|")
    for row in rows:
        best = max(value[0] for value in row["scores"].values())
        cells = [_cell(value, value[0] == best) for value in row["scores"].values()]
        lines.append(f"| {row['model']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(value: Sequence[float], bold: bool) -> str:
    text = f"{value[0]:.2f} / {value[1]:.2f}"
    return f"**{text}**" if bold else text


def _against_plain(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of each score's gain in AuPRC over the plain score, over all models and sets."""
    lines = [f"AuPRC minus that of `{PLAIN}`, points, over {len(rows)} pairs of model and set:", ""]
    lines += ["| score | mean | worst | best | better | worse |", "|---|---|---|---|---|---|"]
    for name in rows[0]["scores"]:
        if name != PLAIN:
            gains = [round(row["scores"][name][0] - row["scores"][PLAIN][0], 2) for row in rows]
            better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            mean = sum(gains) / len(gains)
            lines.append(f"| `{name}` | {mean:+.2f} | {min(gains):+.2f} | {max(gains):+.2f} | {better} | {worse} |")
    return lines


def chosen_candidate(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the candidate of the largest mean gain that loses no AuPRC on any pair of rows; None if there is none."""
    gains = {name: _gains(rows, name) for name in rows[0]["candidates"]}
    safe = {name: sum(values) for name, values in gains.items() if min(values) >= 0}
    return max(safe, key=lambda name: safe[name]) if safe else None


def _gains(rows: Sequence[Mapping[str, Any]], name: str, figure: int = 0) -> list[float]:
    return [round(row["candidates"][name][figure] - row["scores"][PLAIN][figure], 2) for row in rows]


def _choice(rows: Sequence[Mapping[str, Any]], measured: Sequence[Mapping[str, Any]]) -> list[str]:
    sets = ", ".join(dict.fromkeys(row["set"] for row in rows))
    chosen = chosen_candidate(rows)
    lines = [
        f"Gain in AuPRC over `{PLAIN}` on {len(rows)} pairs of model and own set ({sets}). Chosen: {chosen or 'none'}.",
        "",
        "| candidate | mean | worst | largest rise of FPR95 |",
        "|---|---|---|---|",
    ]
    for name in rows[0]["candidates"]:
        gains, rises = _gains(rows, name), _gains(rows, name, 1)
        lines.append(f"| {name} | {sum(gains) / len(gains):+.2f} | {min(gains):+.2f} | {max(rises):+.2f} |")
    if chosen:
        lines += ["", "The chosen one on the benchmark's sets, AuPRC / FPR95 and the gain in both:", ""]
        lines += ["| model | set | plain | chosen | gain |", "|---|---|---|---|---|"]
        for row, more, rise in zip(measured, _gains(measured, chosen), _gains(measured, chosen, 1), strict=True):
            plain, value = (_cell(one, False) for one in (row["scores"][PLAIN], row["candidates"][chosen]))
            lines.append(f"| {row['model']} | {row['set']} | {plain} | {value} | {more:+.2f} / {rise:+.2f} |")
    return lines
