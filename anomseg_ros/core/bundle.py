"""The bundle: a directory that carries one deployable detector, the only bridge from the offline to the run-time half.

<name>/bundle.yaml   the contract below, validated strictly on load
<name>/model.onnx    uint8 camera pixels in, uint8 labels and float32 scores out
<name>/model.pt2     a PyTorch program with the same inputs and outputs, beside the graph or in its place
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from anomseg_ros.core.digests import check_digests
from anomseg_ros.core.digests import sha256_of as sha256_of  # callers have it from here
from anomseg_ros.core.labels import UNLABELLED, ClassInfo
from anomseg_ros.core.schema import from_plain, to_plain
from anomseg_ros.core.staging import carry, check_writable, put_in_place, remove, replace_text, staging_folder
from anomseg_ros.core.thresholds import Threshold, ThresholdTable
from anomseg_ros.core.untrusted_text import parse_yaml
from anomseg_ros.errors import BundleError, ConfigError, closest_first, unknown_name

FORMAT_VERSION = 1
CONTRACT_FILE = "bundle.yaml"
GRAPH_FILE = "model.onnx"
TORCH_FILE = "model.pt2"
CHECKPOINT_FILE = "checkpoint.safetensors"
"""The weights, in bundles that cannot be exported again without them."""
PROGRAM_FILES = {GRAPH_FILE: "onnxruntime", TORCH_FILE: "torch"}
"""Program file -> the backend that runs it. A bundle holds at least one of them."""
GRAPH_INPUT = "image"
LABELS_OUTPUT = "labels"

CHANNEL_ORDERS = ("rgb", "bgr")
RESIZE_RULES = ("bilinear", "area", "nearest")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TARGETS = CPU, GPU = "cpu", "gpu"
"""Processors that a graph is written for."""


@dataclass(frozen=True)
class InputSpec:
    """The tensor the graph takes: uint8 (1, height_px, width_px, 3); resize: how a frame of another size gets there."""

    height_px: int
    width_px: int
    channel_order: str = "rgb"
    resize: str = "bilinear"


@dataclass(frozen=True)
class OutputSpec:
    """One output of the graph."""

    name: str
    dtype: str
    meaning: str


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from and what may be done with them."""

    source_checkpoint: str | None = None
    source_sha256: str | None = None
    training_data: str | None = None
    licence: str | None = None
    command: str | None = None


@dataclass(frozen=True)
class Contract:
    """bundle.yaml, field by field.

    void_class: index into `classes` of the one that means anomaly, if there is one. target: what the graph is written
    for; every engine runs either form.
    """

    format_version: int
    name: str
    network: str
    precision: str
    classes: tuple[ClassInfo, ...]
    input: InputSpec
    outputs: tuple[OutputSpec, ...]
    files: Mapping[str, str]
    void_class: int | None = None
    temperature: float = 1.0
    thresholds: Mapping[str, ThresholdTable] = field(default_factory=dict)
    provenance: Provenance = Provenance()
    quality: Mapping[str, Any] = field(default_factory=dict)
    compression: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Mapping[str, Any] = field(default_factory=dict)
    """What was done to the float bundle, what it cost and what it is for (compression/, adaptation/); often empty."""
    target: str = TARGETS[0]

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the scores the graph computes, the default one first."""
        return tuple(output.name for output in self.outputs if output.name != LABELS_OUTPUT)

    @property
    def known_count(self) -> int:
        """Number of the known classes: all but the void class."""
        return len(self.classes) - (self.void_class is not None)

    @property
    def program_sha256(self) -> str:
        """Digest that identifies a bundle: the ONNX graph's, or the PyTorch program's where there is no graph.

        Empty for recorded outputs, whose contract has neither.
        """
        return next((self.files[name] for name in PROGRAM_FILES if name in self.files), "")


@dataclass(frozen=True)
class Bundle:
    """A validated bundle directory."""

    directory: Path
    contract: Contract

    @property
    def graph_path(self) -> Path:
        """Path of the ONNX graph."""
        return self.directory / GRAPH_FILE

    def require_program(self, name: str) -> Path:
        """Return the path of a program file; raise BundleError that names the backend where the bundle has another."""
        if name not in self.contract.files:
            others = " or ".join(f"--backend {PROGRAM_FILES[file]}" for file in PROGRAM_FILES if file != name)
            raise BundleError(f"bundle {self.contract.name!r} has no {name}: run it with {others}")
        return self.directory / name

    def check_score(self, score: str) -> str:
        """Return `score`, or the bundle's default for an empty string; raise ConfigError if the graph lacks it."""
        known = self.contract.score_names
        if not isinstance(score, str):
            raise ConfigError(f"a score is given by its name, such as {known[0]!r}, got {score!r}")
        if score and score not in known:
            hint = "export the checkpoint again with --score to add one"
            raise ConfigError(f"bundle {self.contract.name!r}: {unknown_name('score', score, known)}; {hint}")
        return score or known[0]

    def threshold(self, score: str, target_fpr: float) -> Threshold | None:
        """Return the threshold of `score` for the largest calibrated rate not above `target_fpr`, None without any.

        Raises ConfigError if `target_fpr` is no share, or every calibrated rate is above it.
        """
        if not isinstance(target_fpr, int | float) or not 0 <= target_fpr <= 1:
            raise ConfigError(f"target_fpr {target_fpr!r}: expected a share of the known pixels, 0 to 1, such as 0.01")
        if (table := self.contract.thresholds.get(score)) is None:
            return None
        if (found := table.at(target_fpr)) is None:
            known = ", ".join(f"{rate:g}" for rate in sorted(table.by_target_fpr))
            raise ConfigError(f"target_fpr {target_fpr:g} is below every calibrated rate of score {score!r}: {known}")
        return found


