"""Makes benchmarks/ importable: the benchmarks are scripts that import each other from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
