"""A bundle's engines: which there are, built and checked where the cache lacks one, and loaded when they are wanted.

This is the same for all backends whose engines are built (TensorRT, torch). They differ in the key, build, check and
load that they pass in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from anomseg_ros.backends.backend_options import CONFIGURE
from anomseg_ros.backends.engine_cache import EngineCache, EngineKey, Found, Miss
from anomseg_ros.core.bundle import LABELS_OUTPUT, Bundle, Contract
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.errors import BackendError, CompressionError

DRIFT = "drift"
"""Name in an engine's check of what was measured on frames of the camera; a check that lacks it was on noise only."""
LABELS, EVERYTHING = "labels", "all"


@dataclass(frozen=True)
class Built:
    """An engine that is not in the cache yet. facts: values of JSON; timings: the new timing cache, empty without."""

    plan: bytes
    facts: dict[str, Any]
    timings: bytes = b""


Check = Callable[[Built], Mapping[str, Any]]
"""Runs a new engine and returns what it measured, in values of JSON. An error from it keeps the engine out."""


def engine_outputs(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Return name -> sorted outputs of a bundle's engines: "labels" with the default score, and "all"."""
    names = tuple(sorted((LABELS_OUTPUT, *contract.score_names)))
    small = tuple(sorted((LABELS_OUTPUT, contract.score_names[0])))
    return {LABELS: small} if small == names else {LABELS: small, EVERYTHING: names}


def provide_engine(
    cache: EngineCache,
    key: EngineKey,
    build: Callable[[bytes], Built],
    check: Check,
    needs: Collection[str] = (),
    progress: Progress = no_progress,
    built_with: Collection[str] = (),
) -> Found:
    """Return an engine of the cache, and build, check and store it first where it is not there.

    Args:
        cache: where engines are.
        key: of the engine.
        build: makes it; called with the timing cache.
        check: judges it; what it returns is stored as the engine's facts `check`.
        needs: names that the facts `check` must have. An engine of the cache that lacks one is checked again.
        progress: called while another process builds. An error from it ends the wait.
        built_with: names that the facts must have. An engine of the cache that lacks one is built again.

    Raises:
        BackendError: it cannot be built or stored.
        CompressionError: from `check`: it does not compute what its bundle does. The cache has no engine then. After
            any other error of `check`, which may have come before the comparison, the cache is as it was.
    """
    with cache.lock(key, progress=progress):
        found = cache.find(key)  # another process may have built it while this one waited
        if isinstance(found, Found) and set(built_with) <= set(found.facts):
            if set(needs) <= set(found.facts["check"]):
                return found
            built = Built(found.plan, {name: value for name, value in found.facts.items() if name != "check"})
        else:
            built = build(cache.read_timings(key))
        if built.timings:  # they hold for the next attempt as well
            cache.write_timings(key, built.timings)
        try:
            measured = dict(check(built))
        except CompressionError:
            cache.discard(key)
            raise
        cache.store(key, built.plan, {**built.facts, "check": measured})
        stored = cache.find(key)
    if not isinstance(stored, Found):
        raise BackendError(f"an engine was stored in {cache.root} and cannot be read back: {stored.reason}")
    return stored


Engine = TypeVar("Engine")
Loaded = TypeVar("Loaded", covariant=True)


class Maker(Protocol[Loaded]):
    """What a backend knows of its engines. Outputs are sorted names."""

    def key(self, outputs: tuple[str, ...]) -> EngineKey:
        """Return the key of the engine that computes these outputs."""
        ...

    def build(self, outputs: tuple[str, ...], timings: bytes) -> Built:
        """Build it. Raises BackendError."""
        ...

    def check(self, outputs: tuple[str, ...], built: Built) -> Mapping[str, Any]:
        """Return how well a new engine agrees with its bundle. Raises BackendError where that is too little."""
        ...

    def load(self, outputs: tuple[str, ...], plan: bytes) -> Loaded:
        """Return the engine, ready to run. Raises BackendError."""
        ...


class EngineSet(Generic[Engine]):
    """The engines of a bundle for one device. An engine is loaded at its first use, and never built for a frame."""

    def __init__(
        self, bundle: Bundle, cache: EngineCache, maker: Maker[Engine], command: str, any_of: Collection[str] = ()
    ) -> None:
        """Nothing is loaded yet.

        Args:
            bundle: whose engines they are.
            cache: where they are found.
            maker: of the backend.
            command: builds the missing engines, for messages.
            any_of: fields of the key that may differ, as in EngineCache.find.
        """
        self.loaded: dict[str, Engine] = {}
        """Name -> engine."""
        self._bundle, self._cache, self._maker = bundle, cache, maker
        self._command, self._any_of = command, any_of
        self._outputs = engine_outputs(bundle.contract)
        self._hits: dict[str, str] = {}
        self._found: dict[str, Found] = {}  # of loaded engines, without their plans
        self._used = ""

    def provide(self, progress: Progress = no_progress) -> None:
        """Build, check and store the engines that the cache lacks. Raises BackendError.

        progress: called while another process builds. An error from it ends the wait.
        """
        for name, outputs in self._outputs.items():
            key = self._maker.key(outputs)
            found = self._cache.find(key, self._any_of)
            if isinstance(found, Miss):
                self._hits[name] = f"built now: {found.reason}"
                self._build(key, outputs, progress)

    def smallest(self, wanted: Collection[str] = ()) -> Engine:
        """Return the smallest engine of the cache that has these outputs; see Backend.run. Raises BackendError."""
        covering = sorted((n for n, made in self._outputs.items() if set(made) >= set(wanted)), key=self._size)
        if not covering:
            raise BackendError(f"bundle {self._bundle.contract.name!r} has no {', '.join(sorted(wanted))}")
        reasons = []
        for name in covering:
            if name not in self.loaded:
                found = self._cache.find(self._maker.key(self._outputs[name]), self._any_of)
                if isinstance(found, Miss):
                    reasons.append(found.reason)
                    continue
                self.loaded[name] = self._maker.load(self._outputs[name], found.plan)
                self._found[name] = replace(found, plan=b"")
            self._used = name
            return self.loaded[name]
        raise BackendError(
            f"bundle {self._bundle.contract.name!r} has no engine for this computer: {reasons[0]}; build it with "
            f"`{self._command}`, or set build_engine to {CONFIGURE!r}"
        )

    @property
    def used(self) -> tuple[Engine, Found] | None:
        """The engine of the last frame, or the one that was loaded for the first, and its entry without the plan."""
        name = self._used
        engine = self.loaded.get(name)
        return None if engine is None else (engine, self._found[name])

    def facts(self) -> dict[str, str]:
        """Return in words which engines are loaded, and what is known of the one in use, for diagnostics."""
        name, used = self._used, self.used
        if used is None:
            return {}
        found, facts = used[1], used[1].facts
        return {
            "engines": ", ".join(tuple(self.loaded)),
            "engine_in_use": name,
            "engine_key": found.plan_path.parent.name[:12],
            "engine": self._hits.get(name, "found in the cache"),
            "engine_build_s": str(facts.get("build_s", "unknown")),
            "engine_checked_on": "noise and frames" if DRIFT in facts["check"] else "noise only",
            "engine_check": _plain(facts["check"]),
            "engine_precision": str(facts.get("precision", self._bundle.contract.precision)),
            **({"engine_layers": str(facts["layers_by_device"])} if "layers_by_device" in facts else {}),
        }

    def unload(self) -> None:
        """Forget the loaded engines."""
        self.loaded.clear()

    def _build(self, key: EngineKey, outputs: tuple[str, ...], progress: Progress) -> None:
        provide_engine(
            self._cache,
            key,
            lambda timings: self._maker.build(outputs, timings),
            lambda built: self._maker.check(outputs, built),
            progress=progress,
        )

    def _size(self, name: str) -> int:
        return len(self._outputs[name])


def _plain(value: Any) -> str:
    """Return nested values as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return str(value)