Finish = Callable[[Bundle], Contract]
"""Given a whole bundle that is not in place yet, returns its final contract, with what was measured of it. An
error from it stops the bundle from being put in place."""


def load_bundle(directory: str | Path) -> Bundle:
    """Read, validate and digest-check a bundle directory. Raises BundleError saying which file or key is wrong."""
    directory = Path(directory)
    contract = _read_contract(directory)
    check_digests(contract.files, directory, directory / CONTRACT_FILE)
    return Bundle(directory, contract)


def save_bundle(
    contract: Contract,
    files: Mapping[str, Path],
    directory: str | Path,
    *,
    overwrite: bool = False,
    beside: Iterable[Path] = (),
    finish: Finish | None = None,
) -> Bundle:
    """Write a bundle beside its target: files, digests, contract. Then put it in place in one step.

    Args:
        contract: the digests in `contract.files` are replaced by those of the files.
        files: name in the bundle -> source.
        directory: where the bundle goes.
        overwrite: replace bundle.yaml and the files that it lists; everything else in the folder stays.
        beside: files and folders to copy into the bundle without listing them in the contract.
        finish: completes the contract before the bundle is in place.

    Raises:
        BundleError: the directory must not or cannot be written; nothing is changed then. Where the system refuses it
            after all the work, the bundle is in the temporary folder, which the message names.
    """
    directory = Path(directory)
    check_target(directory, overwrite)
    try:
        return _save(contract, files, directory, tuple(beside), finish)
    except BundleError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        try:
            spare = Path(tempfile.mkdtemp(prefix="anomseg-")) / directory.name
            _save(contract, files, spare, tuple(beside), finish)
        except (BundleError, OSError):
            raise error from error.__cause__
        raise BundleError(f"{error}. The bundle is in {spare}") from error


def _save(
    contract: Contract, files: Mapping[str, Path], directory: Path, beside: Iterable[Path], finish: Finish | None
) -> Bundle:
    place = directory.resolve()
    with _naming(directory):
        staging = staging_folder(place)
    try:
        with _naming(directory):
            digests = {name: _copied(Path(source), staging / name) for name, source in files.items()}
            carry(beside, staging, link=False)
            _write_contract(replace(contract, files=digests), staging)
        bundle = load_bundle(staging)
        final = bundle.contract if finish is None else replace(finish(bundle), files=digests)
        with _naming(directory):
            written = _write_contract(final, staging)
            carry(_unlisted(place, but=staging), staging, link=True)
            put_in_place(staging, place)
    finally:
        remove(staging)
    return Bundle(directory, written)


def change_bundle(
    bundle: Bundle,
    change: Callable[[Contract], Contract],
    output: Path | None = None,
    *,
    files: Mapping[str, Path] | None = None,
    overwrite: bool = False,
    finish: Finish | None = None,
) -> Bundle:
    """Write a bundle with a changed contract and, where given, other files; all its other files are kept.

    Args:
        bundle: the bundle as it was loaded.
        change: maps the contract that is on disk now to the new one, so that changes by other processes are kept.
        output: directory of the changed copy (None: the bundle itself is changed, in one step).
        files: name -> source of the files to replace or add; they are listed in the contract.
        overwrite: replace a bundle at `output`.
        finish: as for save_bundle.

    Raises:
        BundleError: as save_bundle does, or another process changed the bundle's files. Nothing is changed then.
    """
    new, contract = dict(files or {}), _read_contract(bundle.directory)
    if contract.files != bundle.contract.files:
        raise BundleError(f"the files of {bundle.directory} were changed in the meantime; start again")
    contract = change(contract)
    if output is not None and output.resolve() != bundle.directory.resolve():
        _refuse_inside(output, bundle)
        beside = [path for path in _unlisted(bundle.directory) if path.name not in new]
        directory = output
    elif new or finish:
        beside, directory, overwrite = [], bundle.directory, True
    else:
        with _naming(bundle.directory):
            return Bundle(bundle.directory, _write_contract(contract, bundle.directory))
    listed = {name: bundle.directory / name for name in contract.files} | new
    return save_bundle(contract, listed, directory, overwrite=overwrite, beside=beside, finish=finish)


def _read_contract(directory: Path) -> Contract:
    path = directory / CONTRACT_FILE
    if directory.is_file():
        raise BundleError(
            f"{directory} is a file, not a bundle directory; `anomseg export` makes one from a checkpoint"
        )
    if not path.is_file():
        raise BundleError(f"{directory} has no {CONTRACT_FILE}; `anomseg export` makes a bundle from a checkpoint")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return _parsed(text, path)


