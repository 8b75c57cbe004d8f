"""Every shipped training configuration loads, fits the runs it builds on, and trains."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_trees import own_folder, write

from anomseg_ros.catalog.entries import load_catalog
from anomseg_ros.catalog.store import checkpoint_folder
from anomseg_ros.cli import main
from anomseg_ros.core.labels import CAMVID, CITYSCAPES
from anomseg_ros.networks import build_network, network_class
from anomseg_ros.networks.checkpoints import load_checkpoint, save_checkpoint
from anomseg_ros.networks.network import IMAGENET_MEAN, IMAGENET_STD, SegmentationNetwork
from anomseg_ros.networks.prediction import MaskPrediction
from anomseg_ros.scores import find_score
from anomseg_ros.training.backbones import BACKBONES
from anomseg_ros.training.config import TrainConfig, load_config
from anomseg_ros.training.loop import Sources, train
from anomseg_ros.training.segmentation_loss import LossConfig
from anomseg_ros.training.start import start_network
from anomseg_ros.training.status import TrainingStatus

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"enet-camvid-void", "mide_net-distilled", "erfnet_encoder-camvid"}
"""Recipes that the fast tests train, too: with pasted outliers, with a teacher, and the first of two stages."""

RECIPES = {path.stem: path for path in sorted((ROOT / "config" / "train").glob("*.yaml"))}
KNOWN = {"camvid": len(CAMVID)} | dict.fromkeys(("cityscapes", "synthetic", "pseudo_label"), len(CITYSCAPES))
KNOWN["folder"] = 2  # of own_folder
SIZE_PX = (64, 96)
SYNTHETIC = "7:2"
SMALL_MASKS = [
    *(f"network.options.{key}={value}" for key, value in {"width": 64, "depth": 2, "query_blocks": 1}.items()),
    *("network.options.queries=12", "network.options.grid=[4, 6]", "loss.points=64"),
]
"""Sizes of mask networks that a test can train."""
SMALL_STREAMS = [
    *(
        "network.options.width=64",
        "network.options.depth=4",
        "network.options.heads=2",
        "network.options.prior_width=8",
    ),
    *(f"network.options.decoder_{key}" for key in ("width=64", "heads=2", "layers=1", "inner=64")),
    *("network.options.pixel_layers=1", "network.options.pixel_inner=64", "network.options.queries=12"),
    *("network.options.grid=[4, 6]", "loss.points=64"),
]
"""Sizes of dual-stream adapters that a test can train."""


def load(name: str, *changes: str) -> TrainConfig:
    return load_config(RECIPES[name], changes)


def loss_of(config: TrainConfig) -> LossConfig:
    assert isinstance(config.loss, LossConfig)
    return config.loss


def num_outputs(config: TrainConfig) -> int:
    return KNOWN[config.data.dataset] + (config.data.void != "none")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_name_of_its_file(name: str) -> None:
    config = load(name)
    assert config.name == name
    assert config.data.dataset in KNOWN
    network_class(config.network.name)


@pytest.mark.parametrize("name", RECIPES)
def test_initial_runs_exist_and_fit(name: str) -> None:
    seen, config = [name], load(name)
    while config.network.initial is not None and config.network.initial.config is not None:
        initial, later = config.network.initial, config
        assert initial.config in RECIPES and initial.config not in seen
        seen.append(initial.config)
        config = load(initial.config)
        whole = initial.part in ("all", "features") or network_class(later.network.name).kind is MaskPrediction
        assert config.network.name in ((later.network.name,) if whole else (f"{later.network.name}_{initial.part}",))
        assert (config.network.mean, config.network.std) == (later.network.mean, later.network.std)
        # start_network expects this in the checkpoint.
        assert (initial.num_classes or KNOWN[later.data.dataset]) == num_outputs(config)
        if initial.part == "all":
            assert num_outputs(config) <= num_outputs(later)
            assert KNOWN[config.data.dataset] == KNOWN[later.data.dataset]


@pytest.mark.parametrize("name", [name for name in RECIPES if load(name).teachers])
def test_teacher_has_the_classes_of_the_student(name: str) -> None:
    student = load(name)
    assert loss_of(student).distillation_weight > 0
    for given in student.teachers:
        assert (given.num_classes or num_outputs(student)) == num_outputs(student)
        if given.checkpoint is not None:
            continue
        assert given.config in RECIPES
        teacher = load(given.config)
        assert teacher.network.name == given.network
        assert teacher.data.dataset == student.data.dataset
        assert num_outputs(teacher) == num_outputs(student)


@pytest.mark.parametrize("name", RECIPES)
def test_initial_checkpoints_have_the_paths_of_models_fetch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMSEG_CHECKPOINTS", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    config, published = load(name), {entry.file: entry for entry in load_catalog().checkpoints}
    initial = config.network.initial
    given = [] if initial is None else [(config.network.name, initial.checkpoint, initial.num_classes)]
    given += [(teacher.network, teacher.checkpoint, teacher.num_classes) for teacher in config.teachers]
    for network, checkpoint, num_classes in given:
        if checkpoint is not None and checkpoint.startswith("~"):
            path = Path(checkpoint).expanduser()
            entry = published[path.name]
            assert path.parent == checkpoint_folder()
            assert (entry.network, entry.num_classes) == (network, num_classes)


@pytest.mark.parametrize(
    ("distilled", "alone"),
    [("mide_net-distilled", "mide_net-camvid"), ("mide_net-distilled-cityscapes", "mide_net-cityscapes")],
)
def test_distilled_recipe_differs_only_in_the_distillation(distilled: str, alone: str) -> None:
    with_teacher, without = load(distilled), load(alone)
    assert (loss_of(with_teacher).distillation_weight, loss_of(without).distillation_weight) == (1.0, 0.0)
    loss = replace(
        loss_of(with_teacher),
        distillation_weight=0.0,
        distillation_temperature=loss_of(without).distillation_temperature,
        distillation_class_weights=False,
    )
    assert replace(with_teacher, name=alone, teachers=(), loss=loss) == without


@pytest.mark.parametrize("name", [name for name in RECIPES if load(name).network.backbone == "timm"])
def test_recipe_with_an_imagenet_backbone_has_its_normalisation(name: str) -> None:
    network = load(name).network
    assert network.name in BACKBONES
    assert (network.mean, network.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("name", [name for name in RECIPES if "models/" in str(load(name).network.initial)])
def test_shipped_checkpoints_fit_the_recipes_that_start_from_them(name: str) -> None:
    config = load(name)
    checkpoint = ROOT / str(config.network.initial.checkpoint)
    outputs = 6 if config.network.initial.part == "features" else config.network.initial.num_classes
    network = start_network(config.network, outputs, 0, checkpoint, known_classes=outputs - 1)
    ours, theirs = network.state_dict(), load_checkpoint(checkpoint, config.network.name, 20).state_dict()
    same = [key for key in ours if key in theirs and torch.equal(ours[key], theirs[key])]
    assert len(same) > 0.8 * len(ours) and network.num_classes == outputs


@pytest.mark.parametrize("name", [name for name in RECIPES if load(name).data.void != "none"])
def test_recipe_with_a_void_class_deploys_the_void_score(name: str) -> None:
    config = load(name)
    scores = config.deploy.scores
    assert not scores or scored(scores)
    # The papers evaluate void classifiers with that score.
    assert config.data.void != "unlabelled" or scores[0] == "void"


def scored(scores: tuple[str, ...]) -> bool:
    return any(find_score(score).needs_void for score in scores)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two training frames and one validation frame of each dataset, with all classes and unlabelled pixels."""
    root = tmp_path_factory.mktemp("trees")
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            rng = np.random.default_rng([number, count])
            image = rng.integers(0, 256, (*SIZE_PX, 3), dtype=np.uint8)
            camvid = np.repeat(rng.integers(0, 12, (SIZE_PX[0], 12), dtype=np.uint8), 8, axis=1)
            write(root / "camvid" / split / f"{number}.png", image)
            write(root / "camvid" / f"{split}annot" / f"{number}.png", camvid)
            city, id_ = root / "cityscapes", f"ulm_{number:06d}_000019"
            train_ids = np.repeat(rng.integers(0, 20, (SIZE_PX[0], 12), dtype=np.uint8), 8, axis=1)
            train_ids[train_ids == 19] = 255
            write(city / "leftImg8bit" / split / "ulm" / f"{id_}_leftImg8bit.png", image)
            write(city / "gtFine" / split / "ulm" / f"{id_}_gtFine_labelTrainIds.png", train_ids)
    return {
        "camvid": str(root / "camvid"),
        "cityscapes": str(root / "cityscapes"),
        "synthetic": SYNTHETIC,
        "folder": str(own_folder(root / "folder", ["a/1", "a/2", "a/3"])),
        "pseudo_label": str(write_pseudo_labels(root / "cityscapes", root / "labelled")),
    }


