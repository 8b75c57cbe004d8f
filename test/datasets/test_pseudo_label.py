"""Labels of pixels from the teachers' probabilities and the frame's own labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from anomseg_ros.core.labels import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_CLASSES_OF,
    KNOWN_UNCERTAIN,
    UNLABELLED,
    cityscapes_choices,
    counted_labels,
    label_set,
)
from anomseg_ros.datasets.pseudo_label import LabelConfig, TeacherInfo, label_frame, view_size
from anomseg_ros.datasets.pseudo_label_sources import FREE, Unlabelled
from anomseg_ros.errors import ConfigError

ID = {info.name: info.train_id for info in CITYSCAPES}
OWN = {info.name: info.train_id for info in CAMVID}


class FixedTeacher:
    """A teacher that returns the same probabilities for every pixel, one set per view, and counts its calls."""

    def __init__(self, *views: dict[str, float]) -> None:
        self.info = TeacherInfo("says", "", "numpy")
        self.given, self.calls = views, 0

    def look(
        self, image: np.ndarray, size_px: tuple[int, int], scales: Sequence[float], flip: bool
    ) -> Iterator[np.ndarray]:
        self.calls += 1
        for view in self.given:
            probabilities = np.zeros((19, *size_px), np.float32)
            for name, value in view.items():
                probabilities[ID[name]] = value
            yield probabilities


def frame(*codes: int, choices: np.ndarray | None = None) -> Unlabelled:
    """A frame of one row of pixels with these codes."""
    if choices is None:
        choices = np.zeros((256, 19), bool)
        choices[FREE] = True
    return Unlabelled(np.zeros((1, len(codes), 3), np.uint8), np.array([codes], np.uint8), choices)


def first_pixel(
    given: Unlabelled, *teachers: FixedTeacher, known: bool = False, **options: object
) -> tuple[int, float, float]:
    """Return label, confidence and agreement of the first pixel, the latter two as bytes."""
    done = label_frame(given, teachers, LabelConfig(**options), known=known)  # type: ignore[arg-type]
    return int(done.labels[0, 0]), int(done.confidence[0, 0]), int(done.agreement[0, 0])


def test_class_with_the_largest_mean_is_chosen() -> None:
    first, second = (
        FixedTeacher({"road": 0.9, "car": 0.1}, {"road": 0.6, "car": 0.4}),
        FixedTeacher({"road": 0.3, "car": 0.7}),
    )
    assert first_pixel(frame(FREE), first, second) == (ID["road"], round(0.6 * 255), round(2 / 3 * 255))
    sure = FixedTeacher({"car": 1.0}, {"car": 0.9})
    assert first_pixel(frame(FREE), first, sure)[0] == ID["car"]


def test_class_below_the_confidence_is_uncertain() -> None:
    teacher = FixedTeacher({"road": 0.45, "sidewalk": 0.4, "car": 0.15})
    assert first_pixel(frame(FREE), teacher)[0] == UNLABELLED
    assert first_pixel(frame(FREE), teacher, known=True)[0] == KNOWN_UNCERTAIN
    assert first_pixel(frame(FREE), teacher, confidence=0.4)[0] == ID["road"]


def test_probability_of_no_class_lowers_the_confidence() -> None:
    assert first_pixel(frame(FREE), FixedTeacher({"road": 0.3}), confidence=0.5) == (UNLABELLED, round(0.3 * 255), 255)


def test_probability_of_an_excluded_class_makes_an_unlabelled_pixel_uncertain() -> None:
    choices = np.zeros((256, 19), bool)
    choices[FREE, [ID["terrain"], ID["sky"]]] = True
    given = frame(FREE, choices=choices)
    assert first_pixel(given, FixedTeacher({"person": 0.6, "terrain": 0.4}), known=True) == (
        KNOWN_UNCERTAIN,
        round(0.4 * 255),
        255,
    )
    assert first_pixel(given, FixedTeacher({"person": 0.3, "terrain": 0.7}), known=True)[0] == ID["terrain"]


def test_own_labels_are_kept_without_asking_a_teacher() -> None:
    teacher = FixedTeacher({"sky": 1.0})
    codes = (ID["road"], UNLABELLED, ID["bicycle"])
    done = label_frame(frame(*codes, choices=cityscapes_choices("cityscapes")), (teacher,), LabelConfig(), known=False)
    assert done.labels.tolist() == [list(codes)]
    assert done.confidence.tolist() == done.agreement.tolist() == [[255, 0, 255]]
    assert teacher.calls == 0


def test_teacher_chooses_among_the_classes_of_a_coarse_label() -> None:
    camvid = cityscapes_choices("camvid")
    teacher = FixedTeacher({"sky": 0.9, "bus": 0.06, "car": 0.04}, {"sky": 0.9, "bus": 0.04, "car": 0.02})
    label, confidence, agreement = first_pixel(frame(OWN["car"], choices=camvid), teacher)
    # Of the classes of "car", bus has 0.10 of 0.16, and the largest share in both views.
    assert (label, confidence, agreement) == (ID["bus"], round(0.1 / 0.16 * 255), 255)
    assert first_pixel(frame(OWN["road"], choices=camvid), teacher) == (ID["road"], 255, 255)


def test_uncertain_pixel_with_own_label_is_known() -> None:
    torn = FixedTeacher({"vegetation": 0.3, "terrain": 0.29, "sky": 0.41})
    given = frame(OWN["tree"], choices=cityscapes_choices("camvid"))
    assert first_pixel(given, torn, confidence=0.6)[0] == KNOWN_UNCERTAIN
    assert first_pixel(given, FixedTeacher({"sky": 1.0}), confidence=0.6)[0] == KNOWN_UNCERTAIN


def test_own_confidence_applies_to_own_labels() -> None:
    torn = FixedTeacher({"vegetation": 0.3, "terrain": 0.29, "sky": 0.41})
    own = frame(OWN["tree"], choices=cityscapes_choices("camvid"))
    assert first_pixel(own, torn, confidence=0.6, own_confidence=0.5)[0] == ID["vegetation"]
    assert first_pixel(frame(FREE), torn, confidence=0.6, own_confidence=0.1)[0] == UNLABELLED


def test_unlabelled_pixels_stay_unlabelled() -> None:
    mixed = frame(UNLABELLED, FREE)
    done = label_frame(mixed, (FixedTeacher({"road": 1.0}),), LabelConfig(), known=True)
    assert done.labels.tolist() == [[UNLABELLED, ID["road"]]]
    assert done.confidence.tolist() == [[0, 255]] and done.agreement.tolist() == [[0, 255]]


def test_frames_and_own_labels_are_resized() -> None:
    codes = np.array([[ID["road"], ID["sky"]]], np.uint8)
    given = Unlabelled(np.array([[[0] * 3, [200] * 3]], np.uint8), codes, cityscapes_choices("cityscapes"))
    done = label_frame(given, (), LabelConfig(size_px=(2, 4)), known=False)
    assert done.labels.tolist() == [[0, 0, 10, 10]] * 2
    assert done.image.shape == (2, 4, 3) and done.image[0, 0, 0] < done.image[0, 3, 0]


def test_view_size_is_the_scaled_output_size() -> None:
    assert view_size((512, 1024), 0.5) == (256, 512)
    assert view_size((3, 5), 0.1) == (1, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"confidence": 1.2}, "confidence is 1.2; expected 0 to 1"),
        ({"own_confidence": -0.1}, "own_confidence is -0.1; expected 0 to 1"),
        ({"scales": ()}, r"scales are \(\)"),
        ({"scales": (0.0, 1.0)}, "each above 0"),
        ({"size_px": (0, 8)}, r"size is \(0, 8\)"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LabelConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CITYSCAPES_CLASSES_OF)
def test_every_class_of_a_label_set_has_cityscapes_classes(name: str) -> None:
    table = cityscapes_choices(name)
    for info in label_set(name):
        chosen = {CITYSCAPES[train_id].name for train_id in np.flatnonzero(table[info.train_id])}
        assert chosen == set(CITYSCAPES_CLASSES_OF[name][info.name]) != set()
    assert table[KNOWN_UNCERTAIN].all() and not table[UNLABELLED].any()
    assert table.any(axis=1).sum() == len(label_set(name)) + 1


def test_label_set_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown label set with Cityscapes' classes 'ade'"):
        cityscapes_choices("ade")


def test_uncertain_pixels_are_counted_as_unlabelled() -> None:
    labels = np.array([[0, KNOWN_UNCERTAIN, 254, UNLABELLED]], np.uint8)
    assert counted_labels(labels).tolist() == [[0, 255, 254, 255]]
    assert labels[0, 1] == KNOWN_UNCERTAIN
