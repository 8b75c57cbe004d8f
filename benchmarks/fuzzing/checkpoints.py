"""Checkpoints: safetensors files and pickles of torch whose header, description or data is not what it should be."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from random import Random

import torch

from anomseg_ros.errors import CheckpointError
from anomseg_ros.networks import build_network
from anomseg_ros.networks.checkpoints import FORMAT, load_checkpoint, save_checkpoint
from anomseg_ros.networks.layouts import LAYOUTS
from fuzzing.odd_values import changed_plain, damaged, odd_plain
from fuzzing.targets import Target

NETWORK, CLASSES = "mide_net", 2
NESTED = 3000


class Checkpoints(Target):
    """What both kinds of files share."""

    refusals = (CheckpointError,)
    suffix = ""

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Make the network."""
        super().__init__(folder, bundle)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.network = build_network(NETWORK, CLASSES).eval()
        self.path = folder / f"checkpoint{self.suffix}"
        save_checkpoint(folder / "first.safetensors", self.network, {})
        load_checkpoint(folder / "first.safetensors", NETWORK, CLASSES)  # torch writes elsewhere, once

    def check(self, case: bytes) -> None:
        """What is loaded is a whole network."""
        self.path.write_bytes(case)
        network = load_checkpoint(self.path, NETWORK, CLASSES)
        assert network.num_classes == CLASSES
        assert all(value.device.type == "cpu" for value in network.state_dict().values())


class SafetensorsFiles(Checkpoints):
    """A header of JSON, then tensors; our own description is JSON inside it."""

    suffix = ".safetensors"

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Write the valid file."""
        super().__init__(folder, bundle)
        save_checkpoint(self.path, self.network, {"run": "fuzz"})
        self.content = self.path.read_bytes()
        (size,) = struct.unpack_from("<Q", self.content)
        self.header, self.tensors = json.loads(self.content[8 : 8 + size]), self.content[8 + size :]

    def make(self, rng: Random) -> bytes:
        """Return a file with another header, another description, or damaged bytes."""
        kind = rng.random()
        if kind < 0.3:
            return damaged(rng, self.content[:6000]) + self.content[6000:]
        if kind < 0.6:
            return self._file(changed_plain(rng, self.header))
        own = json.loads(self.header["__metadata__"][FORMAT])
        text = json.dumps(changed_plain(rng, own))
        if kind < 0.63:
            text = rng.choice(("[" * NESTED, '{"version": ' * NESTED, "9" * 5000, '{"version": 1e999}', "nan", ""))
        elif kind < 0.7:
            own["pruned"] = {"groups": odd_plain(rng), "scheme": odd_plain(rng)}
            text = json.dumps(own)
        return self._file({**self.header, "__metadata__": {FORMAT: text}})

    def _file(self, header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.tensors


class TorchFiles(Checkpoints):
    """A zip archive with a pickle and storages, or the older form, a pickle alone."""

    suffix = ".pth"

    def __init__(self, folder: Path, bundle: Path) -> None:
        """Write the valid files."""
        super().__init__(folder, bundle)
        layout = next(layout for layout in LAYOUTS if layout.network == NETWORK)
        state = {layout.published_key(key): value for key, value in self.network.state_dict().items()}
        self.contents = []
        for content, zipped in ((state, True), ({"state_dict": state, "miou": 0.5}, True), (state, False)):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            self.contents.append(stream.getvalue())

    def make(self, rng: Random) -> bytes:
        """Return a file with a damaged pickle in a whole archive, or damaged bytes."""
        content = rng.choice(self.contents)
        if rng.random() < 0.05:
            return content
        if content[:2] == b"PK" and rng.random() < 0.6:
            return _with_damaged_pickle(rng, content)
        begin = rng.choice((0, 0, max(len(content) - 4000, 0)))
        return content[:begin] + damaged(rng, content[begin : begin + 4000]) + content[begin + 4000 :]


def _with_damaged_pickle(rng: Random, content: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, damaged(rng, data, 4) if name.endswith("data.pkl") else data)
    return written.getvalue()
