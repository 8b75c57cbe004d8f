"""Both kinds of predictions: their logits per pixel compared with the formulas, whole and in strips."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from anomseg_ros.networks.prediction import LEAST_SCORE, MaskPrediction, PixelPrediction, Prediction
from anomseg_ros.networks.strips import StripUpsampler


def mask_prediction(scale: float = 4.0, images: int = 1) -> MaskPrediction:
    """Return a prediction of 7 masks and 3 classes for images of 30x45, with masks of 8x12 (padded size / 4)."""
    generator = torch.Generator().manual_seed(0)
    return MaskPrediction(
        size_px=(30, 45),
        padded_px=(32, 48),
        mask_logits=scale * torch.randn((images, 7, 8, 12), generator=generator),
        class_logits=2 * torch.randn((images, 7, 4), generator=generator),
    )


def test_logits_are_enlarged_and_cropped() -> None:
    columns = torch.arange(3.0).expand(1, 1, 2, 3)
    prediction = PixelPrediction(size_px=(4, 5), padded_px=(4, 6), logits=columns)
    assert prediction.pixel_logits()[0, 0, 3].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.25, 1.75])
    whole = PixelPrediction(size_px=(2, 3), padded_px=(2, 3), logits=columns)
    assert whole.pixel_logits() is columns


def test_mask_logits_equal_the_formula() -> None:
    prediction = mask_prediction(images=2)
    enlarged = prediction.enlarge(prediction.mask_logits)
    masks, classes = enlarged.double().numpy(), prediction.class_logits.double().numpy()
    shares = np.exp(classes) / np.exp(classes).sum(2, keepdims=True)
    expected = np.einsum("nqk,nqhw->nkhw", shares[:, :, :3], 1 / (1 + np.exp(-masks)))
    assert prediction.semantic(enlarged).numpy() == pytest.approx(expected, rel=1e-5)
    assert prediction.pixel_logits().numpy() == pytest.approx(np.log(expected), abs=1e-5)
    assert prediction.pixel_logits().shape == (2, 3, 30, 45)


def test_released_inference_equals_its_formula() -> None:
    """As evaluated by the code of EoMT-LoRA-ArcFace: two known classes, one for anomalies, "no object"."""
    prediction = replace(mask_prediction(images=2), released_known=2)
    enlarged = prediction.enlarge(prediction.maps)
    masks, classes = 1 / (1 + np.exp(-enlarged.double().numpy())), np.exp(prediction.class_logits.double().numpy())
    masks = np.where(masks < 0.5, 0, masks)
    known, anomaly = classes[..., :2] / classes[..., :2].sum(2, keepdims=True), classes / classes.sum(2, keepdims=True)
    shares = np.concatenate([known, anomaly[..., 2:3]], 2)
    assert prediction.semantic(enlarged).numpy() == pytest.approx(np.einsum("nqk,nqhw->nkhw", shares, masks), abs=1e-5)
    logits = prediction.class_logits[..., :3].double().numpy()
    expected = np.einsum("nqk,nqhw->nkhw", logits, masks)
    assert prediction.pixel_evidence().numpy() == pytest.approx(expected, abs=1e-4)


def test_pixels_without_a_query_have_finite_logits_and_gradients() -> None:
    prediction = mask_prediction()
    masks = torch.full_like(prediction.mask_logits, -1e4).requires_grad_()
    nowhere = MaskPrediction(size_px=(30, 45), padded_px=(32, 48), mask_logits=masks, class_logits=torch.zeros(1, 7, 4))
    logits = nowhere.pixel_logits()
    assert torch.equal(logits, torch.full_like(logits, LEAST_SCORE).log())
    nowhere.semantic(nowhere.enlarge(nowhere.maps)).sum().backward()
    assert masks.grad is not None and masks.grad.isfinite().all()


def test_small_scores_keep_their_precision() -> None:
    masks = torch.linspace(-17, -10, 96).reshape(1, 1, 8, 12)
    prediction = MaskPrediction(
        size_px=(8, 12), padded_px=(8, 12), mask_logits=masks, class_logits=torch.tensor([[[50.0, 0.0]]])
    )
    assert prediction.pixel_logits().numpy() == pytest.approx(masks.numpy(), abs=1e-4)


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_decoding_in_strips_equals_the_whole_frame(kind: str) -> None:
    prediction = mask_prediction()
    expected: Prediction
    if kind == "pixels":
        logits = torch.randn((1, 5, 8, 12), generator=torch.Generator().manual_seed(1))
        expected = PixelPrediction(size_px=(32, 48), padded_px=(32, 48), logits=logits)
    else:
        expected = replace(prediction, size_px=(32, 48), padded_px=(32, 48))
    strips = map(expected.decode, StripUpsampler(4, 8, 12)(expected.maps))
    rows = torch.cat([strip.permute(1, 0, 2) for strip in strips], 1)
    torch.testing.assert_close(rows, expected.pixel_logits()[0], atol=1e-5, rtol=1e-5)
