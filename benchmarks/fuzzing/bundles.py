"""Bundles: contracts that say anything, and graphs that are damaged though their digest is right."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import yaml

from anomseg_ros.backends import open_detector
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.graph_outputs import keep_outputs
from anomseg_ros.core.bundle import CONTRACT_FILE, GRAPH_FILE, change_bundle, load_bundle, sha256_of
from anomseg_ros.errors import BackendError, BundleError, ConfigError
from fuzzing.odd_values import changed_plain, damaged
from fuzzing.targets import Target

NESTED = 3000
HOSTILE_TEXTS = (
    "[" * NESTED,
    "{a: " * NESTED,
    "- " * NESTED + "x",
    "format_version: 1\nname: 2001-99-99\n",
    "format_version: 1\nname: " + "9" * 5000 + "\n",
    "format_version: 1\nname: 0x" + "f" * 50_000 + "\n",
    "format_version: 1\n? [a, b]\n: c\n",
    "!!python/object/apply:os.system ['true']\n",
    "!!binary x\n",
    "format_version: !!float x\n",
    "format_version: !!int ''\n",
    "format_version: !!timestamp x\n",
    "a: &a [*a]\n",
    "format_version: 1\nname: &a {<<: *a}\n",
    "\ufeffformat_version: 1\n",
    "format_version: 1\n---\nformat_version: 1\n",
    "",
)


def alias_bomb(key: str) -> str:
    """Return YAML of a thousand bytes in which `key` has 10^9 elements, each a reference."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return "\n".join([*lines, "format_version: 1", f"{key}: *a8", ""])


class Contracts(Target):
    """bundle.yaml: values of any type at any place, other names and digests, damaged text, hostile YAML."""

    refusals = (BundleError,)

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Copy the bundle, the contract of which every input replaces."""
        super().__init__(folder, bundle)
        self.copy = folder / "bundle"
        shutil.copytree(bundle, self.copy)
        self.text = (bundle / CONTRACT_FILE).read_text(encoding="utf-8")
        self.plain = yaml.safe_load(self.text)

    def make(self, rng: Random) -> bytes:
        """Return the bytes of a bundle.yaml."""
        kind = rng.random()
        if kind < 0.65:
            return yaml.safe_dump(changed_plain(rng, self.plain), allow_unicode=True).encode("utf-8", "replace")
        if kind < 0.95:
            return damaged(rng, self.text.encode())
        if kind < 0.97:
            return alias_bomb(rng.choice(("name", "classes", "outputs", "files", "quality"))).encode()
        return rng.choice(HOSTILE_TEXTS).encode()

    def check(self, case: bytes) -> None:
        """A contract that is taken can be asked, and written again within the folder."""
        (self.copy / CONTRACT_FILE).write_bytes(case)
        bundle = load_bundle(self.copy)
        for score in bundle.contract.score_names:
            try:
                bundle.threshold(score, 0.01)
            except ConfigError:  # every rate is above it
                continue
        changed = change_bundle(bundle, lambda contract: replace(contract, name="changed"), self.folder / "changed")
        shutil.rmtree(changed.directory)


class GraphCase(NamedTuple):
    """The bytes of a model.onnx, and the outputs that are asked for."""

    graph: bytes
    outputs: tuple[str, ...]


class Graphs(Target):
    """model.onnx: damaged bytes behind a right digest."""

    refusals = (BundleError, BackendError)

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Copy the bundle, the graph of which every input replaces."""
        super().__init__(folder, bundle)
        self.copy = folder / "bundle"
        shutil.copytree(bundle, self.copy)
        self.graph = (bundle / GRAPH_FILE).read_bytes()
        self.plain: dict[str, Any] = yaml.safe_load((bundle / CONTRACT_FILE).read_text(encoding="utf-8"))
        self.names = tuple(output["name"] for output in self.plain["outputs"])

    def make(self, rng: Random) -> GraphCase:
        """Return a damaged graph; most damages are where the structure is, not in the weights."""
        kind = rng.random()
        if kind < 0.1:
            graph = _nested_graphs(rng.choice((10, 1000, 5000)))
        elif kind < 0.6:
            place = rng.randrange(max(len(self.graph) - 2000, 1))
            graph = self.graph[:place] + damaged(rng, self.graph[place : place + 2000], 3) + self.graph[place + 2000 :]
        else:
            graph = damaged(rng, self.graph[:4000]) + self.graph[4000:]
        return GraphCase(graph, tuple(name for name in self.names if rng.random() < 0.4) or self.names)

    def check(self, case: GraphCase) -> None:
        """A graph is refused, or runs."""
        (self.copy / GRAPH_FILE).write_bytes(case.graph)
        files = {**self.plain["files"], GRAPH_FILE: sha256_of(self.copy / GRAPH_FILE)}
        text = yaml.safe_dump({**self.plain, "files": files})
        (self.copy / CONTRACT_FILE).write_text(text, encoding="utf-8")
        keep_outputs(case.graph, case.outputs)
        bundle = load_bundle(self.copy)
        detector = open_detector(bundle, "onnxruntime", BackendOptions(threads=1))
        spec = bundle.contract.input
        scores = tuple(name for name in case.outputs if name in bundle.contract.score_names)
        detector.detect(np.zeros((spec.height_px, spec.width_px, 3), np.uint8), scores)
        detector.close()


def _nested_graphs(depth: int) -> bytes:
    """Return a model whose node has an attribute with a graph, whose node has one, and so on."""
    content = b""
    for _ in range(depth):
        graph = _record(1, content)
        content = _record(5, _record(6, graph)) + _record(2, b"labels")
    return _record(7, _record(1, content) + _record(12, _record(1, b"labels")))


def _record(number: int, payload: bytes) -> bytes:
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + payload
