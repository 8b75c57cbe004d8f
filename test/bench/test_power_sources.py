"""Each sensor of power is read from real files and programs, and what cannot be read says why."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from power_sensors import (
    AGX_ORIN,
    ORIN_NX,
    THOR,
    nvidia_smi,
    places,
    repeated,
    write_ina3221,
    write_program,
    write_rapl,
)

from anomseg_ros.bench import power_sources
from anomseg_ros.bench.power_sources import OF_A_GPU, OF_A_PROCESSOR, PowerPlaces, open_source
from anomseg_ros.errors import PowerError

NVML = """
import os
class NVMLError(Exception): pass
calls = []
def nvmlInit(): calls.append("init")
def nvmlShutdown(): calls.append("shutdown")
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(gpu): return f"GPU-{gpu}{gpu}"
def nvmlDeviceGetName(gpu): return b"NVIDIA Test"
def nvmlDeviceGetPowerUsage(gpu): return 61500
def nvmlDeviceGetTotalEnergyConsumption(gpu):
    if "counter" not in os.environ.get("NVML", ""):
        raise NVMLError("Not Supported")
    return 2_500_000 + gpu
"""


@contextmanager
def as_another_user() -> Iterator[None]:
    """Give up the rights of root, which reads every file."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_rapl_adds_up_packages_and_nothing_that_they_contain(tmp_path: Path) -> None:
    first = write_rapl(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = write_rapl(tmp_path, "intel-rapl:1", "package-1", 5)
    core = write_rapl(tmp_path, "intel-rapl:0:0", "core", 7)
    whole = write_rapl(tmp_path, "intel-rapl:2", "psys", 7)
    source = open_source(OF_A_PROCESSOR, places(tmp_path))
    assert (source.name, source.rail, source.is_counter) == ("rapl", "package-0 + package-1", True)
    assert source.read() == 0.0
    for file, microjoules in ((first, 3_500_000), (second, 1_000_005), (core, 9_000_000), (whole, 9_000_000)):
        file.write_text(str(microjoules))
    assert source.read() == pytest.approx(3.5)


def test_rapl_counter_that_starts_again_goes_on(tmp_path: Path) -> None:
    counter = write_rapl(tmp_path, "intel-rapl:0", "package-0", 900, range_uj=1000)
    source = open_source(["rapl"], places(tmp_path))
    for now, total in ((950, 50), (100, 200), (20, 1120), (20, 1120)):
        counter.write_text(str(now))
        assert source.read() == pytest.approx(total / 1e6)


def test_rapl_that_is_only_for_root_says_how_to_change_that() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to other users
        root = Path(folder)
        root.chmod(0o755)
        counter = write_rapl(root, "intel-rapl:0", "package-0", 1)
        counter.chmod(0)
        with as_another_user(), pytest.raises(PowerError, match=rf"not readable for this user.*chmod a\+r {counter}"):
            open_source(["rapl"], places(root))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [("energy_uj", "many", "'many', expected a whole number"), ("max_energy_range_uj", None, "No such file")],
)
def test_rapl_with_broken_files(tmp_path: Path, file: str, content: str | None, said: str) -> None:
    counter = write_rapl(tmp_path, "intel-rapl:0", "package-0", 500)
    source = open_source(["rapl"], places(tmp_path))
    counter.write_text("3")
    path = counter.with_name(file)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(PowerError, match=said):
        source.read()


def test_jetson_chip_gives_the_input_of_the_module(tmp_path: Path) -> None:
    folder = write_ina3221(
        tmp_path, "1-0040", {"VDD_IN": (5000, 2000), "VDD_CPU_GPU_CV": (5000, 300), "VDD_SOC": (5000, 100)}
    )
    source = open_source(OF_A_PROCESSOR, places(tmp_path))
    assert (source.name, source.rail, source.is_counter) == ("ina3221", "VDD_IN", False)
    assert source.read() == pytest.approx(10.0)
    (folder / "curr1_input").write_text("2500\n")
    assert source.read() == pytest.approx(12.5)
    shutil.rmtree(folder)
    with pytest.raises(PowerError, match="in1_input cannot be read"):
        source.read()


def test_agx_orin_is_the_sum_of_three_rails(tmp_path: Path) -> None:
    write_ina3221(
        tmp_path, "1-0040", {"VDD_GPU_SOC": (10_000, 300), "VDD_CPU_CV": (10_000, 100), "VIN_SYS_5V0": (5000, 1000)}
    )
    write_ina3221(tmp_path, "1-0041", {"VDDQ_VDD2_1V8AO": (5000, 100)})  # fed by VIN_SYS_5V0
    source = open_source(["ina3221"], places(tmp_path))
    assert source.rail == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" and source.read() == pytest.approx(9.0)


