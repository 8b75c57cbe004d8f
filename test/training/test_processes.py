"""The precision of a run: bfloat16 is for processors that compute in it."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("lightning_fabric", reason="the extra `train` is not installed")

from anomseg_ros.training import processes
from anomseg_ros.training.config import RunConfig


def precision_of(monkeypatch: pytest.MonkeyPatch, asked: str, has_bfloat16: bool) -> str:
    monkeypatch.setattr(processes, "has_bfloat16", lambda: has_bfloat16)
    run = RunConfig(epochs=1, batch_size=1, precision=asked, accelerator="cpu", devices="1")
    return str(processes.start_processes(run).strategy.precision.precision)


@pytest.mark.parametrize(
    ("asked", "has_bfloat16", "given"),
    [
        ("bf16-mixed", True, "bf16-mixed"),
        ("bf16-mixed", False, "32-true"),
        ("32-true", True, "32-true"),
        ("32-true", False, "32-true"),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(
    asked: str, has_bfloat16: bool, given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert precision_of(monkeypatch, asked, has_bfloat16) == given
    assert ("has precision 32-true in place of bf16-mixed" in caplog.text) == (asked != given)


def test_avx2_alone_has_no_bfloat16() -> None:
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        pytest.skip("this processor has more or less than AVX2")
    assert not processes.has_bfloat16()