def write_pseudo_labels(cityscapes: Path, output: Path) -> Path:
    """Write the frames of both splits with `datasets pseudo-label`. Their own labels leave no choice to the teacher."""
    teacher = build_network("mide_net", len(CITYSCAPES)).eval()
    save_checkpoint(output.with_suffix(".safetensors"), teacher, {})
    words = ["datasets", "pseudo-label", "--output", str(output), "--validation", "cityscapes2-*"]
    words += ["--teacher", f"mide_net={output.with_suffix('.safetensors')}"]
    assert main([*words, "--frames", *(f"cityscapes={cityscapes}:{split}" for split in ("train", "val"))]) == 0
    return output


def shorten(name: str, data: str) -> TrainConfig:
    """Return the recipe, shortened to two steps with two small frames."""
    height, width = SIZE_PX
    changes = [f"data.path={data}", f"data.height_px={height}", f"data.width_px={width}", "data.workers=0"]
    changes += ["data.cache=memory", "data.allow_partial=true", "network.backbone=none"]
    changes += [f"augment.crop_height_px={height}", f"augment.crop_width_px={width}"]
    changes += ["run.epochs=2", "run.batch_size=2", "run.precision=32-true", "run.compile=false", "run.threads=1"]
    changes += ["run.accelerator=cpu", "run.validate_every=2", "run.accumulate=1"]
    changes += ["data.validation_path=9:1"] if data == SYNTHETIC else []
    if load(name).network.name == "dual_stream_adapter":
        changes += SMALL_STREAMS
    elif load(name).objective == "masks":
        changes += SMALL_MASKS
    if not isinstance(load(name).data.cut_paste.objects, str):  # folders that the user provides
        changes.append("data.cut_paste.objects=procedural")
    return load(name, *changes)


