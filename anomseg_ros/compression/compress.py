"""Run a recipe on a bundle: prune, fine-tune, quantize. Each new bundle is compared with the one it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from anomseg_ros.compression.drift import Tolerance
from anomseg_ros.compression.fine_tune import FineTune
from anomseg_ros.compression.prune import PruneConfig
from anomseg_ros.compression.pruned_bundle import PRUNED_TOLERANCE, PruneRequest, is_pruned_from, prune_bundle
from anomseg_ros.compression.quantize import QuantizeRequest, quantize_bundle
from anomseg_ros.compression.recipe import QuantizeStep, Recipe
from anomseg_ros.compression.step_request import StepRequest
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BundleError
from anomseg_ros.training.chain import ReportRun, no_report

COMMAND = "anomseg compress "
"""The start of the command lines in the provenance of bundles."""


@dataclass(frozen=True, kw_only=True)
class CompressRequest(StepRequest):
    """A recipe and how to run it.

    bounds: fields of Tolerance that replace those of each step; the guard's tolerance is not used. set, data: changes
    to the fine-tuning in addition to the recipe's. allow_few: see QuantizeRequest. command: see PruneRequest.
    """

    recipe: Recipe
    bounds: Mapping[str, float] = field(default_factory=dict)
    set: tuple[str, ...] = ()
    data: str | None = None
    allow_few: bool = False
    command: str = COMMAND

    def pruning(self, config: PruneConfig) -> PruneRequest:
        """Return the first step. Where a second step follows, the float bundle goes beside the output."""
        step, output = self.recipe.fine_tune, self.output
        tuning = None if step is None else FineTune(step.config, (*step.set, *self.set), self.data or step.data)
        overwrite = self.overwrite
        if self.recipe.quantize is not None:
            output = output.with_name(f"{output.name}-float")
            overwrite = overwrite or _is_of_recipe(output, self.bundle, config, tuning)
        guard = replace(self.guard, tolerance=replace(PRUNED_TOLERANCE, **self.bounds))
        changes = {"output": output, "overwrite": overwrite, "guard": guard}
        return PruneRequest(**{**self.shared, **changes}, config=config, fine_tune=tuning, command=self.command)

    def quantizing(self, step: QuantizeStep, parent: Bundle) -> QuantizeRequest:
        """Return the second step, on the bundle of the first step or on the original bundle."""
        tolerance = replace(Tolerance(), **self.bounds)
        changes = {"bundle": parent, "guard": replace(self.guard, tolerance=tolerance), "checkpoint": None}
        return QuantizeRequest(
            **{**self.shared, **changes},
            config=step.config(tolerance.label_agreement),
            calibration_frames=step.calibration_frames,
            allow_few=self.allow_few,
            original=None if parent is self.bundle else self.bundle,
        )


@dataclass(frozen=True)
class CompressStep:
    """A finished step: its bundle and the parent of that. pruning: how it was pruned, None for quantizing."""

    bundle: Bundle
    parent: Bundle
    pruning: PruneConfig | None = None


def compress(
    request: CompressRequest, progress: Progress = no_progress, report: ReportRun = no_report
) -> Iterator[CompressStep]:
    """Yield each step of the recipe when its bundle is written. The float bundle of an earlier run is replaced.

    Raises the errors of both steps. Errors of frames and folders come before pruning, which takes hours.
    """
    recipe, parent = request.recipe, request.bundle
    if recipe.quantize is not None:
        quantizing = request.quantizing(recipe.quantize, parent)
        quantizing.check()
        quantizing.draw_frames()
    if recipe.prune is not None:
        pruned = prune_bundle(request.pruning(recipe.prune), progress, report)
        yield CompressStep(pruned, parent, recipe.prune)
        parent = pruned
    if recipe.quantize is not None:
        yield CompressStep(quantize_bundle(request.quantizing(recipe.quantize, parent), progress), parent)


def _is_of_recipe(output: Path, original: Bundle, config: PruneConfig, tuning: FineTune | None) -> bool:
    """Return whether this recipe would make the same bundle. Others are kept: they may have taken days to train."""
    try:
        bundle = load_bundle(output)
    except BundleError:
        return False
    command = bundle.contract.provenance.command or ""
    if not command.startswith(COMMAND) or "; anomseg calibrate" in command:  # calibrated since
        return False
    tuned = bundle.contract.compression.get("settings", {}).get("fine_tune")
    same = tuned is None if tuning is None else tuned is not None and tuned["set"] == list(tuning.set)
    return same and is_pruned_from(bundle, original, config)
