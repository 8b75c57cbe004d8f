"""The promise of docs/python.md: the public names, their arguments, and a typed program against the installed wheel."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import anomseg_ros
from anomseg_ros import AnomsegError, Outputs, Result

ROOT = Path(__file__).resolve().parents[2]

SIGNATURES: dict[str, str] = {
    "Detector.load": "(bundle, *, backend, provider, device, threads)",
    "Detector.detect": "(self, frame, scores, *, labels, source_size, road)",
    "Detector.threshold": "(self, score, target_fpr)",
    "Detector.mask": "(self, outputs, score, *, threshold, target_fpr)",
    "Detector.overlay": "(self, frame, outputs, mask, *, legend)",
    "Detector.score_picture": "(self, frame, outputs, score, *, legend, threshold)",
    "Detector.close": "(self)",
    "read_frames": "(*inputs)",
    "evaluate": "(bundles, datasets, *, scores, protocols, backend, allow_partial, progress)",
    "export_checkpoint": "(network, checkpoint, output, *, num_classes, void_class, label_set, height_px, width_px, "
    "scores, overwrite)",
}
"""A name or argument that is removed, renamed or moved breaks programs. New optional arguments are added here."""
DEFAULTS: dict[str, dict[str, object]] = {
    "Detector.load": {
        "bundle": "bisenet_lite-world-int8",
        "backend": "onnxruntime",
        "provider": "cpu",
        "device": 0,
        "threads": 0,
    },
    "Detector.detect": {"scores": None, "labels": True, "source_size": False, "road": None},
    "Detector.threshold": {"score": None, "target_fpr": 0.01},
    "Detector.mask": {"score": None, "threshold": None, "target_fpr": 0.01},
    "Detector.overlay": {"mask": None, "legend": False},
    "Detector.score_picture": {"score": None, "legend": False, "threshold": None},
    "evaluate": {"scores": (), "protocols": ("seeds",), "backend": "onnxruntime", "allow_partial": False},
    "export_checkpoint": {
        "void_class": None,
        "label_set": "cityscapes",
        "height_px": 512,
        "width_px": 1024,
        "scores": (),
        "overwrite": False,
    },
}
FIELDS = {
    Outputs: {"labels", "scores", "network_ms", "region"},
    Result: {"bundle", "dataset", "score", "protocol", "frames", "auprc", "fpr95", "auroc", "miou"},
}


def public(name: str) -> Callable[..., Any]:
    first, *rest = name.split(".")
    found: Any = getattr(anomseg_ros, first)
    for each in rest:
        found = getattr(found, each)
    return found


def test_every_public_name_is_promised() -> None:
    promised = {name.split(".")[0] for name in SIGNATURES} | {cls.__name__ for cls in FIELDS} | {"AnomsegError"}
    assert set(anomseg_ros.__all__) == set(anomseg_ros.PUBLIC) == promised
    assert issubclass(AnomsegError, Exception)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = anomseg_ros.nothing


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_kept(name: str) -> None:
    words = []
    keyword_only = False
    for parameter in inspect.signature(public(name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            words.append("*")
        words.append(f"*{parameter.name}" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name)
    assert f"({', '.join(words)})" == SIGNATURES[name]


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_kept(name: str) -> None:
    parameters = inspect.signature(public(name)).parameters
    assert {argument: parameters[argument].default for argument in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("cls", FIELDS)
def test_fields_are_kept(cls: type) -> None:
    assert FIELDS[cls] <= {field.name for field in dataclasses.fields(cls)}


def test_import_takes_nothing_that_is_not_used() -> None:
    code = "import sys; from anomseg_ros import Detector, read_frames; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "anomseg_ros.api.detection" in loaded
    assert not {"torch", "rclpy", "anomseg_ros.evaluation", "anomseg_ros.datasets"} & set(loaded)


PROGRAM = """from pathlib import Path
from anomseg_ros import AnomsegError, Detector, Outputs, evaluate, read_frames
with Detector.load("bisenet_lite-world-int8", threads=2) as detector:
    for name, frame in read_frames(Path("frames")):
        outputs: Outputs = detector.detect(frame, source_size=True)
        share: float = float((detector.mask(outputs, target_fpr=0.01) > 0).mean())
        print(name, share, detector.class_names[0], detector.threshold())
for result in evaluate("enet-synthetic", {"synthetic": "1000105:3"}):
    print(result.dataset, result.auprc)
"""


@pytest.mark.slow
def test_typed_program_passes_mypy_strict_against_the_installed_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run(wheel, check=True, capture_output=True)
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (file,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(file)], check=True, capture_output=True)
    assert (site / "anomseg_ros" / "py.typed").is_file()
    others = Path(pytest.__file__).parents[1]  # numpy and the other libraries
    (site / "others.pth").write_text(f"{others}\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM.replace("threads=2", 'threads="2"'))
    strict = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(tmp_path / "venv/bin/python")]
    done = subprocess.run([*strict, "program.py", "wrong.py"], cwd=tmp_path, capture_output=True, text=True)
    (error,) = (line for line in done.stdout.splitlines() if ": error: " in line)
    assert error.startswith('wrong.py:3: error: Argument "threads" to "load" of "Detector" has incompatible type "str"')
