from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs the rosbags library: pip install '.[bags]'")

from drives import write_video

from anomseg_ros.bags.encoded_image import EncodedImage
from anomseg_ros.bags.pinhole_camera import PinholeCamera
from anomseg_ros.bags.pixels import frame_from_message
from anomseg_ros.bags.read import camera_topic, image_topics, open_bag, read_images
from anomseg_ros.bags.write import BagWriter, write_image_bag, write_labelled_frames
from anomseg_ros.cli import main
from anomseg_ros.errors import BagError, OutputError

RANDOM = np.random.default_rng(3)


def frame(height_px: int = 12, width_px: int = 20) -> np.ndarray:
    return RANDOM.integers(0, 256, (height_px, width_px, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images whose names sort differently as text and as numbers, one of another size."""
    made = tmp_path / "images"
    made.mkdir()
    for name in ("frame10.png", "frame2.png", "frame1.jpg", "frame3.webp"):
        cv2.imwrite(str(made / name), frame(*((8, 10) if "10" in name else (12, 20))))
    (made / "notes.txt").write_text("not an image")
    return made


def pixels(message: Any) -> np.ndarray:
    return np.asarray(message.data).reshape(message.height, message.width, 3)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_images_are_written_in_natural_order_with_stamps(folder: Path, tmp_path: Path, storage: str) -> None:
    output = tmp_path / "deep" / "bag"
    calls: list[tuple[int, int]] = []
    written = write_image_bag(
        folder,
        output,
        4.0,
        storage=storage,
        frame_id="front",
        start_time_s=1000.5,
        progress=lambda _, done, total: calls.append((done, total)),
    )
    assert written == 4 and calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {path.suffix for path in output.iterdir()} == {".yaml", ".mcap" if storage == "mcap" else ".db3"}
    with open_bag(output) as bag:
        assert bag.counts == {"/camera/camera_info": 4, "/camera/image": 4}
        records = list(read_images(bag))
    assert [record.stamp_ns for record in records] == [1_000_500_000_000 + i * 250_000_000 for i in range(4)]
    for record, name in zip(records, ["frame1.jpg", "frame2.png", "frame3.webp", "frame10.png"], strict=True):
        assert record.frame_id == "front" and record.message.encoding == "rgb8"
        np.testing.assert_array_equal(pixels(record.message), cv2.imread(str(folder / name))[..., ::-1])
    assert list(tmp_path.rglob("*.partial")) == []


def test_camera_info_matches_stamp_size_and_field_of_view(folder: Path, tmp_path: Path) -> None:
    write_image_bag(folder, tmp_path / "bag", 10.0, fov_deg=90.0, topic="/car/front/image", start_time_s=5.0)
    with open_bag(tmp_path / "bag") as bag:
        infos = [bag.deserialize(record) for record in bag.raw_messages(["/car/front/camera_info"])]
        images = list(read_images(bag, "/car/front/image"))
    for info, image in zip(infos, images, strict=True):
        assert info.header == image.message.header
        assert (info.width, info.height) == (image.message.width, image.message.height)
        # With 90 degrees the left edge of the image is 45 degrees off the axis: as far out as the focal length.
        assert info.k[0] == info.k[4] == info.p[0] == pytest.approx(info.width / 2)
        assert (info.k[2], info.k[5]) == ((info.width - 1) / 2, (info.height - 1) / 2)
        assert len(info.d) == 5 and not info.d.any() and info.distortion_model == "plumb_bob"


def test_compressed_bag_holds_original_file_bytes(folder: Path, tmp_path: Path) -> None:
    write_image_bag(folder, tmp_path / "bag", 10.0, compressed=True)
    with open_bag(tmp_path / "bag") as bag:
        assert [tuple(topic) for topic in image_topics(bag)] == [
            ("/camera/image/compressed", "sensor_msgs/msg/CompressedImage", 4)
        ]
        messages = [record.message for record in read_images(bag)]
    assert [message.format for message in messages] == ["jpeg", "png", "png", "png"]
    assert messages[0].data.tobytes() == (folder / "frame1.jpg").read_bytes()
    assert messages[1].data.tobytes() == (folder / "frame2.png").read_bytes()
    webp = cv2.imread(str(folder / "frame3.webp"))
    np.testing.assert_array_equal(cv2.imdecode(messages[2].data, cv2.IMREAD_COLOR), webp)


def test_writer_stores_labels_and_camera_info(tmp_path: Path) -> None:
    rgb, labels = frame(), RANDOM.integers(0, 20, (12, 20), np.uint8)
    camera = PinholeCamera(20, 12, 30.0, 31.0, 9.0, 5.0, (0.1, 0.0, 0.0, 0.0, 0.0))
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_frame(7, rgb[:, ::-1], camera, labels[::2])
        writer.write_frame(8, rgb)
    with open_bag(tmp_path / "bag") as bag:
        assert bag.counts == {"/camera/camera_info": 2, "/camera/image": 2, "/camera/ground_truth/labels": 1}
        assert camera_topic(bag) == "/camera/image"
        (label,) = read_images(bag, "/camera/ground_truth/labels")
        assert (label.message.encoding, label.message.step, label.stamp_ns) == ("mono8", 20, 7)
        np.testing.assert_array_equal(label.message.data.reshape(6, 20), labels[::2])
        np.testing.assert_array_equal(pixels(next(read_images(bag)).message), rgb[:, ::-1])
        info = bag.deserialize(next(bag.raw_messages(["/camera/camera_info"])))
        assert (info.k[0], info.k[4], info.k[2], info.k[5], info.d[0]) == (30.0, 31.0, 9.0, 5.0, 0.1)


def test_array_in_compressed_bag_is_encoded_as_jpeg(tmp_path: Path) -> None:
    y, x = np.mgrid[:32, :48]
    rgb = np.stack([x * 5, y * 7, x + y], axis=-1).astype(np.uint8)
    with BagWriter(tmp_path / "bag", compressed=True) as writer:
        writer.write_frame(1, rgb)
    with open_bag(tmp_path / "bag") as bag:
        (record,) = read_images(bag)
    assert record.message.format == "jpeg"
    read = cv2.imdecode(record.message.data, cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(read.astype(int) - rgb).mean() < 3


def test_failed_write_leaves_no_files(folder: Path, tmp_path: Path) -> None:
    (folder / "frame4.jpg").write_bytes((folder / "frame1.jpg").read_bytes()[:-20])
    with pytest.raises(BagError, match=r"frame4\.jpg.*truncated JPEG"):
        write_image_bag(folder, tmp_path / "bag", 10.0)
    (folder / "frame4.jpg").write_bytes(b"text")
    with pytest.raises(BagError, match=r"frame4\.jpg.*not an image"):
        write_image_bag(folder, tmp_path / "bag", 10.0, compressed=True)
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_overwrite_is_required_and_refused_for_other_folders(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "bag"
    write_image_bag(folder, output, 10.0)
    before = (output / "bag.mcap").read_bytes()
    with pytest.raises(BagError, match="exists; choose another output or pass --overwrite"):
        write_image_bag(folder, output, 10.0)
    assert (output / "bag.mcap").read_bytes() == before
    # A failed overwrite keeps the old bag.
    with pytest.raises(BagError, match="cannot be read"):
        write_image_bag([folder / "frame1.jpg", folder / "absent.png"], output, 10.0, overwrite=True)
    assert (output / "bag.mcap").read_bytes() == before
    write_image_bag([folder / "frame1.jpg"], output, 10.0, storage="sqlite3", overwrite=True)
    assert {path.name for path in output.iterdir()} == {"bag.db3", "metadata.yaml"}
    with pytest.raises(BagError, match="not a bag"):
        write_image_bag([folder / "frame1.jpg"], folder, 10.0, overwrite=True)
    assert len(list(folder.glob("frame*"))) == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate_hz": 0.0}, r"rate of 0\.0"),
        ({"rate_hz": float("nan")}, "rate of nan"),
        ({"storage": "sqlite"}, "unknown bag storage 'sqlite'; known: sqlite3"),
        ({"topic": "camera/image"}, "expected an absolute name"),
        ({"fov_deg": 180.0}, r"field of view of 180\.0"),
        ({"images": []}, "no images"),
    ],
)
def test_wrong_option_error_says_what_is_expected(
    folder: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(BagError, match=text):
        write_image_bag(**{"images": folder, "output": tmp_path / "bag", "rate_hz": 1.0, **options})
    assert not (tmp_path / "bag").exists()


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder, text in ((tmp_path, "holds no image"), (tmp_path / "absent", "not a folder")):
        with pytest.raises(BagError, match=text):
            write_image_bag(folder, tmp_path / "bag", 1.0)


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        with pytest.raises(BagError, match=r"expected .* uint8"):
            writer.write_frame(1, frame().astype(np.float32))
        with pytest.raises(BagError, match="labels of shape"):
            writer.write_frame(1, frame(), None, frame())
        with pytest.raises(BagError, match="compressed=True"):
            writer.write_frame(1, EncodedImage(b"", "jpeg", 2, 2))


def test_command_options_are_applied(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anomseg_ros.commands.bag_write import main

    output = tmp_path / "bag"
    arguments = ["--images", str(folder), "--output", str(output), "--fps", "2", "--image-topic", "/front/image"]
    assert main([*arguments, "--storage", "sqlite3", "--frame-id", "front", "--start-time", "3", "--compressed"]) == 0
    assert capsys.readouterr().out == f"{output}: 4 frames on /front/image/compressed, 2.0 s at 2 Hz\n"
    with open_bag(output) as bag:
        records = list(read_images(bag))
    assert [record.stamp_ns for record in records] == [3_000_000_000 + index * 500_000_000 for index in range(4)]
    assert {record.frame_id for record in records} == {"front"} and (output / "bag.db3").is_file()
    with pytest.raises(BagError, match="exists"):
        main(arguments)
    assert main([*arguments, "--overwrite"]) == 0
    with open_bag(output) as bag:
        assert bag.counts == {"/front/camera_info": 4, "/front/image": 4}


@pytest.mark.parametrize("compressed", [False, True])
def test_ground_truth_shares_stamp_and_frame_id_of_image(tmp_path: Path, compressed: bool) -> None:
    class Labelled(NamedTuple):
        image: np.ndarray
        labels: np.ndarray | None
        anomaly: np.ndarray | None

    mask = RANDOM.integers(0, 2, (12, 20), np.uint8)
    frames = [Labelled(frame(), mask + 3, mask), Labelled(frame(), None, mask)]
    with BagWriter(tmp_path / "bag", topic="/front/image", compressed=compressed, frame_id="lens") as writer:
        assert write_labelled_frames(writer, frames, 4.0, 8.0) == 2
        assert "/front/ground_truth/labels" in writer.topics
    with open_bag(tmp_path / "bag") as bag:
        image_topic = "/front/image/compressed" if compressed else "/front/image"
        anomaly = list(read_images(bag, "/front/ground_truth/anomaly"))
        labels = list(read_images(bag, "/front/ground_truth/labels"))
        images = list(read_images(bag, image_topic))
    assert [record.stamp_ns for record in images] == [record.stamp_ns for record in anomaly] == [8 * 10**9, 8250000000]
    assert [record.stamp_ns for record in labels] == [8 * 10**9]
    assert {record.frame_id for record in [*images, *anomaly, *labels]} == {"lens"}
    np.testing.assert_array_equal(labels[0].message.data.reshape(12, 20), mask + 3)
    for record, written in zip(images, frames, strict=True):  # PNG in a compressed bag: nothing is lost
        np.testing.assert_array_equal(frame_from_message(record.message), written.image)


def test_ground_truth_with_wrong_shape_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(BagError, match=r"anomaly of shape \(2, 2\) and dtype float64"),
        BagWriter(tmp_path / "bag") as writer,
    ):
        writer.write_frame(0, frame(), anomaly=np.zeros((2, 2)))  # type: ignore[arg-type]
    assert not (tmp_path / "bag").exists()


@pytest.mark.parametrize("start_s", [-5.0, float("nan"), 1e12, 1e300])
def test_start_time_out_of_range_is_refused(start_s: float, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"start time of .* s; stamps range from 0 to 2147483647 s after 1970"):
        write_image_bag(folder, tmp_path / "bag", 10, start_time_s=start_s)


def test_stamp_out_of_range_is_refused_and_leaves_no_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"at 1e-12 Hz frame 1 is 1e\+12 s after the first; .*: give a higher rate"):
        write_image_bag(folder, tmp_path / "bags" / "bag", 1e-12)
    assert list((tmp_path / "bags").iterdir()) == []


@pytest.mark.parametrize(("storage", "name"), [("sqlite3", "drive#2"), ("sqlite3", "100%"), ("mcap", "fahrt \udcfc")])
def test_impossible_bag_names_are_refused(storage: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"choose (mcap|another name)"):
        BagWriter(tmp_path / name, storage=storage)


def test_unwritable_output_path_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write '.*a_file/bag': Not a directory"):
        write_image_bag(folder, tmp_path / "a_file" / "bag", 10)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_full_disk_gives_one_error_and_leaves_no_files(storage: str, tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from anomseg_ros.bags.write import BagWriter
from anomseg_ros.errors import BagError, OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
try:
    with BagWriter(Path(sys.argv[1]), storage=sys.argv[2]) as bag:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        for number in range(10):
            bag.write_frame(number, noise)
except BagError as error:
    print(error)
"""
    words = [sys.executable, "-c", code, str(tmp_path / "bag"), storage]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.startswith(f"cannot write the bag '{tmp_path / 'bag'}': ") and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_of_a_video_become_a_bag(tmp_path: Path, compressed: bool) -> None:
    video = write_video(tmp_path / "drive.avi", 6)
    assert write_image_bag(video, tmp_path / "bag", 17.0, compressed=compressed, start_time_s=100.0) == 6
    with open_bag(tmp_path / "bag") as bag:
        records = list(read_images(bag))
    assert [record.stamp_ns for record in records] == [100 * 10**9 + round(i * 1e9 / 17) for i in range(6)]
    means = [frame_from_message(record.message).mean() for record in records]
    assert means == pytest.approx([0, 4, 8, 12, 16, 20], abs=3)
    assert "jpeg" in records[0].message.format if compressed else records[0].message.encoding == "rgb8"


@pytest.mark.parametrize(("words", "rate"), [((), "20"), (("--fps", "5"), "5")])
def test_bag_of_a_video_has_its_rate_unless_told(
    words: tuple[str, ...], rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "drive.avi", 4, 20)
    assert main(["bag", "write", "--images", str(video), "--output", str(tmp_path / "bag"), *words]) == 0
    assert f"4 frames on /camera/image, {4 / int(rate):.1f} s at {rate} Hz" in capsys.readouterr().out