def fresh_checkpoint(path: Path, network: SegmentationNetwork, of: TrainConfig | None) -> Path:
    """Write a checkpoint like that of the previous run `of`."""
    if of is not None:
        network.set_normalisation(of.network.mean, of.network.std)
    save_checkpoint(path, network, {})
    return path


def sources_of(config: TrainConfig, folder: Path) -> Sources:
    """Write the checkpoints that the recipe builds on, with random weights."""
    initial = None
    if config.network.initial is not None:
        given = config.network.initial
        before = None if given.config is None else load(given.config)
        name = config.network.name if before is None else before.network.name
        options = {} if before is None else dict(before.network.options)
        if config.objective in ("masks", "dual_stream"):
            options = {key: value for key, value in config.network.options.items() if key != "cosine_scale"}
        classes = given.num_classes or KNOWN[config.data.dataset]
        network = network_class(name)(classes, **options)
        initial = fresh_checkpoint(folder / "initial.safetensors", network, before or config)
    teachers = [
        fresh_checkpoint(
            folder / f"teacher-{number}.safetensors",
            network_class(teacher.network)(teacher.num_classes or num_outputs(config)),
            None if teacher.config is None else load(teacher.config),
        )
        for number, teacher in enumerate(config.teachers)
    ]
    return Sources(initial, tuple(teachers))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_recipe_trains_two_steps(name: str, trees: dict[str, str], tmp_path: Path) -> None:
    config = shorten(name, trees[load(name).data.dataset])
    sources = sources_of(config, tmp_path)
    losses: list[float] = []

    def note(now: TrainingStatus) -> None:
        if now.stage == "train" and now.loss is not None:
            losses.append(now.loss)

    result = train(config, tmp_path / "run", sources, note)
    assert result.steps == len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert result.num_classes == num_outputs(config)
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors", config.network.name, result.num_classes)
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    if config.network.trained == "classifier":
        assert sources.initial is not None
        assert_only_the_classifier_changed(
            trained, load_checkpoint(sources.initial, config.network.name, num_outputs(config) - 1)
        )


def assert_only_the_classifier_changed(trained: SegmentationNetwork, before: SegmentationNetwork) -> None:
    key, dimension = trained.class_parameter
    last = key.rpartition(".")[0] + "."
    ours, theirs = trained.state_dict(), before.state_dict()
    for name, value in ours.items():
        if not name.startswith(last):
            assert torch.equal(value, theirs[name]), name
    known = ours[key].narrow(dimension, 0, before.num_classes)
    assert not torch.equal(known, theirs[key])
    torch.testing.assert_close(known, theirs[key], atol=1e-3, rtol=0)
