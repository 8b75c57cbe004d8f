"""scripts/draw_pictures.py: the pictures that are committed are those that it draws."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import draw_pictures
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 300_000


def test_pictures_are_small_and_shown() -> None:
    images = ROOT / "docs" / "images"
    for name in ("road.jpg", "demo.jpg", "drive.jpg"):
        assert (images / name).stat().st_size < MAX_BYTES
    assert "(docs/images/road.jpg)" in (ROOT / "README.md").read_text()
    assert all(path.stat().st_size < MAX_BYTES for path in ROOT.glob("models/*/scenes.jpg"))


def test_unknown_pictures_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_pictures.py", "rod"])
    with pytest.raises(SystemExit):
        draw_pictures.main()
    assert "unknown: rod; choose from road, demo, models/bisenet_lite-world" in capsys.readouterr().err


@pytest.mark.slow
def test_the_committed_picture_of_a_road_is_what_is_drawn() -> None:
    drawn = draw_pictures.road_panel()[:, :, ::-1]
    committed = cv2.imread(str(ROOT / "docs" / "images" / "road.jpg"))
    assert committed is not None and committed.shape == drawn.shape
    assert np.abs(committed.astype(int) - drawn.astype(int)).mean() < 4  # a JPEG's loss
