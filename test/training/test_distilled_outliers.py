"""A teacher with an anomaly class sees the pasted objects and teaches its class; others see the plain frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import run, write_config, write_frames

from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import save_checkpoint
from anomseg_ros.training import losses, segmentation_loss
from anomseg_ros.training.config import load_config
from anomseg_ros.training.loop import _Run

SMALL = {"width": 64, "depth": 2, "query_blocks": 1, "queries": 6, "grid": [2, 3]}


@pytest.mark.parametrize("sees_outliers", [True, False])
def test_soft_targets_of_a_mask_teacher(sees_outliers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    teacher = build_network("eomt", 12, **SMALL).eval()
    save_checkpoint(tmp_path / "teacher.safetensors", teacher, {})
    config = write_config(
        tmp_path / "tiny.yaml",
        write_frames(tmp_path / "data"),
        teachers=[{"network": "eomt", "checkpoint": str(tmp_path / "teacher.safetensors")}],
        data={"void": "outliers", "cut_paste": {"probability": 1.0, "paste": {"min_area_px": 20, "scale": [0.1, 0.4]}}},
        loss={"distillation_weight": 1.0, "distillation_of_outliers": sees_outliers},
        run={"epochs": 1},
    )
    taught, pasted = [], []
    plain, logits_of = losses.distillation, _Run._teachers_logits

    def note_classes(student: torch.Tensor, soft: torch.Tensor, *more: object) -> torch.Tensor:
        taught.append(soft)
        return plain(student, soft, *more)  # type: ignore[arg-type]

    def note_frames(self: _Run, batch: object) -> list[torch.Tensor]:
        pasted.append(batch.images)  # type: ignore[attr-defined]
        assert not torch.equal(batch.images, batch.clean)  # type: ignore[attr-defined]
        return logits_of(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(segmentation_loss, "distillation", note_classes)
    monkeypatch.setattr(_Run, "_teachers_logits", note_frames)
    result = run(load_config(config), tmp_path / "out", teachers=(tmp_path / "teacher.safetensors",))
    assert result.num_classes == 12
    assert {soft.shape[1] for soft in taught} == {12 if sees_outliers else 11}
    with torch.no_grad():
        seen = teacher(pasted[0].permute(0, 3, 1, 2) / 255.0)
    equal = torch.allclose(taught[0], (seen[:, : taught[0].shape[1]] / 4.0).softmax(1), atol=1e-4)
    assert equal == sees_outliers
