"""A bundle's engines: which there are, that each is built and checked once, and which one serves."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomseg_ros.backends.built_engines import Built, EngineSet, engine_outputs, provide_engine
from anomseg_ros.backends.engine_cache import EngineCache, EngineKey, Found, Miss
from anomseg_ros.core.bundle import Bundle
from anomseg_ros.errors import BackendError, CompressionError


def key_of(outputs: tuple[str, ...]) -> EngineKey:
    return EngineKey("0" * 64, outputs, "library", "1.0", "a GPU", "9.0", 132, False, "x86_64")


def test_there_are_two_engines(bundle: Bundle) -> None:
    contract = bundle.contract
    engines = engine_outputs(contract)
    assert engines["labels"] == ("labels", "void") or engines["labels"] == (contract.score_names[0], "labels")
    assert set(engines["all"]) == {"labels", *contract.score_names} and list(engines["all"]) == sorted(engines["all"])
    one_score = replace(contract, outputs=tuple(o for o in contract.outputs if o.name in engines["labels"]))
    assert list(engine_outputs(one_score)) == ["labels"]


class Place:
    """Provides one engine, and counts what is done for it."""

    def __init__(self, cache: EngineCache, key: EngineKey) -> None:
        self.cache, self.key = cache, key
        self.built: list[bytes] = []
        self.checked: list[bytes] = []
        self.check_error: Exception | None = None
        self.served_unchecked = False

    def build(self, timings: bytes) -> Built:
        self.built.append(timings)
        return Built(b"plan", {"build_s": 1.0}, b"timings")

    def check(self, built: Built) -> dict[str, Any]:
        self.served_unchecked = isinstance(self.cache.find(self.key), Found)
        self.checked.append(built.plan)
        if self.check_error is not None:
            raise self.check_error
        return {"drift": 0.0}

    def provide(self, *needs: str) -> Found:
        return provide_engine(self.cache, self.key, self.build, self.check, needs)


@pytest.fixture
def place(cache: Path) -> Place:
    return Place(EngineCache(cache), key_of(("labels",)))


def test_an_engine_is_built_and_checked_once(place: Place) -> None:
    found = place.provide()
    assert found.plan == b"plan" and found.facts["check"] == {"drift": 0.0} and found.facts["build_s"] == 1.0
    assert place.provide("drift") == found
    assert (place.built, place.checked) == ([b""], [b"plan"]) and not place.served_unchecked


def test_an_engine_that_fails_its_check_is_not_in_the_cache(place: Place) -> None:
    place.check_error = BackendError("too far")
    with pytest.raises(BackendError, match="too far"):
        place.provide()
    assert isinstance(place.cache.find(place.key), Miss)
    place.check_error = None
    place.provide()
    assert place.built == [b"", b"timings"]  # what was timed is not lost


def test_an_engine_that_was_checked_less_is_checked_again_but_not_built(place: Place) -> None:
    place.cache.store(place.key, b"plan", {"build_s": 7.0, "check": {"noise": 1.0}})
    found = place.provide("drift")
    assert found.facts["build_s"] == 7.0 and found.facts["check"] == {"drift": 0.0} and place.built == []
    place.cache.store(place.key, b"plan", {"build_s": 7.0, "check": {"noise": 1.0}})
    place.check_error = BackendError("no memory for the check")
    with pytest.raises(BackendError, match="no memory"):
        place.provide("drift")
    assert isinstance(place.cache.find(place.key), Found)  # nothing is known against it
    place.check_error = CompressionError("too far")
    with pytest.raises(CompressionError, match="too far"):
        place.provide("drift")
    assert isinstance(place.cache.find(place.key), Miss)


def test_threads_build_one_engine(place: Place) -> None:
    threads = [threading.Thread(target=place.provide) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(place.built) == 1


class FakeMaker:
    """An engine is the text of its plan."""

    def __init__(self) -> None:
        self.built: list[tuple[str, ...]] = []
        self.loaded: list[bytes] = []

    def key(self, outputs: tuple[str, ...]) -> EngineKey:
        return key_of(outputs)

    def build(self, outputs: tuple[str, ...], timings: bytes) -> Built:
        self.built.append(outputs)
        return Built(" ".join(outputs).encode(), {"build_s": 2.5})

    def check(self, outputs: tuple[str, ...], built: Built) -> Mapping[str, Any]:
        return {"noise": {"labels": 1.0}}

    def load(self, outputs: tuple[str, ...], plan: bytes) -> str:
        self.loaded.append(plan)
        return plan.decode()


def test_the_smallest_engine_serves_and_is_loaded_once(bundle: Bundle, cache: Path) -> None:
    maker = FakeMaker()
    engines = EngineSet(bundle, EngineCache(cache), maker, "build it")
    assert engines.facts() == {}
    with pytest.raises(BackendError, match=r"has no engine for this computer: there is .*; build it with `build it`"):
        engines.smallest()
    engines.provide()
    small, whole = engine_outputs(bundle.contract).values()
    assert maker.built == [small, whole] and maker.loaded == []
    assert engines.smallest() == engines.smallest(["labels"]) == " ".join(small)
    facts = engines.facts()
    assert facts["engines"] == "labels" and facts["engine"].startswith("built now: there is no engine yet")
    assert facts["engine_build_s"] == "2.5" and facts["engine_check"] == "noise labels 1.0"
    assert engines.smallest(bundle.contract.score_names) == " ".join(whole)
    assert engines.facts()["engines"] == "labels, all" and len(maker.loaded) == 2
    with pytest.raises(BackendError, match="has no depth"):
        engines.smallest(["depth"])
    engines.unload()
    assert engines.loaded == {}


def test_an_engine_that_covers_more_serves_where_the_smallest_is_missing(bundle: Bundle, cache: Path) -> None:
    maker, store = FakeMaker(), EngineCache(cache)
    whole = engine_outputs(bundle.contract)["all"]
    provide_engine(store, key_of(whole), lambda timings: maker.build(whole, timings), lambda built: {"noise": 1.0})
    engines = EngineSet(bundle, store, maker, "build it")
    assert engines.smallest(["labels"]) == " ".join(whole)
    assert engines.facts()["engine"] == "found in the cache"
