"""Dual-stream adapters for anomaly segmentation (under review, no code published) on a frozen vision transformer.

An adapter (dual_stream.py) beside a frozen vision transformer (encoder_groups.py) gives four maps, from which the
decoder of Mask2Former (mask2former.py) predicts masks and classes. The encoder is frozen by the recipes'
`network.frozen: [encoder]`; without it, the network is fine-tuned as a whole. The paper's variants and baselines are
options:

    streams 2                               dual-stream adapters
    streams 2, prior / refinement false     table 5a
    streams 2, groups 1, 2, 4, 6            table 5b
    streams 2, injector true                table 6, read literally
    streams 1, injector true                ViT-Adapter; its row is that of "with injector" in table 6
    streams 0, side_depth 8                 side adapter (side_adapter.py)
    streams 0, nothing frozen               full fine-tuning

SIZES has the paper's two sizes. The large one has the parameters that the paper states: 303.3 M of the encoder (303.4 M
with BEiT's biases), 27.34 M (27.7 M stated) of the adapter, 104.94 M of the decoder. That decoder has one layer with
masked attention: Mask2Former counts the prediction before the first layer, so that the paper's two layers are one. Of
the tiny size, the encoder has the stated 5.52 M. The adapter has 2.62 M (2.4 M stated), the decoder 19.71 M (20.6 M).
The default network is a small one, for tests.

Images (N, 3, H, W) with H and W multiples of 32 give Q masks at H / 4, W / 4 and the classes of the queries.
`streams_8`, `streams_16` and `streams_32` are the maps of both streams one behind the other, the known one first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from torch import Tensor

from anomseg_ros.networks.dual_stream import Adapter, AdapterConfig
from anomseg_ros.networks.encoder_groups import GroupedEncoder, resampled_weights
from anomseg_ros.networks.mask2former import PixelDecoder, QueryDecoder
from anomseg_ros.networks.network import SegmentationNetwork, StagedMaskNetwork
from anomseg_ros.networks.prediction import MaskPrediction
from anomseg_ros.networks.side_adapter import SideAdapter
from anomseg_ros.networks.vision_transformer import resampled_positions

SIDE_POSITIONS = "adapter.pos_embed"
STREAM_FEATURES = ("streams_8", "streams_16", "streams_32")
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": {
            **{"encoder": "vit", "width": 192, "depth": 12, "grid": (14, 14)},
            **{"heads": 6, "prior_width": 64, "decoder_width": 256, "decoder_heads": 8},
            **{"pixel_layers": 6, "pixel_inner": 1024, "decoder_layers": 9, "decoder_inner": 2048, "queries": 100},
        },
        "large": {
            **{"encoder": "beit", "width": 1024, "depth": 24, "grid": (14, 14)},
            **{"heads": 16, "ratio": 0.5, "prior_width": 64, "decoder_width": 1024, "decoder_heads": 32},
            **{"pixel_layers": 6, "pixel_inner": 4096, "decoder_layers": 1, "decoder_inner": 4096, "queries": 100},
        },
    }
)
"""The paper's sizes as constructor arguments."""


class DualStreamAdapter(StagedMaskNetwork):
    """See the module."""

    name = "dual_stream_adapter"
    stride = 32
    feature_names = (*STREAM_FEATURES, "masks")
    kind = MaskPrediction
    class_parameter = ("query_decoder.class_head.weight", 0)
    encoder_parts = ("encoder.",)
    anneals_masks = False

    def __init__(
        self,
        num_classes: int,
        encoder: str = "vit",
        width: int = 64,
        depth: int = 4,
        grid: Sequence[int] = (8, 16),
        groups: int = 4,
        decoder_width: int = 64,
        decoder_heads: int = 2,
        pixel_layers: int = 2,
        pixel_inner: int = 128,
        decoder_layers: int = 3,
        decoder_inner: int = 128,
        queries: int = 20,
        **adapter: Any,
    ) -> None:
        """Build a fresh network; SIZES has the arguments of the paper's.

        Args:
            num_classes: number of classes without "no object".
            encoder: "vit" or "beit".
            width: channels of the encoder's tokens, a multiple of 64.
            depth: number of the encoder's blocks.
            grid: rows and columns of patches that positions are learnt for.
            groups: number of groups of blocks, a divisor of `depth`.
            decoder_width: channels of the decoder, a multiple of 32.
            decoder_heads: heads of the decoder's attention.
            pixel_layers: layers of deformable attention in the decoder.
            pixel_inner: channels inside their perceptrons.
            decoder_layers: layers with masked attention.
            decoder_inner: channels inside their perceptrons.
            queries: number of masks.
            adapter: fields of AdapterConfig; TypeError for others.

        Raises:
            ConfigError: an option is out of range.
        """
        super().__init__(num_classes)
        self._options: dict[str, Any] = {"encoder": encoder, "width": width, "depth": depth, "groups": groups}
        self._options |= {"decoder_width": decoder_width, "decoder_heads": decoder_heads, "queries": queries}
        self._options |= {"pixel_layers": pixel_layers, "pixel_inner": pixel_inner}
        self._options |= {"decoder_layers": decoder_layers, "decoder_inner": decoder_inner}
        self.encoder = GroupedEncoder(encoder, width, depth, grid, groups)
        self.adapter = _adapter(width, groups, self.grid, AdapterConfig(**adapter))
        self.pixel_decoder = PixelDecoder(width, decoder_width, decoder_heads, pixel_layers, pixel_inner)
        self.query_decoder = QueryDecoder(
            num_classes, decoder_width, decoder_heads, decoder_layers, decoder_inner, queries
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches that positions are learnt for."""
        return self.encoder.grid

    @property
    def streams(self) -> int:
        """Number of the adapter's streams."""
        return self.adapter.config.streams

    @property
    def stages(self) -> int:
        return len(self.query_decoder.layers)

    def options(self) -> dict[str, Any]:
        return {**self._options, **asdict(self.adapter.config), "grid": list(self.grid)}

    @classmethod
    def class_count(cls, outputs: int, options: Mapping[str, Any]) -> int:
        return outputs - 1

    def weights_of(self, source: SegmentationNetwork) -> dict[str, Tensor]:
        weights = source.state_dict()
        if isinstance(source, DualStreamAdapter) and source.grid != self.grid:
            resampled_weights(weights, "encoder.", source.grid, self.grid)
            if SIDE_POSITIONS in weights:
                positions = resampled_positions(weights[SIDE_POSITIONS], source.grid, self.grid)
                weights[SIDE_POSITIONS] = positions.flatten(2).transpose(1, 2)
        return weights

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        features, queries = self._run(images)
        return {**features, "queries": queries[-1]}

    def decide(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.query_decoder.decide(features["queries"], features["masks"])

    def compute_stages(
        self, images: Tensor, masked: Sequence[float], features: Sequence[str] = ()
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        found, queries = self._run(images)
        stages = [self.query_decoder.decide(one, found["masks"]) for one in queries]
        return stages, {name: found[name] for name in features}

    def _run(self, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the feature maps by name, and the queries before each layer and after the last."""
        maps, streams = self.adapter(self.encoder, images)
        masks, levels = self.pixel_decoder(maps)
        named = dict(zip(STREAM_FEATURES, streams, strict=True))
        return {**named, "masks": masks}, self.query_decoder(masks, levels)


def _adapter(width: int, groups: int, grid: tuple[int, int], config: AdapterConfig) -> Adapter | SideAdapter:
    """Return the adapter that a configuration asks for."""
    return SideAdapter(width, groups, grid, config) if config.side_depth else Adapter(width, groups, config)
