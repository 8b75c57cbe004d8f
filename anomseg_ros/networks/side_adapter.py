"""The side adapter, a baseline of "Dual-stream adapters for anomaly segmentation" (tables 1 and 2).

Side Adapter Network for Open-Vocabulary Semantic Segmentation (Xu et al., CVPR 2023, arXiv 2302.12242; structure and
constants: san/model/side_adapter and san/config.py of github.com/MendelXu/SAN): a narrow vision transformer with
patches and positions of its own runs beside the frozen one. Before each of its first blocks, it takes up the tokens of
the frozen one by a norm and a linear layer: those of the embedded patches, and those after every group of blocks but
the last. With twelve blocks in four groups, these are the published ones (0, 3, 6 and 9). Positions are added before
every block.

Deviations, for a decoder that all baselines share: there are no queries and no biases of the frozen attention. As for
the other adapters, a linear layer gives the tokens the encoder's width, they are resized to maps at 1/4 to 1/32, the
encoder's maps are added, and each sum is normalised. The paper leaves all of this open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomseg_ros.errors import ConfigError
from anomseg_ros.networks.deformable_attention import as_maps
from anomseg_ros.networks.dual_stream import MAPS, AdapterConfig, four_levels, pyramid
from anomseg_ros.networks.encoder_groups import PATCH_PX, GroupedEncoder
from anomseg_ros.networks.vision_transformer import EPSILON, Block, resampled_positions


class SideAdapter(nn.Module):
    """See the module."""

    def __init__(self, width: int, groups: int, grid: tuple[int, int], config: AdapterConfig) -> None:
        """Build a fresh adapter.

        Args:
            width: D, of the encoder.
            groups: number of groups of its blocks.
            grid: rows and columns of patches that positions are learnt for.
            config: `side_depth`, `side_width` and `side_heads` count.

        Raises:
            ConfigError: there are fewer blocks than groups.
        """
        super().__init__()
        if config.side_depth < groups:
            raise ConfigError(f"side_depth is {config.side_depth}; expected {groups} or more, a block for each group")
        self.config, self.grid, inner = config, grid, config.side_width
        self.patch_embed = nn.Conv2d(3, inner, PATCH_PX, stride=PATCH_PX)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], inner))
        self.fusions = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width, EPSILON), nn.Linear(width, inner)) for _ in range(groups)
        )
        head_width = inner // config.side_heads
        self.blocks = nn.ModuleList(
            Block(inner, layer_scale=False, head_width=head_width) for _ in range(config.side_depth)
        )
        self.proj = nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(MAPS))

    def forward(self, encoder: GroupedEncoder, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return four maps (N, D, h, w) at 1/4 to 1/32, and the adapter's own ones at 1/8 to 1/32.

        images: normalised, (N, 3, H, W), of multiples of 32.
        """
        grid = images.shape[2] // PATCH_PX, images.shape[3] // PATCH_PX
        positions = resampled_positions(self.pos_embed, self.grid, grid).flatten(2).transpose(1, 2)
        tokens, features = self.patch_embed(images).flatten(2).transpose(1, 2), encoder.embed(images)
        maps: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index < encoder.groups:
                tokens = tokens + self.fusions[index](features[:, 1:])
                features = encoder.run_group(features, index, grid)
                maps += as_maps(features[:, 1:], [grid])
            tokens = block(tokens + positions)
        own = pyramid(as_maps(self.proj(tokens), [grid]) * MAPS)
        sums = (one + encoded for one, encoded in zip(own, four_levels(maps), strict=True))
        return [norm(one) for norm, one in zip(self.norms, sums, strict=True)], own[1:]
