"""Measuring bundles and exporting checkpoints from Python, each in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from anomseg_ros.core.class_table import find_label_set
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.resources import find_bundle
from anomseg_ros.errors import ConfigError, MetricError
from anomseg_ros.evaluation.evaluate import Request
from anomseg_ros.evaluation.evaluate import evaluate as evaluate_request
from anomseg_ros.evaluation.results import Result


def evaluate(
    bundles: str | Path | Sequence[str | Path],
    datasets: Mapping[str, str | Path],
    *,
    scores: str | Sequence[str] = (),
    protocols: str | Sequence[str] = ("seeds",),
    backend: str = "onnxruntime",
    allow_partial: bool = False,
    progress: Progress = no_progress,
) -> tuple[Result, ...]:
    """Measure bundles on datasets; return one result per bundle, dataset, score and protocol. Fractions are 0 to 1.

    Args:
        bundles: names of shipped bundles, or directories; one or several.
        datasets: name of a dataset of the table -> its folder; `anomseg datasets list` prints the names.
        scores: anomaly scores to measure, or one; empty for all of a bundle.
        protocols: definitions of the figures, or one, see docs/evaluate.md.
        backend: as in `Detector.load`.
        allow_partial: accept a dataset with fewer or more frames than published.
        progress: told what is done: (what, done, total).

    Raises:
        AnomsegError: a bundle or dataset cannot be read, or could not be measured.
    """
    if not isinstance(datasets, Mapping):
        raise ConfigError(
            f"datasets must map names to folders, such as {{'camvid': '/data/CamVid'}}, got {datasets!r}; "
            "`anomseg datasets list` prints the names"
        )
    given = [bundles] if isinstance(bundles, str | Path) else bundles
    request = Request(
        tuple(find_bundle(each) for each in given),
        tuple(f"{name}={path}" for name, path in datasets.items()),
        scores=_names(scores),
        protocols=_names(protocols),
        allow_partial=allow_partial,
        backend=backend,
    )
    outcome = evaluate_request(request, progress)
    if outcome.errors:
        raise MetricError("; ".join(outcome.errors))
    return outcome.results


def export_checkpoint(
    network: str,
    checkpoint: str | Path,
    output: str | Path,
    *,
    num_classes: int,
    void_class: int | None = None,
    label_set: str = "cityscapes",
    height_px: int = 512,
    width_px: int = 1024,
    scores: str | Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Export a checkpoint as a bundle, compare the two, and return the directory of the bundle. It needs torch.

    Args:
        network: name in the table of networks, such as erfnet.
        checkpoint: file that is loaded strictly.
        output: directory of the bundle; its name is the bundle's.
        num_classes: outputs of the network, with the void class.
        void_class: index of the void class; None without one.
        label_set: cityscapes, camvid, or the path of a classes.yaml with classes of your own.
        height_px: input height of the bundle.
        width_px: input width of the bundle.
        scores: anomaly scores in the graph, or one, the default score first; empty for the default scores.
        overwrite: replace an existing bundle.

    Raises:
        CheckpointError: the checkpoint does not fit the network.
        ConfigError: a setting is not one of its values.
        ExportError: the graph does not compute what the network does.
    """
    from anomseg_ros.export import ExportConfig
    from anomseg_ros.export import export_checkpoint as export

    directory, (name, known) = Path(output), find_label_set(label_set)
    config = ExportConfig(
        directory.resolve().name,
        num_classes,
        void_class,
        label_set=name,
        known_classes=known,
        height_px=height_px,
        width_px=width_px,
        scores=_names(scores),
    )
    export(network, Path(checkpoint), config, directory, overwrite=overwrite)
    return directory


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