def _parsed(text: str, path: Path) -> Contract:
    """Return the contract in bundle.yaml's text, its values checked."""
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise BundleError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_format_version(data, path)
    try:
        contract = from_plain(Contract, data, str(path))
    except ConfigError as error:
        raise BundleError(str(error)) from error
    _check_values(contract, path)
    return contract


def _write_contract(contract: Contract, directory: Path) -> Contract:
    """Check the contract and write bundle.yaml in one step; return the contract as it reads back."""
    plain = to_plain(contract)
    optional = ("compression", "adaptation", "target")  # versions without these keys read bundles without them
    plain = {key: value for key, value in plain.items() if key not in optional or value not in ({}, TARGETS[0])}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    path = directory / CONTRACT_FILE
    written = _parsed(text, path)
    replace_text(path, text)
    return written


def _check_format_version(data: object, path: Path) -> None:
    # Checked before the keys, since a newer format may have keys that this version does not know.
    version = data.get("format_version") if isinstance(data, Mapping) else None
    if not isinstance(version, int):
        raise BundleError(f"{path}: missing or bad format_version {version!r}; expected {FORMAT_VERSION}")
    if version != FORMAT_VERSION:
        remedy = "upgrade anomseg_ros" if version > FORMAT_VERSION else "export the checkpoint again"
        raise BundleError(f"{path}: bundle format {version}, this anomseg_ros reads format {FORMAT_VERSION}; {remedy}")


def _check_values(contract: Contract, where: Path) -> None:
    _check_choice(where, "precision", contract.precision, PRECISIONS)
    _check_choice(where, "target", contract.target, TARGETS)
    _check_choice(where, "channel_order", contract.input.channel_order, CHANNEL_ORDERS)
    _check_choice(where, "resize", contract.input.resize, RESIZE_RULES)
    if contract.input.height_px < 1 or contract.input.width_px < 1:
        raise BundleError(f"{where}: input size {contract.input.width_px}x{contract.input.height_px} is not positive")
    if not contract.temperature > 0:
        raise BundleError(f"{where}: temperature {contract.temperature!r} must be above 0")
    if contract.void_class is not None and not 0 <= contract.void_class < len(contract.classes):
        raise BundleError(f"{where}: void_class {contract.void_class} is not one of {len(contract.classes)} classes")
    for score, table in contract.thresholds.items():
        if unknown := (table.calibrated_elsewhere or {}).keys() - table.by_target_fpr.keys():
            raise BundleError(f"{where}: thresholds of {score}: calibrated_elsewhere names no rate: {min(unknown):g}")
    if any(not 0 <= info.train_id <= UNLABELLED for info in contract.classes):
        raise BundleError(f"{where}: train ids must be 0 to {UNLABELLED}")
    if LABELS_OUTPUT not in {output.name for output in contract.outputs} or not contract.score_names:
        raise BundleError(f"{where}: outputs must name {LABELS_OUTPUT!r} and at least one score")
    if not set(PROGRAM_FILES) & set(contract.files):
        raise BundleError(f"{where}: files must list {' or '.join(PROGRAM_FILES)}")


def _check_choice(where: Path, key: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise BundleError(f"{where}: {key} {value!r} is not one of {', '.join(closest_first(value, options))}")


def check_target(directory: Path, overwrite: bool) -> None:
    """Raise BundleError if `save_bundle` would: the directory must not be replaced, or its parent is not writable."""
    with _naming(directory):
        if directory.exists():
            if not overwrite:
                raise BundleError(f"{directory} exists; choose another output or pass --overwrite")
            if not (directory / CONTRACT_FILE).is_file():
                raise BundleError(f"{directory} exists and is not a bundle: not overwriting it")
        check_writable(next(folder for folder in directory.resolve().parents if folder.exists()))


def _refuse_inside(output: Path, bundle: Bundle) -> None:
    if bundle.directory.resolve() in output.resolve().parents:
        raise BundleError(f"{output} lies in the bundle {bundle.directory}; choose an output outside it")


@contextmanager
def _naming(directory: Path) -> Iterator[None]:
    """Turn an OSError into one line that names the bundle."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BundleError(f"cannot write the bundle {directory}: {error.strerror or error}{where}") from error


def _copied(source: Path, target: Path) -> str:
    """Copy a file; return the source's digest."""
    shutil.copyfile(source, target)
    return sha256_of(source)


def _unlisted(directory: Path, but: Path | None = None) -> list[Path]:
    """Return the paths in a bundle's folder that its contract does not list and whose names are not in `but`."""
    if not directory.is_dir():
        return []
    try:
        own = {CONTRACT_FILE, *_read_contract(directory).files}
    except BundleError:  # damaged, or of a newer format
        own = {CONTRACT_FILE, *PROGRAM_FILES}
    taken = own | ({path.name for path in but.iterdir()} if but else set())
    return [path for path in directory.iterdir() if path.name not in taken]
