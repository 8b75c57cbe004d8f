"""Which TensorRT is used, and what is said where there is none that can be."""

from __future__ import annotations

import gc
import sys
import threading
import warnings

import fake_tensorrt
import onnx
import onnx.parser
import pytest
from fake_tensorrt import Faults

from anomseg_ros.backends.tensorrt_library import (
    MODULES,
    RTX,
    TENSORRT,
    collected_errors,
    load_library,
    logger_of,
    parse_graph,
)
from anomseg_ros.errors import BackendError


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in MODULES.values():
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)


def graph(nodes: str) -> bytes:
    text = f'<ir_version: 9, opset_import: ["" : 18]> g (uint8[1,8,8,3] image) => (float[1,3,8,8] y) {{ {nodes} }}'
    content: bytes = onnx.parser.parse_model(text).SerializeToString()
    return content


GOOD = graph("f = Cast<to = 1>(image) y = Transpose<perm = [0, 3, 1, 2]>(f)")
BAD = graph("t = Transpose<perm = [0, 3, 1, 2]>(image) y = Cast<to = 1>(t)")


@pytest.mark.parametrize("version", ["10.0.1", "10.3.0", "10.13.3.9", "11.4.1.2"])
def test_versions_that_are_used(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tensorrt.install(monkeypatch, version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        library = load_library()
    assert (library.module, library.name, library.version_text) == (module, TENSORRT, version)
    assert library.version == tuple(map(int, version.split("."))) and library.title == f"TensorRT {version}"


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.2", "9.3.0", "10.2.0", "10.2.0.19"])
def test_versions_that_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, version)
    with pytest.raises(
        BackendError, match=rf"TensorRT {version} is .*JetPack 6.1 and later.*pip install 'tensorrt>=10.3"
    ):
        load_library()


def test_a_newer_major_version_is_used_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, "12.0.1")
    with pytest.warns(UserWarning, match=r"TensorRT 12\.0\.1 is newer than 11\.x"):
        assert load_library().version[0] == 12


def test_nothing_is_installed() -> None:
    with pytest.raises(BackendError, match="TensorRT is not installed: on a Jetson, apt install") as raised:
        load_library()
    assert "tensorrt-check" not in str(raised.value)
    with pytest.raises(BackendError, match=r"pip install 'anomseg_ros\[tensorrt-check\]'"):
        load_library(parse_only=True)


@pytest.mark.parametrize("name", MODULES[RTX])
def test_rtx_only_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tensorrt.fake_tensorrt("1.7.1.116", name=name)
    monkeypatch.setitem(sys.modules, name, module)
    library = load_library(parse_only=True)
    assert (library.module, library.name, library.title) == (module, RTX, "TensorRT-RTX 1.7.1.116")
    with pytest.raises(BackendError, match="TensorRT is not installed"):
        load_library()


@pytest.mark.parametrize("no_driver", [False, True])
def test_rtx_checks_where_tensorrt_finds_no_gpu(no_driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, faults=Faults(no_driver=no_driver))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.fake_tensorrt("1.7.1.116"))
    assert load_library(parse_only=True).name == (RTX if no_driver else TENSORRT)
    assert load_library().name == TENSORRT


def test_another_module_of_the_name_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", warnings)
    with pytest.raises(BackendError, match="TensorRT is not installed"):
        load_library()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "cannot be loaded: libnvinfer.so.10"),
        ("import tensorrt_libs_that_are_not_there", "needs 'tensorrt_libs_that_are_not_there'"),
    ],
)
def test_a_broken_installation(code: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=f"tensorrt .*{told}.*of the module's version.*apt install"):
        load_library()
    with pytest.raises(BackendError, match=rf"tensorrt .*{told}.*anomseg_ros\[tensorrt-check\]"):
        load_library(parse_only=True)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.fake_tensorrt("1.7.1.116"))
    assert load_library(parse_only=True).name == RTX
    with pytest.raises(BackendError, match=told):
        load_library()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, faults=Faults(no_driver=True))
    told = "TensorRT 10.3.0 cannot start: CUDA initialization failure with error: 35.*--runtime nvidia.*--check"
    with pytest.raises(BackendError, match=told):
        parse_graph(load_library(), GOOD, "graph")


def test_networks_are_strongly_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tensorrt.install(monkeypatch)
    _, network, _ = parse_graph(load_library(), GOOD, "graph")
    assert network.flags == 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    monkeypatch.setattr(module, "NetworkDefinitionCreationFlag", object)  # if every network is, one day
    assert parse_graph(load_library(), GOOD, "graph")[1].flags == 0


def test_a_refused_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    told = r"bundle 'x': TensorRT 10\.3\.0 refuses node .*\(Transpose\): .*UInt8.*; export .* --processor gpu"
    with pytest.raises(BackendError, match=told):
        parse_graph(load_library(), BAD, "bundle 'x'")
    with pytest.raises(BackendError, match="cannot parse the graph: Failed to parse the ONNX model"):
        parse_graph(load_library(), b"junk", "bundle 'x'")


def test_errors_are_collected_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = fake_tensorrt.install(monkeypatch)
    library = load_library()
    with collected_errors(library) as errors:
        for severity in module.ILogger.Severity:
            logger_of(library).log(severity, severity.name)
    assert errors == ["INTERNAL_ERROR", "ERROR"]
    logger_of(library).log(module.ILogger.Severity.ERROR, "of nobody")
    assert len(errors) == 2 and capsys.readouterr() == ("", "")


def test_there_is_one_logger_that_outlives_what_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_tensorrt.install(monkeypatch)
    library = load_library()
    first = parse_graph(library, GOOD, "graph")
    second = parse_graph(library, GOOD, "graph")
    del first
    gc.collect()
    module.registry.log(module.ILogger.Severity.ERROR, "the second builder's")  # a freed logger would be called
    with collected_errors(library) as errors:
        module.registry.log(module.ILogger.Severity.ERROR, "the second builder's")
    assert errors == ["the second builder's"] and len(second) == 3


def test_each_call_has_its_own_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fake_tensorrt.install(monkeypatch).ILogger.Severity.ERROR
    library, found, inner_is_there, log_now = load_library(), list[str](), threading.Event(), threading.Event()

    def other_call() -> None:
        with collected_errors(library) as errors:
            inner_is_there.set()
            log_now.wait(10)
            logger_of(library).log(error, "theirs")
            found.extend(errors)

    thread = threading.Thread(target=other_call)
    with collected_errors(library) as errors:
        thread.start()
        inner_is_there.wait(10)
        logger_of(library).log(error, "mine")
        log_now.set()
        thread.join(10)
        from_a_worker = threading.Thread(target=logger_of(library).log, args=(error, "of a worker of the library"))
        from_a_worker.start()
        from_a_worker.join(10)
    assert errors == ["mine", "of a worker of the library"] and found == ["theirs"]


def test_an_interrupt_while_the_library_logs_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)

    class Interrupting:
        def __eq__(self, other: object) -> bool:
            raise KeyboardInterrupt

    library = load_library()
    with pytest.raises(KeyboardInterrupt), collected_errors(library):
        logger_of(library).log(Interrupting(), "words")
