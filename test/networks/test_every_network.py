"""Every network of the table fulfils the contract of networks. A new network needs no change here."""

from __future__ import annotations

from network_contract import NetworkContract

from anomseg_ros.networks import NETWORKS

globals().update({f"Test_{name}": type(f"Test_{name}", (NetworkContract,), {"name": name}) for name in NETWORKS})
