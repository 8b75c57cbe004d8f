"""Programs may call operators that only compute: those of our networks, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_archives import Members, edit, first_node, rewrite_program

from anomseg_ros.backends.torch_archive import OPERATORS, PROGRAM, WORDS, read_plain_program
from anomseg_ros.core.bundle import TORCH_FILE
from anomseg_ros.errors import BackendError
from anomseg_ros.networks.torch_program import program_of, save_program


class FurtherOperators(nn.Module):
    """Those that only some networks have: BiSeNet Lite, dual-stream adapters, ENet for GPUs, EoMT, ESPNetv2."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.gelu = nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()
        self.groups = nn.GroupNorm(3, 3)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """values: float32 (1, 3, 4, 4)."""
        tokens = self.gelu(self.linear(self.norm(self.groups(values))))
        attended = F.scaled_dot_product_attention(tokens, tokens, tokens).unflatten(1, (3, 1))
        enlarged = F.interpolate(values, size=(6, 6), mode="bicubic", align_corners=False)
        places = torch.arange(4, device=values.device) * 3 // 2
        near = (places < places[-1]).to(values.dtype)
        return attended, enlarged, F.hardtanh(values), values >= tokens, (values[0, 0] * near).T


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / TORCH_FILE
    return save_program(program_of(FurtherOperators(), torch.randn((1, 3, 4, 4))), path)


def test_programs_of_networks_with_further_operators_are_read(program: Path) -> None:
    assert torch.export.load(read_plain_program(program)).graph_signature.user_outputs


def with_operator(target: str) -> Callable[[Members], object]:
    return lambda members: edit(members, PROGRAM, lambda d: first_node(d).update(target=target))


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.set_.source_Tensor_storage_offset",
        "torch.ops.aten.add.Tensor.__class__",
        "torch.ops.quantized_decomposed.choose_qparams.tensor",
        "torch.ops.higher_order.cond",
        "_operator.getitem",
        "math.sqrt",
        "#aoti:f",
        "torch.ops.aten.add.Tensor\n",
        7,
        None,
        ["torch.ops.aten.add.Tensor"],
    ],
)
def test_other_operators_are_refused(target: Any, program: Path, tmp_path: Path) -> None:
    bad = rewrite_program(program, tmp_path / "bad.pt2", with_operator(target))
    with pytest.raises(BackendError, match=r"the program calls .*, which is none of .*; expected a program"):
        read_plain_program(bad)


def test_allowed_operators_only_compute() -> None:
    """Each operator exists and has only tensors, numbers and tensor types as arguments and results."""
    from torch.ao.quantization.fx import _decomposed  # noqa: F401

    plain = {"Tensor", "int", "float", "bool", "number", "Device", "Optional", "List"}
    for target in OPERATORS:
        namespace, name, overload = target.split(".")[2:]
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
        kinds = {word for item in (*schema.arguments, *schema.returns) for word in re.findall(r"\w+", str(item.type))}
        assert kinds - plain == ({"str"} if target in WORDS else set()), target
