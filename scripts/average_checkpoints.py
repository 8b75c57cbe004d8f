#!/usr/bin/env python3
"""Average the weights of checkpoints of one network (a model soup: Wortsman et al. 2022, section 3).

python scripts/average_checkpoints.py OUTPUT.safetensors A.safetensors B.safetensors

The training of each checkpoint should continue that of the previous one. The description (network, classes,
normalisation) is that of the last checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    args = parser.parse_args()
    states = []
    for path in args.checkpoints:
        with safe_open(path, "pt") as file:
            states.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            description = file.metadata()
    if len({frozenset((key, value.shape) for key, value in state.items()) for state in states}) > 1:
        raise SystemExit("the checkpoints have different weights; give checkpoints of one network")
    save_file({key: average([state[key] for state in states]) for key in states[-1]}, args.output, metadata=description)


def average(values: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of tensors of equal shape; of integers, such as batch counts, the last tensor."""
    return torch.stack(values).mean(0) if values[0].is_floating_point() else values[-1]


if __name__ == "__main__":
    main()
