"""The adapter of "Dual-stream adapters for anomaly segmentation": anomaly prior, refinement, and merge of the streams.

It follows ViT-Adapter (Chen et al., ICLR 2023, arXiv 2205.08534; structure and constants: ops/ and
segmentation/mmseg_custom/models/backbones/adapter_modules.py of github.com/czczup/ViT-Adapter). Convolutions give maps
at 1/4 to 1/32 (spatial prior). Those at 1/8, 1/16 and 1/32 plus learnt vectors per level become the tokens of each
stream (equations 4 and 5): one stream for known objects, one for all others. After each group of the encoder's blocks,
an extractor per stream refines its tokens by deformable attention to the encoder's (equations 6 and 7):

    F <- F + Attention(LN F, LN F_encoder)        F <- F + FFN(LN F)

FFN is ViT-Adapter's, with a depthwise convolution on each map. ViT-Adapter's two further extractors follow in the last
group: the large adapter's stated parameters (27.7 M; 27,344,448 here) need them. The paper leaves the merge open. The
large decoder's parameters tell that the merged maps have the width of one stream; here streams are added. As in
ViT-Adapter, the map at 1/4 is that of the prior plus an enlarged 1/8, the encoder's maps are added to the four, and
each is normalised.

Deviations from ViT-Adapter: there is no stochastic depth. Plain vision transformers keep their class token, too. The
encoder's last norm, which the paper's parameters include, is applied to the last group's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError, unknown_name
from anomseg_ros.networks.deformable_attention import DeformableAttention, Sizes, as_maps, as_tokens, centres
from anomseg_ros.networks.encoder_groups import PATCH_PX, GroupedEncoder
from anomseg_ros.networks.layers import conv_norm_relu
from anomseg_ros.networks.vision_transformer import EPSILON

LEVELS = 3
MAPS = 4
FFN_SHARE = 0.25
FURTHER_EXTRACTORS = 2
MERGES = ("sum", "concat")
SCALES = (4.0, 2.0, 1.0, 0.5)
"""Of the encoder's grid, for the maps at 1/4 to 1/32."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What an adapter consists of."""

    streams: int = 2  # 1 for ViT-Adapter; 0 for the encoder's maps alone, resized, or a side adapter
    heads: int = 2  # of deformable attention
    ratio: float = 1.0  # of its values' channels to the encoder's
    prior_width: int = 16  # channels of the first convolutions
    prior: bool = True  # without the anomaly prior, streams start from the embedded patches, resized
    refinement: bool = True  # whether there are extractors
    injector: bool = False  # whether the encoder's tokens are changed before each group, as in ViT-Adapter
    merge: str = "sum"  # or "concat" and a linear layer
    side_depth: int = 0  # blocks of a side adapter (side_adapter.py); 0 for none
    side_width: int = 240  # its channels
    side_heads: int = 6  # heads of its attention

    def __post_init__(self) -> None:
        if self.streams not in (0, 1, 2):
            raise ConfigError(f"streams is {self.streams!r}; expected 0, 1 or 2")
        if self.merge not in MERGES:
            raise ConfigError(unknown_name("merge", self.merge, MERGES))
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"ratio is {self.ratio!r}; expected a share above 0, 1 at most")
        if self.prior_width < 1:
            raise ConfigError(f"prior_width is {self.prior_width!r}; expected 1 or more")
        if self.side_depth < 0:
            raise ConfigError(f"side_depth is {self.side_depth!r}; expected 0 or more")
        if self.side_depth and self.streams:
            raise ConfigError(f"side_depth is for streams=0, and streams is {self.streams}")
        if self.side_heads < 1 or self.side_width < 1 or self.side_width % self.side_heads:
            raise ConfigError(f"side_heads is {self.side_heads!r}; expected a divisor of side_width {self.side_width}")


class SpatialPrior(nn.Module):
    """Images (N, 3, H, W) -> maps (N, D, h, w) at 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm_relu(3, inner, 3, stride=2),
            conv_norm_relu(inner, inner, 3),
            conv_norm_relu(inner, inner, 3),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = (inner, 2 * inner, 4 * inner, 4 * inner)
        self.halve = nn.ModuleList(conv_norm_relu(before, after, 3, stride=2) for before, after in pairwise(widths))
        self.proj = nn.ModuleList(nn.Conv2d(one, width, 1) for one in widths)
        _draw(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for layer in self.halve:
            maps.append(layer(maps[-1]))
        return [layer(one) for layer, one in zip(self.proj, maps, strict=True)]


class _Perceptron(nn.Module):
    """ViT-Adapter's ConvFFN: (N, S, D) tokens of maps -> (N, S, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(width * FFN_SHARE)
        self.fc1 = nn.Linear(width, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = nn.Linear(inner, width)
        _draw(self)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        mixed = as_tokens([self.depthwise(one) for one in as_maps(self.fc1(tokens), sizes)])
        result: Tensor = self.fc2(F.gelu(mixed))
        return result


class Extractor(nn.Module):
    """Tokens (N, S, D) of a stream, refined by an encoder's tokens (N, T, D): -> (N, S, D)."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, EPSILON)
        self.feature_norm = nn.LayerNorm(width, EPSILON)
        self.attn = DeformableAttention(width, heads, 1, ratio)
        self.ffn_norm = nn.LayerNorm(width, EPSILON)
        self.ffn = _Perceptron(width)

    def forward(self, tokens: Tensor, sizes: Sizes, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """sizes: of the stream's maps. grid: size of the encoder's map."""
        places = centres(sizes, tokens)
        tokens = tokens + self.attn(self.query_norm(tokens), places, self.feature_norm(features), [grid])
        refined: Tensor = tokens + self.ffn(self.ffn_norm(tokens), sizes)
        return refined


class Injector(nn.Module):
    """An encoder's tokens (N, T, D), changed by those of a stream (N, S, D): -> (N, T, D). At the start, by nothing."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width, EPSILON)
        self.feature_norm = nn.LayerNorm(width, EPSILON)
        self.attn = DeformableAttention(width, heads, LEVELS, ratio)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor, grid: tuple[int, int], tokens: Tensor, sizes: Sizes) -> Tensor:
        places = centres([grid], features)
        change: Tensor = self.attn(self.query_norm(features), places, self.feature_norm(tokens), sizes)
        return features + self.gamma * change


