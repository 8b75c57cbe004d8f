"""Sensors of power as a system has them: files of the kernel in a folder, and small programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anomseg_ros.bench.power_sources import PowerPlaces


def places(root: Path) -> PowerPlaces:
    """Return places in a folder, where nothing else of this computer is found."""
    return PowerPlaces(root / "powercap", root / "i2c", str(root / "bin"))


def write_rapl(root: Path, name: str, label: str, microjoules: int, range_uj: int = 1_000_000_000) -> Path:
    """Write a domain of RAPL; return the file of its counter."""
    folder = root / "powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def write_ina3221(root: Path, chip: str, rails: Mapping[str, tuple[int, int]]) -> Path:
    """Write a chip. rails: label -> millivolts and milliamperes. Return the folder of its files."""
    folder = root / "i2c" / "ina3221" / chip / "hwmon" / f"hwmon{chip[-1]}"
    folder.mkdir(parents=True)
    for number, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        (folder / f"in{number}_label").write_text(f"{label}\n")
        (folder / f"in{number}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("760\n")
    return folder


def write_program(root: Path, name: str, script: str) -> Path:
    """Write a program of the shell."""
    path = root / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
    path.chmod(0o755)
    return path


def repeated(line: str, every_s: float = 0.02) -> str:
    """Return a script that prints a line again and again."""
    return f"while echo '{line}'; do sleep {every_s}; done"


def nvidia_smi(script: str, gpus: str = "GPU-aa11, NVIDIA Test 1") -> str:
    """Return the script of an nvidia-smi: it lists these GPUs, and else does what the script says."""
    return f"case \"$*\" in *uuid*) printf '%b\\n' '{gpus}'; exit 0;; esac\n{script}"


ORIN_NX = "RAM 1/2MB GR3D_FREQ 0% VDD_IN 5432mW/5000mW VDD_CPU_GPU_CV 812mW/812mW VDD_SOC 1421mW/1421mW"
AGX_ORIN = "CV0@73.6C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW NC 0mW/0mW"
THOR = "RAM 1/2MB VDD_GPU -392mW/0mW VDD_CPU_SOC_MSS 6510mW/6510mW VIN_SYS_5V0 6520mW/6520mW VIN 23000mW/23000mW"
