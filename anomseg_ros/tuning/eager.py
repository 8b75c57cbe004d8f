"""A checkpoint run in torch without export, as papers time it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from anomseg_ros.bench.candidates import Candidate, core_count
from anomseg_ros.compression.reexport import export_config_of
from anomseg_ros.core.bundle import load_bundle
from anomseg_ros.core.preprocess import tensor_from_frame
from anomseg_ros.core.types import RgbImage
from anomseg_ros.export import DetectorGraph
from anomseg_ros.networks.checkpoints import load_checkpoint


class EagerRunner:
    """The checkpoint's network in float32 with labels and one score, run eagerly in torch."""

    requested = actual = f"torch {torch.__version__} eager, cpu"

    def __init__(self, candidate: Candidate) -> None:
        """Load the weights. Raises CheckpointError if they are not those of the bundle's network."""
        assert candidate.checkpoint is not None
        contract = load_bundle(candidate.bundle).contract
        network = load_checkpoint(Path(candidate.checkpoint), contract.network, len(contract.classes))
        config = export_config_of(contract, scores=(candidate.score,))
        self._graph = DetectorGraph(network, config).eval()
        self._input = contract.input
        self._threads = candidate.threads or core_count()

    def __call__(self, frame: RgbImage) -> None:
        """Compute labels and score of a uint8 (H, W, 3) RGB frame."""
        # The number holds for the whole process, and another candidate may have changed it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            labels, score = self._graph(torch.from_numpy(tensor_from_frame(frame, self._input).copy()))
            labels.numpy(), score.numpy()

    def facts(self) -> Mapping[str, str]:
        """Return nothing: `actual` says all."""
        return {}

    def stages_ms(self) -> Mapping[str, float]:
        """Return nothing: there are no stages."""
        return {}

    def close(self) -> None:
        """Release the weights."""
        del self._graph