class Adapter(nn.Module):
    """See the module."""

    def __init__(self, width: int, groups: int, config: AdapterConfig) -> None:
        """width: D, of the encoder. groups: number of groups of its blocks."""
        super().__init__()
        self.config = config
        streams, size = config.streams, (width, config.heads, config.ratio)
        if streams and config.prior:
            self.prior = SpatialPrior(width, config.prior_width)
            self.level_embed = nn.Parameter(torch.randn(streams, LEVELS, width))
        counts = [1] * (groups - 1) + [1 + FURTHER_EXTRACTORS] if config.refinement else []
        self.extractors = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(Extractor(*size) for _ in range(count)) for count in counts)
            for _ in range(streams)
        )
        self.injectors = nn.ModuleList(Injector(*size) for _ in range(groups if streams and config.injector else 0))
        if streams == 2 and config.merge == "concat":
            self.merge = nn.Linear(2 * width, width)
        if streams:
            self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
            _draw(self.up)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(MAPS))

    def forward(self, encoder: GroupedEncoder, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return four maps (N, D, h, w) at 1/4 to 1/32, and three (N, S D, h, w) at 1/8 to 1/32 of the S streams.

        Without streams, the latter are the encoder's. images: normalised, (N, 3, H, W), of multiples of 32.
        """
        grid = images.shape[2] // PATCH_PX, images.shape[3] // PATCH_PX
        features = encoder.embed(images)
        start = self._start(images, features, grid) if self.config.streams else []
        sizes = [(one.shape[2], one.shape[3]) for one in start[1:]]
        streams, maps = [self._tokens(start[1:], stream) for stream in range(self.config.streams)], []
        for group in range(encoder.groups):
            if self.injectors:
                injected = self.injectors[group](features[:, 1:], grid, self._merged(streams), sizes)
                features = torch.cat((features[:, :1], injected), 1)
            features = encoder.run_group(features, group, grid)
            maps += as_maps(features[:, 1:], [grid])
            if self.config.refinement:
                streams = [
                    self._refined(stream, group, tokens, sizes, features[:, 1:], grid)
                    for stream, tokens in enumerate(streams)
                ]
        encoded = four_levels(maps)
        if not streams:
            return [norm(one) for norm, one in zip(self.norms, encoded, strict=True)], encoded[1:]
        levels = as_maps(self._merged(streams), sizes)
        joined = [self.up(levels[0]) + start[0], *levels]
        result = [norm(one + other) for norm, one, other in zip(self.norms, joined, encoded, strict=True)]
        by_stream = zip(*(as_maps(tokens, sizes) for tokens in streams), strict=True)
        return result, [torch.cat(one, 1) for one in by_stream]

    def _start(self, images: Tensor, features: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Return the four maps that all streams start from, of images and their embedded patches."""
        if self.config.prior:
            prior: list[Tensor] = self.prior(images)
            return prior
        return pyramid(as_maps(features[:, 1:], [grid]) * MAPS)

    def _tokens(self, levels: Sequence[Tensor], stream: int) -> Tensor:
        """Return the first tokens of a stream (equations 4 and 5)."""
        if self.config.prior:
            vectors = self.level_embed[stream]
            levels = [one + vectors[level][:, None, None] for level, one in enumerate(levels)]
        return as_tokens(levels)

    def _refined(
        self, stream: int, group: int, tokens: Tensor, sizes: Sizes, features: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Return the tokens of a stream after its extractors of a group."""
        for extractor in self.get_submodule(f"extractors.{stream}.{group}").children():
            tokens = extractor(tokens, sizes, features, grid)
        return tokens

    def _merged(self, streams: Sequence[Tensor]) -> Tensor:
        if len(streams) == 2 and self.config.merge == "concat":
            merged: Tensor = self.merge(torch.cat(list(streams), 2))
            return merged
        return torch.stack(list(streams)).sum(0) if len(streams) > 1 else streams[0]


def four_levels(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return an encoder's maps after its groups, one or more, as four at 1/4 to 1/32: early groups give large maps."""
    return pyramid([maps[-(-(level + 1) * len(maps) // MAPS) - 1] for level in range(MAPS)])


def pyramid(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return four maps at 1/16, resized to 1/4, 1/8, 1/16 and 1/32."""
    return [
        one if scale == 1 else F.interpolate(one, scale_factor=scale, mode="bilinear", align_corners=False)
        for one, scale in zip(maps, SCALES, strict=True)
    ]


def _draw(module: nn.Module) -> None:
    """Draw initial weights as ViT-Adapter does."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, std=(2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
