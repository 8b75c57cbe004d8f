"""Power and energy of a frame: from samples while a candidate runs, or no figure and the reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from power_sensors import AGX_ORIN, nvidia_smi, places, repeated, write_ina3221, write_program, write_rapl

from anomseg_ros.bench.candidates import Candidate
from anomseg_ros.bench.power import Power, PowerMeter, PowerRequest
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import ConfigError

FRAMES = [np.full((2, 2, 3), index, np.uint8) for index in range(3)]
CPU = Candidate("tiny", "/nowhere", "onnxruntime", 1, "void", 64, 128, "fp32")
GPU = Candidate("tiny", "/nowhere", "tensorrt", 0, "void", 64, 128, "fp16")


class BusyRunner:
    """Takes 10 ms for a frame; does something else in one of them."""

    requested = actual = "here"

    def __init__(self, act: Callable[[], object] = lambda: None, at_frame: int = -1) -> None:
        self.seen: list[int] = []
        self.act, self.at_frame = act, at_frame

    def __call__(self, frame: RgbImage) -> None:
        if len(self.seen) == self.at_frame:
            self.act()
        self.seen.append(int(frame[0, 0, 0]))
        time.sleep(0.01)

    def facts(self) -> dict[str, str]:
        return {}

    def stages_ms(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """Nothing to release."""


def measured(root: Path, runner: BusyRunner, candidate: Candidate = CPU, seconds: float = 0.3) -> Power:
    with PowerMeter(PowerRequest(seconds, 0.02, places(root))) as meter:
        power = meter.measure(candidate, runner, FRAMES)
    assert power is not None
    return power


def test_energy_is_power_times_time_by_frames(tmp_path: Path) -> None:
    write_ina3221(tmp_path, "1-0040", {"VDD_IN": (5000, 2000)})
    runner = BusyRunner()
    power = measured(tmp_path, runner)
    assert (power.mean_power_w, power.source, power.rail, power.reason) == (10.0, "ina3221", "VDD_IN", "")
    assert 0.3 <= power.seconds < 2 and 3 <= power.frames < len(runner.seen) and power.samples >= 3
    assert power.energy_per_frame_mj == pytest.approx(1e3 * 10.0 * power.seconds / power.frames)
    assert runner.seen[-power.frames :] == [index % 3 for index in range(power.frames)]


def test_mean_power_follows_the_samples(tmp_path: Path) -> None:
    folder = write_ina3221(tmp_path, "1-0040", {"VDD_IN": (5000, 2000)})
    power = measured(tmp_path, BusyRunner(lambda: (folder / "curr1_input").write_text("4000"), 15), seconds=0.4)
    assert power.mean_power_w is not None and 10.0 < power.mean_power_w < 20.0


def test_a_counter_gives_the_energy_of_the_time_also_when_it_starts_again(tmp_path: Path) -> None:
    counter = write_rapl(tmp_path, "intel-rapl:0", "package-0", 999_000_000, range_uj=1_000_000_000)
    stop, started = threading.Event(), time.monotonic()

    def draw_20_watts() -> None:
        while not stop.wait(0.005):
            now = 999_000_000 + int(20e6 * (time.monotonic() - started))
            part = counter.with_name("part")
            part.write_text(str(now % 1_000_000_000))
            part.replace(counter)

    thread = threading.Thread(target=draw_20_watts)
    thread.start()
    try:
        power = measured(tmp_path, BusyRunner(), seconds=0.5)
    finally:
        stop.set()
        thread.join()
    assert int(counter.read_text()) < 999_000_000 and (power.source, power.rail) == ("rapl", "package-0")
    assert power.mean_power_w == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize(("candidate", "source", "watts"), [(GPU, "nvidia-smi", 61.5), (CPU, "tegrastats", 22.43)])
def test_programs_measure_what_a_candidate_runs_on(
    tmp_path: Path, candidate: Candidate, source: str, watts: float
) -> None:
    write_program(tmp_path, "nvidia-smi", nvidia_smi(repeated("61.5")))
    write_program(tmp_path, "tegrastats", repeated(AGX_ORIN))
    power = measured(tmp_path, BusyRunner(), candidate)
    assert power.source == source and power.mean_power_w == pytest.approx(watts) and power.samples >= 2


def test_a_processor_does_not_stand_for_a_gpu(tmp_path: Path) -> None:
    write_rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    power = measured(tmp_path, BusyRunner(), GPU)
    assert power.mean_power_w is None and power.energy_per_frame_mj is None
    assert power.reason.startswith("nvml: ") and "nvidia-smi: the program is not installed" in power.reason


def test_a_file_that_disappears_midway_gives_no_figure(tmp_path: Path) -> None:
    counter = write_rapl(tmp_path, "intel-rapl:0", "package-0", 1)
    power = measured(tmp_path, BusyRunner(counter.unlink, 20))
    assert power.mean_power_w is None and power.energy_per_frame_mj is None and power.samples >= 1
    assert power.reason.startswith(f"rapl was lost after {power.samples} sample(s): {counter} cannot be read")


def test_a_program_that_ends_midway_gives_no_figure_now_and_later(tmp_path: Path) -> None:
    lines = " ".join(["61.5"] * 6)
    write_program(tmp_path, "nvidia-smi", nvidia_smi(f"for w in {lines}; do echo $w; sleep 0.04; done; exit 5"))
    with PowerMeter(PowerRequest(0.6, 0.0, places(tmp_path))) as meter:
        first, second = (meter.measure(GPU, BusyRunner(), FRAMES) for _ in range(2))
    assert first is not None and second is not None
    for power in (first, second):
        assert power.mean_power_w is None and "nvidia-smi ended with status 5" in power.reason
    assert first.samples >= 1 and second.samples == 0


def test_too_short_a_measurement_gives_no_figure(tmp_path: Path) -> None:
    write_ina3221(tmp_path, "1-0040", {"VDD_IN": (5000, 2000)})
    power = measured(tmp_path, BusyRunner(), seconds=0.001)
    assert power.frames == 1 and power.samples < 2 and power.mean_power_w is None
    assert "fewer than 2" in power.reason


def test_a_value_that_is_no_number_gives_no_figure(tmp_path: Path) -> None:
    write_program(tmp_path, "nvidia-smi", nvidia_smi(repeated("nan")))
    power = measured(tmp_path, BusyRunner(), GPU)
    assert power.mean_power_w is None and "no number" in power.reason


def test_nothing_is_opened_unless_wanted(tmp_path: Path) -> None:
    write_program(tmp_path, "tegrastats", f"touch {tmp_path}/started\n{repeated(AGX_ORIN)}")
    runner = BusyRunner()
    with PowerMeter(PowerRequest(0, 1.0, places(tmp_path))) as meter:
        assert meter.measure(CPU, runner, FRAMES) is None
    assert runner.seen == [] and not (tmp_path / "started").exists()


def test_programs_are_ended(tmp_path: Path) -> None:
    write_program(tmp_path, "tegrastats", f"echo $$ > {tmp_path}/pid\n{repeated(AGX_ORIN)}")
    measured(tmp_path, BusyRunner())
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_wrong_seconds(seconds: float) -> None:
    with pytest.raises(ConfigError, match="0 for no measurement of power"):
        PowerRequest(seconds)
