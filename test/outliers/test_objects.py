from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_tree import CLASSES, coco, packed, runs_of

from anomseg_ros.errors import ConfigError, DatasetError
from anomseg_ros.outliers.coco import polygon_mask, run_lengths, run_mask
from anomseg_ros.outliers.files import PAPER_OVERLAP_CLASSES
from anomseg_ros.outliers.objects import ALL_KINDS, OVERLAP_CLASSES, FolderObjects, ProceduralObjects


def noise_frames() -> list[np.ndarray]:
    return [np.random.default_rng(9).integers(0, 256, (120, 200, 3), dtype=np.uint8)]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_procedural_objects_are_tight_solid_and_repeatable(kind: str) -> None:
    source = pickle.loads(pickle.dumps(ProceduralObjects((kind,), size_px=(40, 90))))
    for seed in range(12):
        given = noise_frames() if seed % 2 else []
        drawn, again = (source.draw(np.random.default_rng(seed), given) for _ in range(2))
        assert np.array_equal(drawn.image, again.image) and np.array_equal(drawn.mask, again.mask)
        assert drawn.image.dtype == np.uint8 and drawn.image.shape == (*drawn.mask.shape, 3)
        assert drawn.mask.dtype == bool and drawn.kind == kind
        assert 38 <= max(drawn.mask.shape) <= 91
        for edge in (drawn.mask[0], drawn.mask[-1], drawn.mask[:, 0], drawn.mask[:, -1]):
            assert edge.any()
        assert drawn.mask.mean() > 0.04


def test_procedural_objects_differ_in_outline_colour_and_texture() -> None:
    source = ProceduralObjects(size_px=(60, 60))
    drawn = [source.draw(np.random.default_rng(seed), noise_frames()) for seed in range(200)]
    fills = np.array([one.mask.mean() for one in drawn])
    aspects = np.log([one.mask.shape[1] / one.mask.shape[0] for one in drawn])
    means = np.array([one.image[one.mask].mean(axis=0) for one in drawn])
    roughness = np.array([np.abs(np.diff(one.image.astype(float), axis=1)).mean() for one in drawn])
    assert {one.kind for one in drawn} == set(ALL_KINDS)
    assert fills.std() > 0.1 and aspects.std() > 0.3
    assert (means.std(axis=0) > 30).all()
    assert np.quantile(roughness, 0.9) > 3 * np.quantile(roughness, 0.1)


def test_sizes_are_log_uniform_and_scale_with_the_frame() -> None:
    fixed = ProceduralObjects(("ring",), size_px=(20, 180))
    sides = [max(fixed.draw(np.random.default_rng(seed), ()).mask.shape) for seed in range(80)]
    assert min(sides) < 30 and max(sides) > 130 and abs(np.median(sides) - 60) < 15
    free = ProceduralObjects(("ring",))
    large = [np.zeros((1000, 2000, 3), np.uint8)]
    assert max(max(free.draw(np.random.default_rng(seed), large).mask.shape) for seed in range(20)) > 250


def test_frame_parts_have_the_texture_of_the_frame() -> None:
    source = ProceduralObjects(("frame_part",), size_px=(60, 60))

    def roughness(given: list[np.ndarray]) -> float:
        drawn = [source.draw(np.random.default_rng(seed), given).image.astype(float) for seed in range(9)]
        return float(np.median([np.abs(np.diff(image, axis=1)).mean() for image in drawn]))

    assert roughness(noise_frames()) > 2 * roughness([np.full((100, 100, 3), 128, np.uint8)])


def test_unknown_kinds_and_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown kind of object 'creatur'; known: creature"):
        ProceduralObjects(("creatur",))
    with pytest.raises(ConfigError, match=r"kinds is \(\)"):
        ProceduralObjects(())
    for size_px in ((4, 90), (90, 40)):
        with pytest.raises(ConfigError, match=r"size_px is"):
            ProceduralObjects(size_px=size_px)


# --- masks of COCO annotations ---


