"""Programs compiled ahead of time: built, checked, found again, refused. A fake compiler stands for torch's."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_frames import street
from painted_program import write_painted_program

from anomseg_ros import cli
from anomseg_ros.backends import open_backend, torch_packages
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.backends.engine_cache import EngineCache, Miss, default_root
from anomseg_ros.backends.torch_device import Cpu
from anomseg_ros.backends.torch_packages import PackageMaker
from anomseg_ros.core.bundle import Bundle, load_bundle
from anomseg_ros.core.detector import Backend, backend_facts
from anomseg_ros.errors import BackendError

OUTPUTS = ("labels", "void")
FRAME = street()[0][np.newaxis]


@pytest.fixture(scope="module")
def bundle(painted: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_painted_program(painted, tmp_path_factory.mktemp("program") / "painted")


@pytest.fixture(autouse=True)
def root(cache: Path) -> Path:
    """The folder of the cache."""
    return cache.parent / "torch"


class FakeCompiler:
    """Its packages run the program as it is, as wrong as a test wants it."""

    def __init__(self) -> None:
        self.programs: list[Callable[[torch.Tensor], tuple[torch.Tensor, ...]]] = []
        self.wrong = False

    def compile(self, graph: torch.fx.GraphModule, image: torch.Tensor, frozen: bool) -> tuple[bytes, bool]:
        self.programs.append(graph)
        return str(len(self.programs) - 1).encode(), True

    def load(self, stream: Any, run_single_threaded: bool, device_index: int) -> Callable[[torch.Tensor], Any]:
        assert (run_single_threaded, device_index) == (False, -1)
        program = self.programs[int(stream.read())]
        return (lambda image: [255 - values for values in program(image)]) if self.wrong else program


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    compiler = FakeCompiler()
    monkeypatch.setattr(torch_packages, "_compiled", compiler.compile)
    monkeypatch.setattr(torch._inductor, "aoti_load_package", compiler.load)
    return compiler


def opened(bundle: Bundle, build_engine: str = "configure") -> Backend:
    return open_backend("torch", bundle, BackendOptions(provider="aot", build_engine=build_engine))


def require_the_bundles_outputs(bundle: Bundle, backend: Backend) -> None:
    eager = open_backend("torch", bundle, BackendOptions(provider="eager"))
    (labels, void), (other_labels, other_void) = (one.run(FRAME, OUTPUTS) for one in (eager, backend))
    assert len(np.unique(labels)) == 3 and (labels == other_labels).all()
    assert void == pytest.approx(other_void, abs=1e-5)


def test_package_is_built_once_and_found_again(bundle: Bundle, compiler: FakeCompiler, root: Path) -> None:
    files = {path: path.read_bytes() for path in bundle.directory.rglob("*")}
    told: list[str] = []
    options = BackendOptions(provider="aot", build_engine="configure")
    backend = open_backend("torch", bundle, options, lambda what, done, total: told.append(what))
    require_the_bundles_outputs(bundle, backend)
    assert backend.actual == backend.requested == "torch:aot" and "compiling the program" in told
    facts = backend_facts(backend)
    assert facts["engine"].startswith("built now: there is no engine yet") and "labels 1.0" in facts["engine_check"]
    assert facts["torch"] == torch.__version__ and facts["engines"] == "labels"
    require_the_bundles_outputs(bundle, opened(bundle, "never"))
    assert len(compiler.programs) == 1 and len(list(root.glob("*/engine.plan"))) == 1
    assert {path: path.read_bytes() for path in bundle.directory.rglob("*")} == files


def test_missing_package_error_names_the_command(bundle: Bundle, compiler: FakeCompiler) -> None:
    command = rf"build it with `anomseg build {bundle.directory} --backend torch --provider aot`, or set build_engine"
    with pytest.raises(BackendError, match=rf"has no engine for this computer: there is no engine yet in .*{command}"):
        opened(bundle, "never")
    assert not compiler.programs


def test_package_that_computes_something_else_is_not_stored(bundle: Bundle, compiler: FakeCompiler, root: Path) -> None:
    compiler.wrong = True
    with pytest.raises(BackendError, match=r"does not compute what the bundle does.*not put into the cache"):
        opened(bundle)
    assert not list(root.glob("*/engine.plan"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda patch: patch.setattr(torch, "__version__", "2.99.0+cpu"), r"version is 2\.99\.0\+cpu, there"),
        (lambda patch: patch.setattr(platform, "machine", lambda: "riscv64"), "architecture is riscv64"),
        (lambda patch: patch.setattr(torch_packages, "CODE_VERSION", 7), "backend_version is 7"),
        (lambda patch: patch.setattr("anomseg_ros.backends.torch_device._processor_name", lambda: "Z80"), "is Z80"),
        (lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "NONE"), "capability is NONE"),
    ],
)
def test_package_of_another_kind_of_computer_is_not_taken(
    change: Callable[[pytest.MonkeyPatch], None],
    field: str,
    bundle: Bundle,
    compiler: FakeCompiler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(bundle)
    change(monkeypatch)
    found = EngineCache(default_root("torch")).find(PackageMaker(bundle, Cpu()).key(OUTPUTS))
    assert isinstance(found, Miss) and field.replace("\\", "") in found.reason


def test_key_names_program_and_outputs(bundle: Bundle) -> None:
    other = Bundle(bundle.directory, replace(bundle.contract, files={"model.pt2": "0" * 64}))
    keys = [PackageMaker(one, Cpu()).key(outputs) for one in (bundle, other) for outputs in (OUTPUTS, OUTPUTS[:1])]
    assert len({key.digest for key in keys}) == 4 and keys[2].program_sha256 == "0" * 64


@pytest.mark.parametrize("build_engine", ["never", "configure"])
def test_package_that_others_could_write_is_refused(
    build_engine: str, bundle: Bundle, compiler: FakeCompiler, root: Path
) -> None:
    opened(bundle)
    (plan,) = root.glob("*/engine.plan")
    plan.chmod(0o666)
    with pytest.raises(BackendError, match=r"engine\.plan can be written by others .*an engine is a program"):
        opened(bundle, build_engine)
    plan.chmod(0o600)
    plan.parent.chmod(0o777)
    with pytest.raises(BackendError, match="can be written by others"):
        opened(bundle, build_engine)


def test_changed_package_is_built_again(bundle: Bundle, compiler: FakeCompiler, root: Path) -> None:
    opened(bundle)
    (plan,) = root.glob("*/engine.plan")
    plan.write_bytes(b"something else")
    with pytest.raises(BackendError, match=r"is damaged: engine\.plan does not match its digest"):
        opened(bundle, "never")
    opened(bundle)
    assert plan.read_bytes() == b"1"


def test_missing_compiler_error_says_what_to_do(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def fail(*given: object, **more: object) -> None:
        raise FileNotFoundError("g++")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(
        BackendError, match=r"cannot compile .*model\.pt2: g\+\+\. It needs a C\+\+ compiler .apt install"
    ):
        opened(bundle)
    assert not list(root.glob("*/engine.plan"))


def test_weights_stay_inputs_where_they_cannot_be_constants(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    tried = []

    def compile_package(program: object, *, package_path: str, inductor_configs: dict[str, Any]) -> str:
        tried.append((inductor_configs["freezing"], os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        if inductor_configs["freezing"]:
            raise RuntimeError("cannot fold")
        Path(package_path).write_bytes(b"a package")
        return package_path

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile_package)
    built = PackageMaker(bundle, Cpu()).build(OUTPUTS, b"")
    assert built.plan == b"a package" and built.facts["constant_weights"] is False
    own = root.parent / "inductor"  # not a folder of /tmp that anybody could have made
    assert tried == [(True, str(own)), (False, str(own))] and own.stat().st_mode & 0o077 == 0
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_package_that_torch_cannot_load_is_an_error(bundle: Bundle, compiler: FakeCompiler) -> None:
    with pytest.raises(BackendError, match=r"cannot be loaded by torch .*remove its folder from the cache"):
        PackageMaker(bundle, Cpu()).load(OUTPUTS, b"no number")


@pytest.mark.slow
def test_command_builds_what_the_backend_takes(
    bundle: Bundle, compiler: FakeCompiler, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ["build", str(bundle.directory), "--backend", "torch", "--frames", "synthetic=1000105:2"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert f"torch {torch.__version__} on" in (told := capsys.readouterr().out) and "would be built" in told
    assert cli.main(words) == 0
    assert "labels that agree" in (told := capsys.readouterr().out) and "100.00%" in told and str(root) in told
    backend = opened(bundle, "never")
    assert "label_agreement 1.0" in backend_facts(backend)["engine_check"]
    compiler.wrong = True
    assert cli.main([*words, "--output", str(root.parent / "other")]) == 1
    assert "does not compute what the bundle does" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "torch", "--check"], "--check is not an option of --backend torch"),
        (["--backend", "torch", "--workspace", "5"], "--workspace is not an option of --backend torch"),
        (["--provider", "aot"], "--provider is not an option of --backend tensorrt"),
        (["--backend", "torch", "--provider", "cuda-aot"], "torch .* was built without CUDA"),
    ],
)
def test_options_of_the_other_backend_are_refused(
    words: list[str], message: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import re

    monkeypatch.setattr(torch.version, "cuda", None)
    assert cli.main(["build", str(bundle.directory), *words]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_command_needs_a_program_of_torch(painted: Bundle, capsys: Any) -> None:
    assert cli.main(["build", str(painted.directory), "--backend", "torch"]) == 1
    assert "has no model.pt2: run it with --backend onnxruntime" in capsys.readouterr().err


@pytest.mark.slow
def test_program_is_really_compiled(bundle: Bundle, root: Path) -> None:
    try:
        backend = opened(bundle)
    except BackendError as error:
        if "C++ compiler" in str(error):
            pytest.skip(f"no C++ compiler here: {error}")
        raise
    require_the_bundles_outputs(bundle, backend)
    require_the_bundles_outputs(bundle, opened(load_bundle(bundle.directory), "never"))
    (plan,) = root.glob("*/engine.plan")
    assert plan.stat().st_size > 10_000 and plan.stat().st_mode & 0o077 == 0
