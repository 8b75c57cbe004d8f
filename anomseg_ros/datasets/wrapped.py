"""A dataset that is another one but for what a subclass changes."""

from __future__ import annotations

from typing import Any

from anomseg_ros.datasets.base import Dataset


class WrappedDataset:
    """Everything that is not overridden is the inner dataset's; say cast(Dataset, ...) where one is expected."""

    def __init__(self, dataset: Dataset) -> None:
        """Wrap a dataset, which is shared."""
        self._dataset = dataset

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner dataset."""
        if name.startswith("_"):  # not there yet while an instance is being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)
