"""Shipped models, and every backend on a self-test frame."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np

from anomseg_ros.backends import BACKENDS, check_usable, known_providers, open_detector
from anomseg_ros.core.bundle import TORCH_FILE, Bundle, load_bundle
from anomseg_ros.core.detector import Detector
from anomseg_ros.core.resources import ROAD_BUNDLE, find_bundle, shipped_bundles
from anomseg_ros.core.types import LabelImage
from anomseg_ros.doctor.finding import ABSENT, OK, PROBLEM, Finding
from anomseg_ros.errors import AnomsegError, BackendError
from anomseg_ros.scenes.sequence import SyntheticSequence

REFERENCE = "onnxruntime"
ROUNDS = 5
SMALLEST_AGREEMENT = 0.97
"""Share of equal labels: int8 engines round differently, which shows where two classes are nearly tied."""
INSTALL = "pip install the package again, from a clone with its models or from its wheel"


def check_models() -> Iterator[Finding]:
    """Yield each shipped bundle; loading it checks its digests."""
    bundles = shipped_bundles()
    if not bundles:
        yield Finding("bundles", PROBLEM, "no bundle ships with this installation", INSTALL)
    for name, path in bundles.items():
        try:
            spec = load_bundle(path).contract.input
            yield Finding(name, OK, f"digests match, input {spec.width_px}x{spec.height_px}")
        except AnomsegError as error:
            yield Finding(name, PROBLEM, str(error), INSTALL)


def check_backends() -> Iterator[Finding]:
    """Yield each backend: whether it is installed, its providers, and how it runs the default bundle."""
    bundle = load_bundle(find_bundle(ROAD_BUNDLE))
    expected: LabelImage | None = None
    for name in sorted(BACKENDS, key=lambda each: each != REFERENCE):
        try:
            providers = ", ".join(known_providers(name))
            check_usable(name)
        except BackendError as error:
            yield Finding(name, ABSENT, str(error))
            continue
        if reason := _cannot_run(name, bundle):
            yield Finding(name, OK, f"installed; providers {providers}; {reason}")
            continue
        try:
            detector = open_detector(bundle, name)
        except AnomsegError as error:
            yield Finding(name, PROBLEM, str(error))
            continue
        labels, frame_ms = _run(detector)
        agreement = 1.0 if expected is None else float((labels == expected).mean())
        expected = labels if expected is None else expected
        yield _verdict(name, detector.backend.actual, frame_ms, agreement, providers)
        detector.close()


def _cannot_run(name: str, bundle: Bundle) -> str:
    """Return why the self-test leaves out a backend that is installed, or an empty string."""
    if name == "tensorrt":
        return "engines are built by `anomseg build`, which checks them"
    if name == "torch" and TORCH_FILE not in bundle.contract.files:
        return "it runs bundles with a model.pt2, which no shipped bundle has: `anomseg export --torch-program`"
    return ""


def _run(detector: Detector) -> tuple[LabelImage, float]:
    """Return the labels of the self-test frame and the median time of a frame, milliseconds."""
    frame = SyntheticSequence(0).frame(0).image
    detector.warm_up()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        outputs = detector.detect(frame)
        times.append((time.perf_counter() - started) * 1e3)
    return np.asarray(outputs.labels, np.uint8), statistics.median(times)


def _verdict(name: str, actual: str, frame_ms: float, agreement: float, providers: str) -> Finding:
    text = f"{ROAD_BUNDLE} on {actual}: {frame_ms:.0f} ms per frame; providers {providers}"
    if name == REFERENCE:
        return Finding(name, OK, text)
    text = f"{text}; {agreement:.1%} of the labels equal {REFERENCE}'s"
    if agreement < SMALLEST_AGREEMENT:
        return Finding(name, PROBLEM, text, f"use --backend {REFERENCE}, and report the versions above")
    return Finding(name, OK, text)
