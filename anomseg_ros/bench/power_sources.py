"""Sensors of electric power: NVIDIA's library and programs, the INA3221 chips of a Jetson, and RAPL of processors.

A source measures one rail, or the sum of rails that do not overlap. Where the total is not known to be among the rails
of a board, there is no source: the sum of overlapping rails would be an invented number.
"""

from __future__ import annotations

import importlib
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anomseg_ros.errors import PowerError, describe_os_error, first_line

PERIOD_MS = 100
"""Time between two lines of a program."""
LONGEST_WAIT_S = 5.0
TOTAL_RAILS = (("VDD_IN",), ("VIN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))
"""Rails of a Jetson whose sum is the module's input: Orin NX and Nano, Thor, and AGX Orin, which has no total."""
_TEGRASTATS_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW")


@dataclass(frozen=True)
class PowerPlaces:
    """Where to look for sensors. programs: folders as in $PATH, None for those of $PATH."""

    powercap: Path = Path("/sys/class/powercap")
    i2c_drivers: Path = Path("/sys/bus/i2c/drivers")
    programs: str | None = None


class PowerSource(Protocol):
    """An open sensor. rail: what it measures. is_counter: it gives joules since some moment instead of watts."""

    name: str
    rail: str
    is_counter: bool

    def read(self) -> float:
        """Return watts or joules; wait for the next value where the sensor sends them. Raises PowerError."""
        ...

    def close(self) -> None:
        """Release the sensor."""
        ...


def open_source(names: Sequence[str], places: PowerPlaces) -> PowerSource:
    """Return the first of the sources that works. Raises PowerError with the reason of each."""
    reasons = []
    for name in names:
        try:
            return _SOURCES[name](places)
        except PowerError as error:
            reasons.append(f"{name}: {error}")
    raise PowerError("; ".join(reasons))


@dataclass
class FunctionSource:
    """A source that is read by a call."""

    name: str
    rail: str
    is_counter: bool
    value: Callable[[], float]
    release: Callable[[], object] = lambda: None

    def read(self) -> float:
        """See PowerSource."""
        return self.value()

    def close(self) -> None:
        """See PowerSource."""
        self.release()


class ProgramSource:
    """A program that prints a line with the power now and then, until it is closed."""

    is_counter = False

    def __init__(self, name: str, command: Sequence[str], watts: Callable[[str], tuple[float, str]]) -> None:
        """watts: (line) -> watts and rail. Raises PowerError unless the program prints power."""
        self.name, self._watts, self._text = name, watts, b""
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as error:
            raise PowerError(f"{command[0]} cannot be started: {describe_os_error(error)}") from error
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        try:
            _, self.rail = self._watts(self._next_line())
        except PowerError:
            self.close()
            raise

    def read(self) -> float:
        """See PowerSource."""
        return self._watts(self._next_line())[0]

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(LONGEST_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _next_line(self) -> str:
        """Return the newest complete line that was not returned yet; wait for it."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        while b"\n" not in self._text:
            if not self._arrives(max(0.0, deadline - time.monotonic())):
                raise PowerError(f"{self.name} printed nothing for {LONGEST_WAIT_S:g} s")
            if not self._take():
                raise PowerError(f"{self.name} ended with status {self._process.wait()}")
        while self._arrives(0.0) and self._take():
            pass
        *lines, self._text = self._text.split(b"\n")
        return lines[-1].decode(errors="replace")

    def _arrives(self, timeout_s: float) -> bool:
        return bool(select.select([self._pipe], [], [], timeout_s)[0])

    def _take(self) -> bool:
        """Return whether there was something to read; False at the end of the program."""
        chunk = os.read(self._pipe, 1 << 16)
        self._text += chunk
        return bool(chunk)


def _open_nvml(places: PowerPlaces) -> PowerSource:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        raise PowerError("pynvml is not installed (pip install nvidia-ml-py)") from None
    _nvml(nvml, "Init")
    try:
        gpus = [_nvml(nvml, "DeviceGetHandleByIndex", index) for index in range(_nvml(nvml, "DeviceGetCount"))]
        gpu = gpus[first_cuda_gpu([_text(_nvml(nvml, "DeviceGetUUID", each)) for each in gpus])]
        rail = f"board of {_text(_nvml(nvml, 'DeviceGetName', gpu))}"
        call = _nvml_meter(nvml, gpu)
    except PowerError:
        nvml.nvmlShutdown()
        raise
    is_counter = call == "DeviceGetTotalEnergyConsumption"
    # Both calls give thousandths: of a joule, of a watt.
    return FunctionSource("nvml", rail, is_counter, lambda: _nvml(nvml, call, gpu) / 1e3, nvml.nvmlShutdown)


def _nvml_meter(nvml: Any, gpu: Any) -> str:
    """Return the name of the call to measure with: the counter of energy, which GPUs before Volta lack, or power."""
    try:
        _nvml(nvml, "DeviceGetTotalEnergyConsumption", gpu)
        return "DeviceGetTotalEnergyConsumption"
    except PowerError:
        _nvml(nvml, "DeviceGetPowerUsage", gpu)
        return "DeviceGetPowerUsage"


def _nvml(nvml: Any, name: str, *given: Any) -> Any:
    """Return what a function of NVML gives. Raises PowerError."""
    try:
        return getattr(nvml, f"nvml{name}")(*given)
    except nvml.NVMLError as error:
        raise PowerError(f"nvml{name}: {first_line(error)}") from error


def first_cuda_gpu(uuids: Sequence[str]) -> int:
    """Return which of NVIDIA's GPUs is the first one of CUDA in this process. Raises PowerError if that is unknown."""
    if not uuids:
        raise PowerError("there is no NVIDIA GPU")
    if len(uuids) == 1:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    named = [index for index, uuid in enumerate(uuids) if visible.startswith("GPU-") and uuid.startswith(visible)]
    if len(named) == 1:
        return named[0]
    # Without this order, CUDA numbers the GPUs by speed.
    in_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if in_order and visible.isdecimal() and int(visible) < len(uuids):
        return int(visible)
    raise PowerError(
        f"there are {len(uuids)} GPUs, and which one CUDA calls the first is unknown; set CUDA_VISIBLE_DEVICES to the "
        "UUID of one"
    )


def _open_nvidia_smi(places: PowerPlaces) -> PowerSource:
    program = _program("nvidia-smi", places)
    query = [program, "--query-gpu=uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=LONGEST_WAIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PowerError(f"{program} cannot be run: {first_line(error)}") from error
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        raise PowerError(f"{program} ended with status {done.returncode}: {said}")
    gpus = [tuple(part.strip() for part in line.split(",", 1)) for line in done.stdout.splitlines() if "," in line]
    uuid, name = gpus[first_cuda_gpu([uuid for uuid, _ in gpus])]

    def watts(line: str) -> tuple[float, str]:
        try:
            return float(line), f"board of {name}"
        except ValueError:
            raise PowerError(f"the power of {name} is {line.strip()!r}") from None

    command = [program, f"--id={uuid}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    return ProgramSource("nvidia-smi", [*command, f"--loop-ms={PERIOD_MS}"], watts)


def _open_ina3221(places: PowerPlaces) -> PowerSource:
    rails = {}
    for label in sorted(places.i2c_drivers.glob("ina3221*/*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        pair = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if all(path.exists() for path in pair):  # the channel that sums the shunts has no current
            rails[_read(label)] = pair
    if not rails:
        raise PowerError(f"there is no INA3221 in {places.i2c_drivers}")
    total = total_rails(rails)

    def watts() -> float:
        return sum(_number(volts) * _number(amperes) for volts, amperes in map(rails.__getitem__, total)) / 1e6

    watts()
    return FunctionSource("ina3221", " + ".join(total), False, watts)


def _open_tegrastats(places: PowerPlaces) -> PowerSource:
    def watts(line: str) -> tuple[float, str]:
        rails = {name: int(milliwatts) for name, milliwatts in _TEGRASTATS_RAIL.findall(line)}
        total = total_rails(rails)
        return sum(rails[name] for name in total) / 1e3, " + ".join(total)

    return ProgramSource("tegrastats", [_program("tegrastats", places), "--interval", str(PERIOD_MS)], watts)


def total_rails(rails: Collection[str]) -> tuple[str, ...]:
    """Return the rails whose sum is the module's input power. Raises PowerError if that is unknown."""
    for total in TOTAL_RAILS:
        if set(total) <= set(rails):
            return total
    raise PowerError(f"no total is known of the rails {', '.join(sorted(rails)) or '(none)'}")


@dataclass
class _RaplDomain:
    """A counter of microjoules in a file. It starts from 0 again at its range."""

    folder: Path
    last: int = -1
    total: int = 0

    def microjoules(self) -> int:
        """Return the energy since the first call."""
        now = _number(self.folder / "energy_uj")
        if self.last >= 0:
            passed = now - self.last
            self.total += passed if passed >= 0 else passed + _number(self.folder / "max_energy_range_uj")
        self.last = now
        return self.total


def _open_rapl(places: PowerPlaces) -> PowerSource:
    # Parts of a package have two colons in their names; psys is the whole computer, which contains the packages.
    folders = [folder for folder in sorted(places.powercap.glob("intel-rapl:*")) if folder.name.count(":") == 1]
    packages = {
        name: _RaplDomain(folder) for folder in folders if (name := _read(folder / "name")).startswith("package")
    }
    if not packages:
        raise PowerError(f"there is no processor in {places.powercap}")

    def joules() -> float:
        return sum(domain.microjoules() for domain in packages.values()) / 1e6

    joules()
    return FunctionSource("rapl", " + ".join(packages), True, joules)


_SOURCES: dict[str, Callable[[PowerPlaces], PowerSource]] = {
    "nvml": _open_nvml,
    "nvidia-smi": _open_nvidia_smi,
    "ina3221": _open_ina3221,
    "tegrastats": _open_tegrastats,
    "rapl": _open_rapl,
}
OF_A_GPU = ("nvml", "nvidia-smi", "ina3221", "tegrastats")
"""What measures an NVIDIA GPU; on a Jetson the whole module."""
OF_A_PROCESSOR = ("ina3221", "tegrastats", "rapl")


def _program(name: str, places: PowerPlaces) -> str:
    found = shutil.which(name, path=places.programs)
    if found is None:
        raise PowerError("the program is not installed")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError as error:
        raise PowerError(f"{path} is not readable for this user; as root: chmod a+r {path}") from error
    except OSError as error:
        raise PowerError(f"{path} cannot be read: {describe_os_error(error)}") from error


def _number(path: Path) -> int:
    text = _read(path)
    try:
        return int(text)
    except ValueError:
        raise PowerError(f"{path} has {text[:40]!r}, expected a whole number") from None


def _text(value: str | bytes) -> str:
    """Return what older versions of pynvml give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
