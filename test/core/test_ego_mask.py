from __future__ import annotations

import numpy as np
import pytest

from anomseg_ros.core.ego_mask import ego_mask_of_frame
from anomseg_ros.errors import FrameError


@pytest.mark.parametrize("size", [(720, 1280), (56, 100), (1086, 1920), (1074, 1920)])
def test_mask_of_the_same_aspect_ratio_is_resized(size: tuple[int, int]) -> None:
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 2 :] = 255
    resized = ego_mask_of_frame(mask, 1080, 1920)
    assert resized.shape == (1080, 1920) and (resized[540 + 10 :] == 255).all() and not resized[: 540 - 10].any()


@pytest.mark.parametrize("size", [(768, 1024), (1280, 720), (1100, 1920), (1060, 1920)])
def test_mask_of_another_aspect_ratio_is_refused(size: tuple[int, int]) -> None:
    text = f"the ego mask is {size[1]}x{size[0]} pixels, the frame 1920x1080: they need the same aspect ratio; paint"
    with pytest.raises(FrameError, match=text):
        ego_mask_of_frame(np.zeros(size, np.uint8), 1080, 1920)
