"""The bundle of painted_frames.py as a program of torch, which is compiled in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from painted_frames import LOGITS
from torch import nn

from anomseg_ros.core.bundle import TORCH_FILE, Bundle, save_bundle
from anomseg_ros.networks.torch_program import program_of, save_program


class Painted(nn.Module):
    """Labels and the score `void` of pixels by their colours."""

    def __init__(self, train_ids: list[int]) -> None:
        super().__init__()
        table = torch.full((4, len(train_ids)), -40.0)
        table[:3] = 0
        for index, logits in LOGITS.items():
            table[:, index] = torch.tensor(logits, dtype=torch.float32)
        self.register_buffer("weights", table[:3] / 255)
        self.register_buffer("bias", table[3].clone())
        self.register_buffer("train_ids", torch.tensor(train_ids, dtype=torch.int32))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """image: uint8 (1, H, W, 3)."""
        logits = image.float() @ self.get_buffer("weights") + self.get_buffer("bias")
        labels = self.get_buffer("train_ids")[logits.argmax(-1)]
        return labels.to(torch.uint8), logits.softmax(-1)[..., -1]


def write_painted_program(painted: Bundle, folder: Path) -> Bundle:
    """Write the painted bundle with a program of torch alone, and with one score."""
    contract = replace(painted.contract, outputs=painted.contract.outputs[:2])
    image = torch.zeros((1, contract.input.height_px, contract.input.width_px, 3), dtype=torch.uint8)
    program = program_of(Painted([info.train_id for info in contract.classes]).eval(), image)
    path = save_program(program, folder.with_suffix(".pt2"))
    return save_bundle(contract, {TORCH_FILE: path}, folder)