def test_polygon_mask_has_the_pixels_with_their_centre_inside() -> None:
    square = np.array([(10, 5), (20, 5), (20, 8), (10, 8)], np.float32)
    expected = np.zeros((12, 30), bool)
    expected[5:8, 10:20] = True
    assert np.array_equal(polygon_mask([square], (12, 30)), expected)
    assert np.array_equal(polygon_mask([square[::-1], square], (12, 30)), expected)
    outside = square - (15, 0)
    assert polygon_mask([outside], (12, 30)).sum() == 3 * 5
    y, x = np.mgrid[:60, :60] + 0.5
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([30 + 20 * np.cos(angles), 30 + 20 * np.sin(angles)], axis=1).astype(np.float32)
    assert (polygon_mask([circle], (60, 60)) != ((x - 30) ** 2 + (y - 30) ** 2 <= 400)).sum() <= 8
    assert not polygon_mask([square[:1]], (12, 30)).any()


def test_run_lengths_are_in_column_order() -> None:
    mask = run_mask([1, 2, 3], (2, 3), "x")
    assert mask.tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(DatasetError, match=r"x: its run lengths add up to 5, expected 3x2 = 6"):
        run_mask([1, 2, 2], (2, 3), "x")
    with pytest.raises(DatasetError, match="run lengths"):
        run_mask([-1, 7], (2, 3), "x")


def test_packed_run_lengths_are_decoded() -> None:
    # Encoded by hand: 5 -> '5'; 40 = 01000 + 1*32 -> 'X1'; 3 -> '3'; then 2-40 = -38 -> 'jN'.
    assert run_lengths("5", "x") == [5]
    assert run_lengths("X1", "x") == [40]
    assert run_lengths("5X13jN", "x") == [5, 40, 3, 2]
    rng = np.random.default_rng(0)
    for _ in range(50):
        runs = rng.integers(0, 70000, rng.integers(1, 40)).tolist()
        assert run_lengths(packed(runs), "x") == runs
    with pytest.raises(DatasetError, match="end in the middle of a number"):
        run_lengths("X", "x")
    with pytest.raises(DatasetError, match="hold '!'"):
        run_lengths("5!", "x")


# --- folders ---


@pytest.mark.parametrize("form", ["polygon", "runs", "packed"])
def test_coco_objects_are_read_from_each_encoding(form: str, tmp_path: Path) -> None:
    expected = coco(tmp_path, form=form)
    source = pickle.loads(pickle.dumps(FolderObjects(tmp_path)))
    assert len(source) == 2
    kinds = {}
    for index in range(2):
        drawn = source.read(index)
        kinds[drawn.kind] = drawn
    assert set(kinds) == {"dog", "chair"}
    image, mask = expected["dog"]
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert np.array_equal(kinds["dog"].mask, mask[window])
    assert np.array_equal(kinds["dog"].image, image[window])
    assert source.draw(np.random.default_rng(0), ()).kind in kinds
    info = source.describe()
    assert (info.name, info.count, info.excluded, info.min_area_px) == ("coco", 2, OVERLAP_CLASSES, 1000)


def test_crowds_small_objects_and_overlap_classes_are_omitted(tmp_path: Path) -> None:
    coco(tmp_path)
    assert {FolderObjects(tmp_path).read(index).kind for index in range(2)} == {"dog", "chair"}
    everything = FolderObjects(tmp_path, exclude=(), min_area_px=1)
    assert sorted(everything.read(index).kind for index in range(len(everything))) == ["car", "chair", "dog", "dog"]
    assert FolderObjects(tmp_path, exclude=("dog", "car")).describe().kinds == ("chair",)
    assert set(PAPER_OVERLAP_CLASSES) < set(OVERLAP_CLASSES)


def test_unknown_excluded_class_is_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    with pytest.raises(ConfigError, match=r"exclude names 'dgo', .* the closest: dog"):
        FolderObjects(tmp_path, exclude=("dgo",))


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
def test_coco_pictures_are_found_in_all_usual_folders(place: str, tmp_path: Path) -> None:
    coco(tmp_path, pictures=place)
    assert FolderObjects(tmp_path).read(0).mask.any()


