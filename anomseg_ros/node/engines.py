"""The loaded engines of one process. Cameras that name the same bundle share an engine.

An engine runs one frame at a time (see `Turns`) and returns the outputs to the camera that called it. It stores nothing
about a frame between two calls.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomseg_ros.backends import open_backend
from anomseg_ros.backends.backend_options import BackendOptions
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.core.detector import backend_facts
from anomseg_ros.core.progress import Progress, no_progress
from anomseg_ros.core.types import RgbImage
from anomseg_ros.errors import BackendError
from anomseg_ros.node.mailbox import Turns

ENGINE_WAIT_S = 10.0
"""How long a camera waits for a shared engine during configure before it considers the engine stuck, seconds."""

NO_LIMIT = -1.0


class Engine:
    """A bundle loaded by a backend, and the turns of the cameras that share it.

    requested_outputs: share -> names of the outputs that its camera needs; one entry for each camera.
    """

    def __init__(self, bundle: Bundle, backend: str, options: BackendOptions, progress: Progress = no_progress) -> None:
        """Arguments as of open_backend."""
        self.backend = open_backend(backend, bundle, options, progress)
        self.turns = Turns()
        self.requested_outputs: dict[Share, frozenset[str]] = {}
        self._bundle = bundle
        self._key = _engine_key(bundle, backend, options)
        self._run_lock = threading.Lock()

    def matches(self, bundle: Bundle, backend: str, options: BackendOptions) -> bool:
        """Return whether this engine was loaded from the bundle's current files with this backend and these options."""
        return self._key == _engine_key(bundle, backend, options)

    def run(
        self, share: Share, tensor: RgbImage, outputs: Sequence[str], wait_s: float = NO_LIMIT
    ) -> list[npt.NDArray[np.generic]]:
        """Run the graph for one camera; see Backend.run.

        Every call computes the outputs of all cameras, because a backend that has to compute another set of outputs
        than before prepares itself again, which takes between tenths of a second and minutes.

        Args:
            share: the share of the calling camera.
            tensor: uint8 (1, H, W, 3), of the bundle's input size.
            outputs: names of the outputs to return, in this order.
            wait_s: how long to wait while another camera uses the engine, seconds.

        Raises:
            BackendError: the engine failed, or another camera used it for longer than wait_s.
        """
        if not self._run_lock.acquire(timeout=wait_s):
            raise BackendError(
                f"the shared engine has been busy for {wait_s:g} s and is considered stuck; restart the node, or take "
                "all cameras of the engine through deactivate and cleanup first"
            )
        try:
            self.requested_outputs[share] = frozenset(outputs)
            requested = self._all_requested()
            names = [output.name for output in self._bundle.contract.outputs if output.name in requested]
            arrays = dict(zip(names, self.backend.run(tensor, names), strict=True))
        except BaseException:
            self.requested_outputs[share] = frozenset()  # outputs that fail must not fail the other cameras' runs
            raise
        finally:
            self._run_lock.release()
        return [arrays[name] for name in outputs]

    def prepare(self, share: Share, outputs: Sequence[str]) -> None:
        """Add a camera's outputs to every run, with a first run now if they are new, so that no frame waits for it.

        Raises BackendError where the engine cannot compute them; the camera's outputs are then as they were.
        """
        before = self.requested_outputs.get(share, frozenset())
        if not self._all_requested().issuperset(outputs):
            spec = self._bundle.contract.input
            grey = np.full((1, spec.height_px, spec.width_px, 3), 128, np.uint8)
            try:
                self.run(share, grey, outputs, ENGINE_WAIT_S)
            except BaseException:
                self.requested_outputs[share] = before
                raise
        self.requested_outputs[share] = frozenset(outputs)

    def _all_requested(self) -> frozenset[str]:
        return frozenset[str]().union(*tuple(self.requested_outputs.values()))


class Share:
    """One camera's share of an engine, with the interface of a backend."""

    def __init__(self, engines: Engines, engine: Engine) -> None:
        self._engines = engines
        self._engine = engine

    @property
    def requested(self) -> str:
        return self._engine.backend.requested

    @property
    def actual(self) -> str:
        return self._engine.backend.actual

    @property
    def turns(self) -> Turns:
        """The turns of all cameras that share the engine."""
        return self._engine.turns

    @property
    def cameras(self) -> int:
        """How many cameras share the engine now."""
        return len(self._engine.requested_outputs)

    def facts(self) -> dict[str, str]:
        """Return what the engine's backend says of itself."""
        return backend_facts(self._engine.backend)

    def prepare(self, outputs: Sequence[str]) -> None:
        """Add outputs to every run of the engine; see Engine.prepare."""
        self._engine.prepare(self, outputs)

    def run(self, tensor: RgbImage, outputs: Sequence[str]) -> list[npt.NDArray[np.generic]]:
        """Run the graph; see Backend.run."""
        return self._engine.run(self, tensor, outputs)

    def close(self) -> None:
        """Leave the engine; the last camera to leave closes it."""
        self._engines.leave(self._engine, self)

    def abandon(self) -> None:
        """Abandon a stuck engine: it is never closed, and cameras that are configured later do not share it."""
        self._engines.forget(self._engine)


class Engines:
    """The engines of a process."""

    def __init__(self) -> None:
        self._engines: list[Engine] = []
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()

    def open(
        self,
        bundle: Bundle,
        backend: str,
        options: BackendOptions,
        outputs: Sequence[str],
        progress: Progress = no_progress,
    ) -> Share:
        """Return a share of the bundle's engine, and load the engine if no other camera has done so.

        Args:
            bundle: a bundle whose files have changed since another camera loaded them gets an engine of its own.
            backend: name in the table of backends.
            options: cameras with different options use different engines.
            outputs: names of the outputs that the camera will request; they are prepared.
            progress: called while an engine is built, perhaps from another thread.

        Raises:
            ConfigError: the backend is unknown.
            BackendError: the backend refuses the options, cannot run the bundle, or its engine is stuck.
        """
        with self._load_lock:  # cameras that start at the same time must not load the bundle twice
            share = self._share(bundle, backend, options, progress)
            try:
                share.prepare(outputs)
            except BaseException:
                share.close()
                raise
            return share

    def _share(self, bundle: Bundle, backend: str, options: BackendOptions, progress: Progress) -> Share:
        with self._lock:
            engine = next((engine for engine in self._engines if engine.matches(bundle, backend, options)), None)
            if engine is not None:
                return self._join(engine)
        engine = Engine(bundle, backend, options, progress)
        with self._lock:
            self._engines.append(engine)
            return self._join(engine)

    def _join(self, engine: Engine) -> Share:
        share = Share(self, engine)
        engine.requested_outputs[share] = frozenset()
        return share

    def leave(self, engine: Engine, share: Share) -> None:
        """Remove a camera's share, and close the engine if it was the last one."""
        with self._lock:
            engine.requested_outputs.pop(share, None)
            if engine.requested_outputs or engine not in self._engines:
                return
            self._engines.remove(engine)
        engine.backend.close()

    def forget(self, engine: Engine) -> None:
        """Do not share this engine with further cameras."""
        with self._lock:
            if engine in self._engines:
                self._engines.remove(engine)


def _engine_key(bundle: Bundle, backend: str, options: BackendOptions) -> tuple[object, ...]:
    return bundle.directory.resolve(), bundle.contract, backend, options
