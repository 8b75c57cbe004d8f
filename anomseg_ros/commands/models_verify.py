"""`anomseg models verify`: are the files of bundles and checkpoints what they should be, and does the graph run?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.options import BackendOptions
from anomseg_ros.catalog.entries import Catalog, CatalogEntry, load_catalog
from anomseg_ros.catalog.store import checkpoint_folder, verify
from anomseg_ros.commands import options
from anomseg_ros.commands.models import add_catalog_option, find_model
from anomseg_ros.core.bundle import CONTRACT_FILE, Bundle, load_bundle
from anomseg_ros.core.resources import shipped_bundles
from anomseg_ros.core.types import Outputs
from anomseg_ros.errors import AnomsegError, BundleError


def main(argv: Sequence[str] | None = None) -> int:
    """Check each model and print what was found; returns 0 if all are right, else 1."""
    parser = options.parser(
        "models verify",
        "Check every digest of bundles, run one frame through their graphs, and check downloaded checkpoints.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="name of a bundle or catalog entry, or the path of a bundle or downloaded file (default: all that ship)",
    )
    add_catalog_option(parser)
    args = parser.parse_args(argv)
    catalog = load_catalog(args.catalog)
    right = [_verify_one(model, catalog) for model in args.models or shipped_bundles()]
    if not right:
        print("no bundle ships with this installation")
    return 0 if all(right) else 1


def run_one_frame(bundle: Bundle) -> Outputs:
    """Return the outputs of a noise frame in ONNX Runtime. Raises BackendError; BundleError where they are absurd."""
    spec, contract = bundle.contract.input, bundle.contract
    frame = np.random.default_rng(0).integers(0, 256, (spec.height_px, spec.width_px, 3), np.uint8)
    detector = open_detector(bundle, options=BackendOptions())
    try:
        outputs = detector.detect(frame)
    finally:
        detector.close()
    size = (spec.height_px, spec.width_px)
    known = {info.train_id for info in contract.classes}
    assert outputs.labels is not None  # asked for
    strange = sorted(set(np.unique(outputs.labels).tolist()) - known)
    if strange or outputs.labels.shape != size:
        raise BundleError(f"{bundle.graph_path}: labels {strange} of shape {outputs.labels.shape}, not in bundle.yaml")
    for name, scores in outputs.scores.items():
        if scores.shape != size or not np.isfinite(scores).all():
            raise BundleError(f"{bundle.graph_path}: score {name!r} is not finite or not {size}; export it again")
    return outputs


def _verify_one(given: str, catalog: Catalog) -> bool:
    try:
        print(f"{given}: ok: {_checked(given, catalog)}")
    except AnomsegError as error:
        print(f"{given}: WRONG\n  error: {error}")
        return False
    return True


def _checked(given: str, catalog: Catalog) -> str:
    found = find_model(given, catalog)
    if isinstance(found, CatalogEntry):
        return _checked_file(checkpoint_folder() / found.file, found)
    if found.is_file():
        by_file = {entry.file: entry for entry in catalog.checkpoints}
        return _checked_file(found, by_file.get(found.name))
    bundle = load_bundle(found)
    outputs = run_one_frame(bundle)
    files = ", ".join(bundle.contract.files)
    without = sorted({path.name for path in bundle.directory.iterdir()} - {*bundle.contract.files, CONTRACT_FILE})
    # A model card, a checkpoint: nothing that runs, but whoever relies on them should know.
    rest = f"; bundle.yaml has no digest of {', '.join(without)}" if without else ""
    return f"digests of {files} match; one frame gives labels and {', '.join(outputs.scores)}{rest}"


def _checked_file(path: Path, entry: CatalogEntry | None) -> str:
    return f"{path} matches {verify(path, entry).checked_against}"