def break_json(path: Path) -> None:
    path.write_text(path.read_text()[:-200])


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (Path.unlink, r"no annotations/instances_\*\.json"),
        (break_json, r"damaged or cut short: .* unpack or download it again"),
        (lambda path: path.write_text("[1, 2]"), r"is not a file of COCO instances"),
        (lambda path: path.write_text(path.read_text().replace('"segmentation"', '"x"')), r"KeyError: 'segmentation'"),
        (lambda path: path.write_text(path.read_text().replace('"a.png"', '"../a.png"')), r"leads out of the folder"),
        (lambda path: path.write_text(path.read_text().replace('"category_id": 18', '"category_id": 81')), r"\[81\]"),
    ],
)
def test_invalid_coco_annotations_are_refused(break_it: object, text: str, tmp_path: Path) -> None:
    coco(tmp_path)
    break_it(tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(DatasetError, match=text):
        FolderObjects(tmp_path)


def test_missing_pictures_and_wrong_sizes_are_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "train2017" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 pictures that annotations name are missing, the first '.*b.png'"):
        FolderObjects(tmp_path)
    cv2.imwrite(str(tmp_path / "train2017" / "b.png"), np.zeros((5, 6, 3), np.uint8))
    source = FolderObjects(tmp_path)
    with pytest.raises(DatasetError, match=r"b.png' is 6x5, its annotations say 100x80"):
        [source.read(index) for index in range(2)]
    (tmp_path / "train2017" / "a.png").unlink()
    (tmp_path / "train2017" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"none of the 2 pictures of 'instances_train2017.json'"):
        FolderObjects(tmp_path)


def test_excluding_all_objects_is_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    with pytest.raises(DatasetError, match=r"none in .* is left of 4 annotations"):
        FolderObjects(tmp_path, exclude=tuple(CLASSES.values()))


def test_annotation_without_pixels_is_refused(tmp_path: Path) -> None:
    coco(tmp_path, empty_dog=True)
    source = FolderObjects(tmp_path)
    with pytest.raises(DatasetError, match=r"annotation 1 of 'instances_train2017.json' holds no pixel"):
        [source.read(index) for index in range(2)]


def rgba(alpha: np.ndarray) -> np.ndarray:
    color = np.zeros((*alpha.shape, 4), np.uint8)
    color[:, :, 2] = 180  # BGRA: red
    color[:, :, 3] = alpha
    return color


def test_cut_outs_with_alpha_are_read(tmp_path: Path) -> None:
    alpha = np.zeros((30, 40), np.uint8)
    alpha[5:25, 10:30] = 255
    alpha[4, 10:30] = 100
    (tmp_path / "goat").mkdir()
    cv2.imwrite(str(tmp_path / "goat" / "1.png"), rgba(alpha))
    cv2.imwrite(str(tmp_path / "2.png"), rgba(alpha))
    source = FolderObjects(tmp_path)
    found = [source.read(index) for index in range(2)]
    assert sorted(one.kind for one in found) == ["goat", "object"]
    assert found[0].mask.shape == (20, 20) and found[0].mask.all()
    assert (found[0].image == (180, 0, 0)).all()
    digest = source.describe().sha256
    cv2.imwrite(str(tmp_path / "3.png"), rgba(alpha))
    assert FolderObjects(tmp_path).describe().sha256 != digest
    assert FolderObjects(tmp_path, exclude=("goat",)).describe().kinds == ("object",)


def test_images_with_masks_are_read_and_checked(tmp_path: Path) -> None:
    mask = np.zeros((30, 40), np.uint8)
    mask[5:25, 10:30] = 1
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.full((30, 40, 3), 90, np.uint8))
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask)
    source = FolderObjects(tmp_path)
    assert source.describe().name == "images and masks"
    assert source.read(0).mask.shape == (20, 20)
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask[1:])
    assert source.read(0).mask.shape == (20, 20)  # cached in memory
    with pytest.raises(DatasetError, match="both must be of one size"):
        FolderObjects(tmp_path).read(0)
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), mask * 0)
    with pytest.raises(DatasetError, match=r"mask '.*a.png' holds no pixel of an object"):
        FolderObjects(tmp_path).read(0)
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DatasetError, match="image without labels"):
        FolderObjects(tmp_path)


def test_invalid_cut_out_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        FolderObjects(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"objects: none in .* \(0 found"):
        FolderObjects(tmp_path)
    cv2.imwrite(str(tmp_path / "opaque.png"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DatasetError, match="has no alpha channel"):
        FolderObjects(tmp_path).read(0)
    cv2.imwrite(str(tmp_path / "opaque.png"), rgba(np.zeros((9, 9), np.uint8)))
    with pytest.raises(DatasetError, match="holds no pixel"):
        FolderObjects(tmp_path).read(0)
    whole = (tmp_path / "opaque.png").read_bytes()
    (tmp_path / "opaque.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"cut short|truncated"):
        FolderObjects(tmp_path).read(0)


def test_runs_of_inverts_run_mask() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.4
    assert np.array_equal(run_mask(runs_of(mask), (9, 7), "x"), mask)
