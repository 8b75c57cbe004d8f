"""What follows from the rows of benchmarks/gpu.py: ratios, the project's targets, and a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpu_device import best_ms

Row = dict[str, Any]

TARGET_SIZE = "512x1024"
DEVICE_MS, COPIES_MS, JITTER, SPEEDUP = 0.5, 1.0, 1.2, 3.0
"""ERFNet in fp16 on the device, and with copies; p99 / p50; compile + graph against eager float32."""


def ratios(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Return network and size -> precision and form -> how many times as fast as eager float32, by median latency."""
    groups: dict[str, dict[str, float]] = {}
    for row in _measured(rows):
        if not row["copies"]:
            title = f"{row['precision']} {row['form']}"
            groups.setdefault(f"{row['network']} {row['size']}", {})[title] = row["latency_ms"]["p50"]
    return {
        group: {title: times["fp32 eager"] / time for title, time in times.items()}
        for group, times in groups.items()
        if "fp32 eager" in times
    }


def targets(rows: list[Row], networks: Iterable[str]) -> list[dict[str, Any]]:
    """Return what a data-centre GPU should reach, what was found (None: not measured), and whether it did."""
    own = [r for r in _measured(rows) if (r["network"], r["size"], r["precision"]) == ("erfnet", TARGET_SIZE, "fp16")]
    plain = min((row for row in own if not row["copies"]), key=best_ms, default=None)
    copied = min((row["latency_ms"]["p50"] for row in own if row["copies"]), default=None)
    device_ms = best_ms(plain) if plain else None
    jitter = best_ms(plain, "p99") / device_ms if plain and device_ms else None
    erfnet = f"erfnet fp16 {TARGET_SIZE}"
    found = [
        _target(f"{erfnet}: ms on the device", device_ms, DEVICE_MS),
        _target(f"{erfnet}: ms with copies", copied, COPIES_MS),
        _target(f"{erfnet}: p99 / p50", jitter, JITTER),
    ]
    faster = ratios(rows)
    for network in networks:
        for precision in ("fp32", "fp16"):
            value = faster.get(f"{network} {TARGET_SIZE}", {}).get(f"{precision} compile+graph")
            what = f"{network} {precision} {TARGET_SIZE}: compile+graph, times as fast as eager fp32"
            found.append(_target(what, value, SPEEDUP, at_least=True))
    return found


def _target(what: str, found: float | None, limit: float, at_least: bool = False) -> dict[str, Any]:
    met = None if found is None else (found >= limit if at_least else found <= limit)
    return {"what": what, "wanted": f"{'>=' if at_least else '<='} {limit:g}", "found": found, "met": met}


def table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = [f"{'':>46} {'device p50':>10} {'latency p50':>11} {'p99':>9} {'per s':>8} {'ceiling':>8} {'MiB':>8}"]
    for row in result["runs"]:
        title = f"{row['network']} {row['size']} {row['precision']} {row['form']}{' +copies' if row['copies'] else ''}"
        lines.append(f"{title:>46} {_cells(row)}")
    for group, faster in ratios(result["runs"]).items():
        lines.append(f"{group}, times as fast as eager fp32: " + ", ".join(f"{k} {v:.2f}" for k, v in faster.items()))
    for size, forms in result["argmax"].items():
        times = ", ".join(f"{form} {best_ms(measured):.4f} ms" for form, measured in forms.items())
        lines.append(f"labels of {size}: {times}")
    if result["ceilings"]:
        products = ", ".join(f"{k} {v:.4g} TFLOP/s" for k, v in result["ceilings"]["matmul_tflops"].items())
        lines.append(f"ceilings: {products}, copy {result['ceilings']['copy_gb_per_s']:.4g} GB/s")
    for target in result["targets"]:
        found = "not measured" if target["found"] is None else f"{target['found']:.3g}"
        lines.append(f"{target['what']}: {found}, wanted {target['wanted']}, met: {target['met']}")
    lines += [f"failed: {entry['step']}: {entry['error']}" for entry in result["failed"]]
    lines += [f"{name}: {', '.join(result[name])}" for name in ("not_on_this_device", "left_out") if result[name]]
    return "\n".join(lines)


def _cells(row: Row) -> str:
    latency, device, share = row["latency_ms"], row["device_ms"], row["share_of_ceiling"]
    on_device = f"{device['p50']:.3f}" if isinstance(device, dict) else "-"
    peak = f"{row['peak_mib']:.0f}" if isinstance(row["peak_mib"], float) else "-"
    per_cent = "-" if share is None else f"{share:.1%}"
    parity = f"{row['parity']['label_agreement']:.3%}, rank {row['parity']['rank_correlation']:.5f}"
    return (
        f"{on_device:>10} {latency['p50']:>11.3f} {latency['p99']:>9.3f} {row['frames_per_second']:>8.1f} "
        f"{per_cent:>8} {peak:>8} labels {parity}, weights: {row['weights']}"
    )


def _measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["latency_ms"]["p50"] > 0]
