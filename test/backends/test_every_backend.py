"""Every backend of the table fulfils the contract of backends. A new backend needs no change here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from backend_contract import BackendContract

from anomseg_ros.backends import BACKENDS, check_usable, known_providers, open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import GRAPH_FILE, TORCH_FILE, Bundle, load_bundle
from anomseg_ros.core.detector import Backend
from anomseg_ros.errors import BackendError, BundleError

QUICK = "onnxruntime"
"""The backend that is always installed. The others take seconds to load a program."""


def options_of(name: str) -> dict[str, Any]:
    # A compiling provider takes a minute; the backend's own tests cover it. An engine has to be built somewhere.
    provider = {"provider": "eager"} if "eager" in known_providers(name) else {}
    return {"build_engine": "configure", **provider}


@cache
def program_of(name: str, bundle_with_graph: Path) -> str:
    """Return the name of the file that a backend runs."""
    try:
        open_backend(name, load_bundle(bundle_with_graph), BackendOptions(**options_of(name)))
    except (BackendError, BundleError):
        return TORCH_FILE
    return GRAPH_FILE


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in BACKENDS], scope="class"
)
class TestEveryBackend(BackendContract):
    @pytest.fixture(autouse=True)
    def _chosen(
        self, name: str, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # One cache of engines for all tests: with the real TensorRT a build takes seconds.
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "engines"))
        try:
            check_usable(name)
            self.name, self.options = name, options_of(name)
        except BackendError as error:
            pytest.skip(str(error))
        self.program_file = program_of(name, tiny_bundle)

    def open(self, bundle: Bundle, **options: object) -> Backend:
        return super().open(bundle, **{**self.options, **options})

    @pytest.fixture()
    def bundle(self, request: pytest.FixtureRequest, tiny_bundle: Path) -> Bundle:
        if self.program_file == GRAPH_FILE:
            return load_bundle(tiny_bundle)
        bundle: Bundle = request.getfixturevalue("torch_bundle")
        return bundle
