"""Adapting a small bundle to a generated drive: what is written, and that a killed call continues."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from adaptation_runs import FRAMES, SMALL, Halves, small_request

from anomseg_ros.adaptation import adapt as adaptation
from anomseg_ros.adaptation.adapt import Adapted, Reports, adapt
from anomseg_ros.adaptation.request import AdaptRequest
from anomseg_ros.adaptation.self_training import Teacher
from anomseg_ros.core.bundle import CHECKPOINT_FILE, load_bundle
from anomseg_ros.errors import ConfigError
from anomseg_ros.evaluation.drive_thresholds import calibrate_on_drive
from anomseg_ros.networks.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow

KILLED = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from adaptation_runs import small_request
from anomseg_ros.adaptation.adapt import adapt
adapt(small_request(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapted")


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[AdaptRequest, Adapted, list[str]]:
    """An undisturbed call with labels and a teacher whose stages are all kept, and what it told."""
    request, told = small_request(place, labels=Halves()), []
    request = replace(request, teacher=Teacher("mide_net", request.bundle.directory / CHECKPOINT_FILE, 20))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("anomseg_ros.adaptation.judge.Figures.is_better_than", lambda *_: True)
        patched.setattr(adaptation, "LEAST_AGREEMENT", 0.0)
        reports = Reports(lambda what, done, total: told.append(what), stage=lambda one: told.append(one.name))
        adapted = adapt(request, reports)
    return request, adapted, told


def test_each_stage_is_judged_at_equal_detection(whole: tuple[AdaptRequest, Adapted, list[str]]) -> None:
    request, adapted, told = whole
    given, norms, trained = adapted.stages
    assert (given.name, norms.name, trained.name) == ("given", "bn", "self-1") and adapted.chosen == "self-1"
    assert given.figures.objects == norms.figures.objects == trained.figures.objects
    wanted = given.figures.detected
    assert norms.figures.detected >= wanted and trained.figures.detected >= wanted
    assert given.agreement == 1 and 0 <= norms.agreement <= 1
    assert norms.facts["kept_statistics"] == round(SMALL.norms.kept, 4)
    own, _ = request.labelled_frames
    assert trained.facts["steps"] >= 3 and trained.facts["frames"] == SMALL.frames + len(own) == SMALL.frames + 3
    assert all(stage.miou is not None and 0 <= stage.miou <= 1 for stage in adapted.stages)
    shares = [trained.facts["labels"][key] for key in ("labelled", "uncertain", "unused")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    places = [told.index(what) for what in ("given", "norms", "bn", "labels", "self-1")]
    assert places == sorted(places)


def test_the_bundle_says_where_it_comes_from(whole: tuple[AdaptRequest, Adapted, list[str]]) -> None:
    request, _, _ = whole
    bundle = load_bundle(request.output)
    contract, given = bundle.contract, request.bundle.contract
    assert (contract.name, contract.classes, contract.input) == ("adapted", given.classes, given.input)
    assert contract.provenance.source_sha256 == contract.files[CHECKPOINT_FILE]
    assert contract.provenance.training_data == "noise; adapted to the unlabelled drive street"
    adaptation = contract.adaptation
    assert (
        adaptation["parent"] == {"name": "given", "sha256": given.program_sha256} and adaptation["chosen"] == "self-1"
    )
    assert adaptation["frames"] == {"adapted": 11, "thresholds": 3, "held_back": 7} and FRAMES == 21
    assert [stage["name"] for stage in adaptation["stages"]] == ["given", "bn", "self-1"]
    assert not any("bundle" in stage for stage in adaptation["stages"])
    assert set(contract.thresholds) == {"void", "msp"}
    assert contract.thresholds["void"].calibrated_on == "unlabelled drive street (3 frames, 7 held back)"
    picture = cv2.imread(str(request.output / "adapted.jpg"))
    assert picture is not None and picture.shape == (4 * 240 + 3 * 4, 2 * 480 + 4, 3)
    assert not request.work.exists() and request.bundle.contract == load_bundle(request.bundle.directory).contract


def test_thresholds_come_from_frames_that_no_stage_learned_from(whole: tuple[AdaptRequest, Adapted, list[str]]) -> None:
    request, adapted, _ = whole
    _, norms, trained = adapted.stages
    bundle = load_bundle(request.output)
    found = calibrate_on_drive(request.drive_request(bundle), calibration=request.split.thresholds)
    assert trained.drive_threshold == found.rates[0].change.threshold != norms.drive_threshold
    assert bundle.contract.thresholds["void"].by_target_fpr[0.01] == trained.drive_threshold
    assert trained.held_back_fpr == found.rates[0].fpr


def test_training_keeps_the_statistics_of_the_norms(whole: tuple[AdaptRequest, Adapted, list[str]]) -> None:
    request, _, _ = whole
    before, after = (
        load_checkpoint(folder / CHECKPOINT_FILE, "mide_net", 20).state_dict()
        for folder in (request.bundle.directory, request.output)
    )
    differ = [name for name, value in after.items() if not bool((value == before[name]).all())]
    assert any(name.endswith("running_mean") for name in differ), "the stage bn changed them"
    assert any(name.endswith("conv.weight") for name in differ), "the stage self changed these"


def test_a_killed_call_continues_with_the_same_result(
    whole: tuple[AdaptRequest, Adapted, list[str]], tmp_path: Path
) -> None:
    request = replace(small_request(tmp_path), stages=("bn",))
    words = [sys.executable, "-c", KILLED.replace("(Path(sys.argv[1]))", '(Path(sys.argv[1]), stages=("bn",))')]
    with subprocess.Popen([*words, str(tmp_path), *sys.path]) as process:
        until = time.monotonic() + 200
        while not (request.work / "given" / "stage.json").is_file() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not request.output.exists()
    told: list[str] = []
    adapted = adapt(request, Reports(lambda what, done, total: told.append(what)))
    assert told[0] == "norms", "the given bundle is not judged again"
    assert adapted.stages[0] == replace(whole[1].stages[0], bundle=adapted.stages[0].bundle, miou=None)
    assert adapted.stages[1].figures == whole[1].stages[1].figures
    assert not request.work.exists() and (request.output / CHECKPOINT_FILE).is_file()


def test_training_that_is_cut_off_continues(whole: tuple[AdaptRequest, Adapted, list[str]], tmp_path: Path) -> None:
    request = small_request(tmp_path, stages=("self",))

    class CutOff(Exception):
        pass

    def cut(status: object) -> None:
        if getattr(status, "stage", "") == "train":
            raise CutOff

    with pytest.raises(CutOff):
        adapt(request, Reports(training=cut))
    with pytest.raises(ConfigError, match="holds the work of another call; pass --overwrite"):
        adapt(replace(request, seed=9))
    told: list[tuple[str, int]] = []
    adapt(request, Reports(lambda what, done, total: told.append((what, done))))
    assert ("labels", SMALL.frames) in told and ("labels", 1) not in told, "frames are not labelled again"
    assert load_bundle(request.output)
