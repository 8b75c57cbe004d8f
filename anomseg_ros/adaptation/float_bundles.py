"""Which bundles can be adapted; without torch, so that others are refused before it is asked for."""

from __future__ import annotations

from anomseg_ros.core.bundle import Contract
from anomseg_ros.errors import ConfigError


def require_float(contract: Contract) -> None:
    """Raise ConfigError for a bundle whose weights are not floating-point numbers of 32 bits."""
    if contract.precision != "fp32":
        raise ConfigError(
            f"bundle {contract.name!r} is {contract.precision}, whose weights cannot be trained; adapt the float "
            "bundle that it was made from, then run `anomseg quantize` on what comes out"
        )