def test_rails_without_a_known_total_are_no_source(tmp_path: Path) -> None:
    write_ina3221(tmp_path, "1-0040", {"VDD_GPU": (5000, 1), "VDD_CPU_SOC_MSS": (5000, 1), "VIN_SYS_5V0": (5000, 1)})
    with pytest.raises(PowerError, match="no total is known of the rails VDD_CPU_SOC_MSS, VDD_GPU, VIN_SYS_5V0"):
        open_source(["ina3221"], places(tmp_path))
    write_program(tmp_path, "tegrastats", repeated(THOR))
    source = open_source(OF_A_GPU, places(tmp_path))
    assert (source.name, source.rail, source.read()) == ("tegrastats", "VIN", 23.0)
    source.close()


@pytest.mark.parametrize(
    ("line", "rail", "watts"),
    [(ORIN_NX, "VDD_IN", 5.432), (AGX_ORIN, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 22.43)],
)
def test_tegrastats_lines(tmp_path: Path, line: str, rail: str, watts: float) -> None:
    write_program(tmp_path, "tegrastats", f'test "$*" = "--interval 100" || exit 3\n{repeated(line)}')
    source = open_source(OF_A_PROCESSOR, places(tmp_path))
    assert (source.name, source.rail) == ("tegrastats", rail) and source.read() == pytest.approx(watts)
    source.close()


def test_nvidia_smi_is_asked_for_its_gpu(tmp_path: Path) -> None:
    given = '[ "$1 $2" = "--id=GPU-aa11 --query-gpu=power.draw" ] || exit 4\n'
    write_program(tmp_path, "nvidia-smi", nvidia_smi(given + repeated("61.75")))
    source = open_source(OF_A_GPU, places(tmp_path))
    assert (source.name, source.rail, source.read()) == ("nvidia-smi", "board of NVIDIA Test 1", 61.75)
    source.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (nvidia_smi(repeated("[N/A]")), r"power of NVIDIA Test 1 is '\[N/A\]'"),
        (nvidia_smi("exit 9"), "ended with status 9"),
        ("echo has failed because it could not talk; exit 9", "status 9: has failed because it could not talk"),
        (nvidia_smi(repeated("5"), gpus=""), "there is no NVIDIA GPU"),
        (nvidia_smi(repeated("5"), gpus="GPU-1, A\\nGPU-2, B"), "there are 2 GPUs"),
    ],
)
def test_nvidia_smi_without_power(tmp_path: Path, script: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_program(tmp_path, "nvidia-smi", script)
    with pytest.raises(PowerError, match=said):
        open_source(["nvidia-smi"], places(tmp_path))


def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_sources, "LONGEST_WAIT_S", 0.2)
    write_program(tmp_path, "tegrastats", "exec sleep 30")
    with pytest.raises(PowerError, match=r"tegrastats printed nothing for 0.2 s"):
        open_source(["tegrastats"], places(tmp_path))


@pytest.mark.parametrize(
    ("visible", "order", "expected"),
    [
        ("GPU-22,GPU-11", None, 1),
        ("1", "PCI_BUS_ID", 1),
        ("1", None, None),
        ("7", "PCI_BUS_ID", None),
        ("", None, None),
    ],
)
def test_which_of_several_gpus(
    visible: str, order: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if order is not None:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    uuids = ["GPU-1111", "GPU-2222"]
    if expected is not None:
        assert power_sources.first_cuda_gpu(uuids) == expected
        return
    with pytest.raises(PowerError, match="set CUDA_VISIBLE_DEVICES to the UUID"):
        power_sources.first_cuda_gpu(uuids)


@pytest.mark.parametrize(("has_counter", "value"), [(True, 2500.001), (False, 61.5)])
def test_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_counter: bool, value: float) -> None:
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-11")
    monkeypatch.setenv("NVML", "counter" if has_counter else "")
    source = open_source(OF_A_GPU, places(tmp_path))
    assert (source.name, source.rail, source.is_counter) == ("nvml", "board of NVIDIA Test", has_counter)
    assert source.read() == pytest.approx(value)
    source.close()
    import pynvml  # type: ignore[import-not-found]

    assert pynvml.calls == ["init", "shutdown"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PowerError, match="there are 2 GPUs"):
        open_source(["nvml"], places(tmp_path))
    assert pynvml.calls[2:] == ["init", "shutdown"]
    monkeypatch.delitem(sys.modules, "pynvml")


def test_nothing_there_gives_the_reason_of_each(tmp_path: Path) -> None:
    with pytest.raises(PowerError) as caught:
        open_source(["nvidia-smi", *OF_A_PROCESSOR], places(tmp_path))
    reasons = str(caught.value).split("; ")
    assert [reason.split(":")[0] for reason in reasons] == ["nvidia-smi", "ina3221", "tegrastats", "rapl"]
    assert f"there is no processor in {tmp_path / 'powercap'}" in reasons[-1]


def test_the_defaults_are_those_of_linux() -> None:
    assert PowerPlaces() == PowerPlaces(Path("/sys/class/powercap"), Path("/sys/bus/i2c/drivers"), None)
