"""`anomseg calibrate score`, and what becomes of fitted tensors afterwards."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from flat_dataset import write_flat_dataset
from network_contract import randomize
from onnx import numpy_helper
from small_bundles import street_frames
from tiny_runs import write_frames

from anomseg_ros.backends import open_detector
from anomseg_ros.cli import main
from anomseg_ros.compression.drift import Guard
from anomseg_ros.compression.prune import PruneConfig, prune
from anomseg_ros.compression.pruned_bundle import PruneRequest, load_parent_network, write_pruned_bundle
from anomseg_ros.compression.quantize_onnx import QuantizeConfig, quantize
from anomseg_ros.compression.reexport import export_at_size
from anomseg_ros.compression.sensitivity import NONE
from anomseg_ros.core.bundle import CHECKPOINT_FILE, GRAPH_FILE, Bundle, change_bundle, load_bundle, sha256_of
from anomseg_ros.core.thresholds import ThresholdTable
from anomseg_ros.errors import BundleError, CheckpointError, ConfigError
from anomseg_ros.evaluation.results import load_evaluation
from anomseg_ros.export import ExportConfig, export_checkpoint
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from anomseg_ros.scores import SCORES, fitted_names

CLASSES = 11
SIZE = {"height_px": 64, "width_px": 128}


def make_plain(folder: Path) -> Bundle:
    """Return a bundle of CamVid's classes without fitted scores; its checkpoint lies beside it."""
    torch.manual_seed(0)
    network = build_network("mide_net", CLASSES)
    randomize(network)
    save_checkpoint(folder / "whole.safetensors", network, {"epochs": 3})
    config = ExportConfig("whole", CLASSES, label_set="camvid", scores=("max_logit", "msp"), **SIZE)  # type: ignore[arg-type]
    return export_checkpoint("mide_net", folder / "whole.safetensors", config, folder / "plain")[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames, a plain bundle, and `fitted`, the same with every score that can be fitted."""
    folder = tmp_path_factory.mktemp("place")
    write_frames(folder / "camvid", 4, 1, (64, 128))
    make_plain(folder)
    assert calibrate(folder, "--output", str(folder / "fitted")) == 0
    return folder


def calibrate(place: Path, *more: str, scores: str = ",".join(fitted_names())) -> int:
    words = ["calibrate", "score", str(place / "plain"), "--score", scores, "--allow-partial"]
    frames = ["--dataset", f"camvid={place / 'camvid'}:train", "--max-frames", "3"]
    return main([*words, *frames, "--checkpoint", str(place / "whole.safetensors"), *more])


@pytest.mark.slow
def test_fitted_scores_are_in_graph_and_tensors_in_checkpoint(place: Path) -> None:
    before, after = (load_bundle(place / name).contract for name in ("plain", "fitted"))
    assert after.score_names == (*before.score_names, *fitted_names())
    assert (
        after.provenance.source_sha256 == after.files[CHECKPOINT_FILE] == sha256_of(place / "fitted" / CHECKPOINT_FILE)
    )
    assert (after.provenance.command or "").endswith(
        f"--checkpoint {place / 'whole.safetensors'} --output {place / 'fitted'}"
    )
    network = load_checkpoint(place / "fitted" / CHECKPOINT_FILE, "mide_net", CLASSES)
    assert set(network.fitted_scores) == set(fitted_names()) and network.checkpoint_metadata == {"epochs": 3}
    for fitted in network.fitted_scores.values():
        assert fitted.facts.items() >= {"dataset": "camvid", "split": "train", "frames": 3}.items()
    meanings = {output.name: output.meaning for output in after.outputs}
    assert "; K 5, tau " in meanings["cluster_ratio"] and ", T 0.3; higher" in meanings["cluster_binary"]
    outputs = open_detector(place / "fitted").detect(street_frames(1)[0])
    assert all(np.isfinite(outputs.scores[name]).all() for name in fitted_names())
    assert all(np.ptp(outputs.scores[name]) > 0 for name in fitted_names() if name != "cluster_binary")


@pytest.mark.slow
def test_refitting_replaces_tensors_and_drops_old_results(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "fitted", tmp_path / "again"))
    first, *others = fitted_names()
    tables = {name: ThresholdTable("camvid val", {0.01: 1.0}) for name in (first, "msp")}
    quality = {"a": {"score": first, "auprc": 0.2}, "b": {"score": "msp"}, "camvid": {"miou": 0.6}}
    change_bundle(load_bundle(folder), lambda one: replace(one, thresholds=tables, quality=quality))
    words = ["calibrate", "score", str(folder), "--score", first, "--allow-partial", "--max-frames", "1"]
    assert main([*words, "--dataset", f"camvid={place / 'camvid'}:train"]) == 0  # its own checkpoint
    after = load_bundle(folder).contract
    assert after.score_names == load_bundle(place / "fitted").contract.score_names
    assert set(after.thresholds) == {"msp"} and set(after.quality) == {"b", "camvid"}
    networks = [load_checkpoint(one / CHECKPOINT_FILE, "mide_net", CLASSES) for one in (folder, place / "fitted")]
    assert networks[0].fitted_scores[first].facts["frames"] == 1
    for name in others:
        for key, value in networks[0].fitted_scores[name].tensors.items():
            assert (value == networks[1].fitted_scores[name].tensors[key]).all()


@pytest.mark.slow
def test_fitted_tensors_survive_resizing_and_pruning(place: Path, tmp_path: Path) -> None:
    fitted = load_bundle(place / "fitted")
    network = load_parent_network(fitted, place / "fitted" / CHECKPOINT_FILE)
    resized = export_at_size(fitted, place / "fitted" / CHECKPOINT_FILE, 32, 64, tmp_path / "small")
    config = PruneConfig("masked", 0.1)
    guard = Guard(accept_drift=True, threads=1)
    request = PruneRequest(bundle=fitted, output=tmp_path / "pruned", frames=(), guard=guard, config=config)
    pruned = write_pruned_bundle(request, prune(network, config, (64, 128)), street_frames(1), {})
    # Either graph was held to the reference with the tensors of its checkpoint when it was written.
    kept = load_checkpoint(tmp_path / "pruned" / CHECKPOINT_FILE, "mide_net", CLASSES).fitted_scores
    for bundle in (resized, pruned):
        assert bundle.contract.score_names == fitted.contract.score_names
    assert set(kept) == set(network.fitted_scores) == set(fitted_names())
    for name, score in network.fitted_scores.items():
        assert kept[name].facts == score.facts
        assert all((kept[name].tensors[key] == value).all() for key, value in score.tensors.items())


@pytest.mark.slow
def test_fitted_tensors_survive_quantizing(place: Path) -> None:
    """Formulas stay in floating point: constants are bit-equal, and the scores hardly change."""
    fitted = load_bundle(place / "fitted")
    tensors = [frame[np.newaxis] for frame in street_frames(3)]
    model = quantize(
        onnx.load(fitted.graph_path), tensors, QuantizeConfig(keep_float=NONE), lambda what, done, total: None
    )
    before, after = (one.graph.initializer for one in (onnx.load(fitted.graph_path), model.model))
    kept = [numpy_helper.to_array(tensor) for tensor in after]
    tensors_of_scores = [numpy_helper.to_array(tensor) for tensor in before if tensor.name.startswith("scores.")]
    assert tensors_of_scores
    for value in tensors_of_scores:
        assert any(one.shape == value.shape and (one == value).all() for one in kept)


@pytest.mark.slow
def test_unfitted_score_is_not_exported(place: Path, tmp_path: Path) -> None:
    for name in fitted_names():
        config = ExportConfig("x", CLASSES, label_set="camvid", scores=(name,), **SIZE)  # type: ignore[arg-type]
        with pytest.raises(
            ConfigError, match=f"score '{name}' is not fitted to this checkpoint: run `anomseg calibrate"
        ):
            export_checkpoint("mide_net", place / "whole.safetensors", config, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def rewritten(source: Path, target: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """Write a checkpoint with some tensors changed, None: left out, and the same description."""
    with safetensors.safe_open(source, "pt") as file:
        header = {FORMAT: file.metadata()[FORMAT]}
    tensors: dict[str, torch.Tensor | None] = {**safetensors.torch.load_file(source), **change}
    safetensors.torch.save_file({key: value for key, value in tensors.items() if value is not None}, target, header)
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fitted.sml.mean": None}, "score 'sml' has fitted tensors std, expected mean, std"),
        (
            {"fitted.sml.mean": torch.zeros(19)},
            "'mean' is 19, expected 11 for 11 known classes: it was fitted to another",
        ),
        ({"fitted.sml.std": torch.full((11,), torch.nan)}, "fitted tensor 'std' is not finite everywhere"),
        ({"fitted.cdnp.references": torch.zeros(50, 3)}, "'references' is 50 x 3, expected any x .* features of"),
        ({"fitted.cdnp.distance": torch.zeros(0)}, "'distance' is 0, expected 1"),
    ],
)
def test_damaged_tensors_are_refused(
    place: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    checkpoint = rewritten(place / "fitted" / CHECKPOINT_FILE, tmp_path / "damaged.safetensors", change)
    config = ExportConfig("x", CLASSES, label_set="camvid", scores=tuple(fitted_names()), **SIZE)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        export_checkpoint("mide_net", checkpoint, config, tmp_path / "out")


@pytest.mark.slow
def test_tensors_not_matching_description_are_refused(place: Path, tmp_path: Path) -> None:
    source = place / "fitted" / CHECKPOINT_FILE
    changes: tuple[dict[str, torch.Tensor | None], ...] = (
        {"fitted.sml.mean": None, "fitted.sml.std": None},
        {"fitted.other.x": torch.zeros(1)},
    )
    for change in changes:
        checkpoint = rewritten(source, tmp_path / "damaged.safetensors", change)
        with pytest.raises(CheckpointError, match=r"describes fitted scores .* but holds .*; fit them again"):
            load_checkpoint(checkpoint, "mide_net", CLASSES)
    damaged = Path(shutil.copytree(place / "fitted", tmp_path / "bundle")) / CHECKPOINT_FILE
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"checkpoint\.safetensors does not match its digest"):
        load_bundle(damaged.parent)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--score", "smll"], "unknown score 'smll'; known: sml"),
        (["--score", "msp"], "score 'msp' has nothing to fit; those that have: sml, cdnp"),
        (["--set", "clusters"], "--set 'clusters': expected NAME=VALUE with a number"),
        (["--set", "clusters=inf"], "--set 'clusters=inf': expected a finite number"),
        (["--set", "clusters=1"], "clusters=1: expected a whole number from 2 to 64"),
        (["--set", "cluster=6"], "unknown option of sml, cdnp, cluster_ratio"),
        (["--max-frames", "-1"], "--max-frames -1: expected a number of frames, 0 for all"),
        (["--checkpoint", "absent"], "absent does not exist; give the `checkpoint` that 'whole' was exported from"),
    ],
)
def test_wrong_arguments_are_errors(
    place: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sha256_of(place / "plain" / GRAPH_FILE)
    assert calibrate(place, *words) == 1
    assert complaint in capsys.readouterr().err
    assert sha256_of(place / "plain" / GRAPH_FILE) == before


@pytest.mark.slow
def test_bundle_without_checkpoint_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", "score", str(place / "plain"), "--score", "sml", "--dataset", "camvid=absent"]
    assert main(words) == 1
    assert "holds no checkpoint.safetensors; give the `checkpoint` that 'whole' was" in capsys.readouterr().err


THROW_AWAY = '''
"""A score of one file: the largest logit above its mean on training frames."""

import numpy as np
from anomseg_ros.scores.score import Fit, Score


class Above(Score):
    name = "above"
    meaning = "mean of max z on training frames - max z"
    uses_temperature = False

    def start_fit(self, known):
        return Mean()

    def fitted_shapes(self, known, widths):
        return {"mean": (1,)}

    def reference(self, given):
        return given.fitted["mean"][0] - given.known.max(axis=0)

    def pixel_graph(self, given):
        return (given.fitted["mean"][0] - given.known.amax(dim=1),)


class Mean(Fit):
    def __init__(self):
        self.means = []

    def add(self, given):
        self.means.append(given.known.max(axis=0).mean())

    def tensors(self):
        return {"mean": np.array([np.mean(self.means)], np.float32)}
'''


@pytest.mark.slow
def test_custom_score_needs_one_file_and_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes through export, evaluate, calibrate and the node's parameters."""
    (tmp_path / "throw_away.py").write_text(THROW_AWAY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SCORES, "above", "throw_away:Above")
    assert calibrate(place, "--output", str(tmp_path / "bundle"), scores="above") == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.contract.score_names == ("max_logit", "msp", "above")
    flat = write_flat_dataset(tmp_path / "flat", 2)
    words = [str(bundle.directory), "--dataset", flat, "--allow-partial", "--score", "above"]
    assert main(["evaluate", *words, "--json", str(tmp_path / "e.json"), "--html", str(tmp_path / "e.html")]) == 0
    (result,) = load_evaluation(tmp_path / "e.json").results
    assert result.score == "above" and result.auprc is not None
    assert main(["calibrate", "threshold", *words]) == 0
    assert set(load_bundle(bundle.directory).contract.thresholds) == {"above"}
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "above" in capsys.readouterr().out
    pytest.importorskip("rclpy")
    parameters = importlib.import_module("anomseg_ros.node.parameters")
    monkeypatch.delitem(sys.modules, "anomseg_ros.node.parameters")
    fresh = importlib.import_module("anomseg_ros.node.parameters")
    monkeypatch.setitem(sys.modules, "anomseg_ros.node.parameters", parameters)
    (score,) = (parameter for parameter in fresh.PARAMETERS if parameter.name == "score")
    assert "above" in score.choices
    values = {parameter.name: parameter.default for parameter in fresh.PARAMETERS} | {"score": "above"}
    assert fresh.live_parameters(values).score == "above"
    with pytest.raises(ConfigError, match="'abov'; known: above"):
        fresh.live_parameters(values | {"score": "abov"})
