"""A base class for datasets that change parts of another dataset."""

from __future__ import annotations

from typing import Any

from anomseg_ros.datasets.dataset import Dataset


class WrappedDataset:
    """Passes everything that is not overridden to the inner dataset; use cast(Dataset, ...) for its type."""

    def __init__(self, dataset: Dataset) -> None:
        """Wrap a dataset, which is shared."""
        self._dataset = dataset

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner dataset."""
        if name.startswith("_"):  # missing while an instance is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)
