"""`anomseg models verify`: check the digests of bundles and checkpoints, and run one frame through each graph."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.catalog.entries import Catalog, CatalogEntry, load_catalog
from anomseg_ros.catalog.store import checkpoint_folder, verify
from anomseg_ros.commands import options
from anomseg_ros.commands.models import add_catalog_option, find_model
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.core.types import Outputs
from anomseg_ros.errors import AnomsegError, BundleError


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of `anomseg models verify`."""
    parser = options.parser(
        "models verify",
        "Check all digests of bundles, run one frame through their graphs, and check downloaded checkpoints.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="name of a bundle or catalog entry, or path of a bundle or downloaded file (default: all shipped bundles)",
    )
    add_catalog_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check each model and print the results; return 0 if all are valid, else 1."""
    args = argument_parser().parse_args(argv)
    catalog = load_catalog(args.catalog)
    valid = [_print_verification(model, catalog) for model in args.models or shipped_bundles()]
    if not valid:
        print("no bundle ships with this installation")
    return 0 if all(valid) else 1


def run_one_frame(bundle: Bundle) -> Outputs:
    """Return the outputs for a noise frame in ONNX Runtime. Raises BackendError; BundleError for invalid outputs."""
    spec, contract = bundle.contract.input, bundle.contract
    frame = np.random.default_rng(0).integers(0, 256, (spec.height_px, spec.width_px, 3), np.uint8)
    detector = open_detector(bundle, options=BackendOptions())
    try:
        outputs = detector.detect(frame)
    finally:
        detector.close()
    size = (spec.height_px, spec.width_px)
    assert outputs.labels is not None  # detect() computes labels by default
    unknown_ids = sorted(set(np.unique(outputs.labels).tolist()) - {info.train_id for info in contract.classes})
    if unknown_ids:
        raise BundleError(f"{bundle.graph_path}: labels have train ids {unknown_ids}, which are not in bundle.yaml")
    if outputs.labels.shape != size:
        raise BundleError(f"{bundle.graph_path}: labels have the shape {outputs.labels.shape}, not {size}")
    for name, scores in outputs.scores.items():
        if scores.shape != size or not np.isfinite(scores).all():
            raise BundleError(f"{bundle.graph_path}: score {name!r} is not finite or not {size}; export it again")
    return outputs


def _print_verification(model: str, catalog: Catalog) -> bool:
    """Verify a model and print the result; return whether it is valid."""
    try:
        print(f"{model}: ok: {_verify(model, catalog)}")
    except AnomsegError as error:
        print(f"{model}: WRONG\n  error: {error}")
        return False
    return True


def _verify(name: str, catalog: Catalog) -> str:
    """Return a sentence about what was verified. Raises AnomsegError if the model is not valid."""
    model = find_model(name, catalog)
    if isinstance(model, CatalogEntry):
        return _verify_file(checkpoint_folder() / model.file, model)
    if model.is_file():
        entries = {entry.file: entry for entry in catalog.checkpoints}
        return _verify_file(model, entries.get(model.name))
    bundle = load_bundle(model)
    outputs = run_one_frame(bundle)
    files = ", ".join(bundle.contract.files)
    unverified = sorted({path.name for path in bundle.directory.iterdir()} - {*bundle.contract.files, CONTRACT_FILE})
    # These files, such as a model card or a checkpoint, do not run, but users may rely on them.
    note = f"; bundle.yaml has no digest of {', '.join(unverified)}" if unverified else ""
    return f"digests of {files} match; one frame gives labels and {', '.join(outputs.scores)}{note}"


def _verify_file(path: Path, entry: CatalogEntry | None) -> str:
    return f"{path} matches {verify(path, entry).checked_against}"
