"""Convert the health, the detector and the settings of the node to diagnostic_msgs/DiagnosticStatus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from anomseg_ros.core.bundle import CONTRACT_FILE
from anomseg_ros.core.detector import backend_facts
from anomseg_ros.node.health import Level, Snapshot, State
from anomseg_ros.node.pipeline import FramePipeline

INACTIVE = State(Level.OK, "inactive", "not active")


def diagnostic_array(header: Header, name: str, hardware_id: str, statuses: list[DiagnosticStatus]) -> DiagnosticArray:
    """Return a message with the statuses, after prefixing their names with the node's `name`.

    Args:
        header: header of the message.
        name: fully qualified name of the node.
        hardware_id: identifies the camera.
        statuses: changed in place.
    """
    for status in statuses:
        status.name, status.hardware_id = f"{name}: {status.name}", hardware_id
    return DiagnosticArray(header=header, status=statuses)


def frame_status(snapshot: Snapshot, states: Sequence[State]) -> DiagnosticStatus:
    """Return the status of the frame path: states, counts and times. states: the worst first, at least one."""
    values = {"state": states[0].name} | {f"state_{state.name}": state.message for state in states[1:]}
    values |= {name: str(count) for name, count in vars(snapshot.counts).items()}
    values["rate_hz"] = f"{snapshot.rate_hz:.2f}"
    values["silent_s"] = f"{snapshot.silent_s:.2f}"
    values["publishers"] = str(snapshot.publishers)
    for key in ("latency_ms", "processing_ms", "network_ms"):
        values |= {f"{key}_p{p}": f"{value:.2f}" for p, value in getattr(snapshot, key).items()}
    for key in ("last_error", "last_failure"):
        if message := getattr(snapshot, key):
            values[key] = message
    return _status("frames", states[0], values)


def missing_bundle_file(pipeline: FramePipeline | None) -> str:
    """Return a message that names a missing file of the loaded bundle, or an empty string."""
    if pipeline is None:
        return ""
    bundle = pipeline.detector.bundle
    for name in (CONTRACT_FILE, *bundle.contract.files):
        if not (bundle.directory / name).is_file():
            return f"{name} of bundle {str(bundle.directory)!r} is missing; restore it to load the bundle again"
    return ""


def detector_status(pipeline: FramePipeline | None, problem: str) -> DiagnosticStatus:
    """Return the status of bundle, backend and threshold: ERROR if another backend runs than the requested one.

    pipeline: None before configure. problem: why the detector is not or will not be usable, empty if it is.
    """
    if pipeline is None:
        state = State(Level.ERROR if problem else Level.OK, "unconfigured", problem or "not configured")
        return _status("detector", state, {})
    backend, contract, settings = pipeline.detector.backend, pipeline.detector.bundle.contract, pipeline.settings
    state = State(Level.OK, "ready", f"{contract.name} on {backend.actual}")
    if settings.threshold is None:
        state = State(
            Level.WARN,
            "threshold",
            f"score {settings.score!r} has no threshold, so no mask is published: set the parameter threshold, or "
            "calibrate the bundle",
        )
    facts = backend_facts(backend)
    if backend.actual != backend.requested:
        message = f"{backend.requested} was asked for, {backend.actual} is in use"
        reason = facts.get("fallback_reason")
        state = State(Level.ERROR, "backend", f"{message}: {reason}" if reason else message)
    if problem:
        state = State(Level.ERROR, "bundle", problem)
    values = {
        "bundle": contract.name,
        "network": contract.network,
        "precision": contract.precision,
        "backend_requested": backend.requested,
        "backend": backend.actual,
        "score": settings.score,
        "threshold": "none" if settings.threshold is None else f"{settings.threshold.value:g}",
        "threshold_source": "none" if settings.threshold is None else settings.threshold.source,
        "road_region": settings.live.road_region,
        "temporal_filter": settings.live.filter.described,
        "alarm_frames": f"{settings.live.alarm_rule.frames_n} of {settings.live.alarm_rule.frames_m}",
        **{f"backend_{name}": value for name, value in facts.items()},
        **drift_values(contract.compression),
    }
    return _status("detector", state, values)


def building_status(what: str, done: int, total: int | None) -> DiagnosticStatus:
    """Return the status of a detector that is being configured, with how far the build of its engine is: a warning."""
    state = State(Level.WARN, "building", f"{what}: {done}" + (f" of {total}" if total else ""))
    return _status("detector", state, {"state": state.name})


def drift_values(compression: Mapping[str, Any]) -> dict[str, str]:
    """Return the compression entry of a contract as diagnostic values; empty for a float bundle.

    drift_*: difference from the bundle that was compressed. parent_drift_*: difference of that bundle from its own
    parent, if it was compressed too. original_drift_*: difference over both steps, if it was measured.
    """
    if "method" not in compression:  # a tuned float bundle stores other notes in this entry
        return {}
    parent = compression.get("parent", {}).get("compression", {})
    return {
        "compression": str(compression["method"]),
        **_drift_values("drift", compression.get("drift", {})),
        **_drift_values("parent_drift", parent.get("drift", {})),
        **_drift_values("original_drift", compression.get("original", {}).get("drift", {})),
    }


def _drift_values(prefix: str, drift: Mapping[str, Any]) -> dict[str, str]:
    values = {}
    if "label_agreement" in drift:
        values[f"{prefix}_label_agreement"] = f"{drift['label_agreement']:.4f}"
    for score, changes in drift.get("scores", {}).items():
        values[f"{prefix}_rank_correlation_{score}"] = f"{changes['rank_correlation']:.4f}"
    for dataset, measures in drift.get("datasets", {}).items():
        for measure, (before, after) in measures.items():
            values[f"{prefix}_{measure}_{dataset}"] = f"{before:.4f} -> {after:.4f}"
    return values


def _status(name: str, state: State, values: Mapping[str, str]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(name=name, level=bytes([state.level]), message=state.message, values=pairs)
