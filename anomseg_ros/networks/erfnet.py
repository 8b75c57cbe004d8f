"""ERFNet: Efficient Residual Factorized ConvNet (Romera et al., IEEE T-ITS 2018).

Three downsampler blocks (1/2, 1/4, 1/8), residual blocks whose 3x3 convolutions are factorized into 3x1 and 1x3
("non-bottleneck-1D"), and a decoder of transposed convolutions. Layers, channels and dilations are those of the
paper's Table I. Dropout (0.03 at 1/4, 0.3 at 1/8, none in the decoder) and the normalisation's epsilon, 1e-3, are those
of the author's code, github.com/Eromera/erfnet_pytorch, train/erfnet.py.

Parameters: 2.064 M with 19 and with 20 classes (the paper's 2.06 M). Multiply-adds at 512x1024 with 20 classes:
26.61 G; Table 5 of the MiDE-Net report says 26.74 G, which counts 2 more operations per output value of a batch
normalisation.

Images (N, 3, H, W) with H and W multiples of 8 give logits (N, C, H, W): the last layer is a learnt (transposed)
convolution, so classifying at a lower resolution would not be equal.

Deviation: the encoder's own classifier, which the author uses only to pretrain the encoder, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomseg_ros.networks.layers import Downsampler
from anomseg_ros.networks.network import SegmentationNetwork

NORM_EPSILON = 1e-3


def _downsampler(in_channels: int, out_channels: int) -> Downsampler:
    return Downsampler(in_channels, out_channels, bias=True, norm_epsilon=NORM_EPSILON)


class _Residual(nn.Module):
    """Non-bottleneck-1D: (N, C, H, W) -> (N, C, H, W); only the second pair of convolutions is dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        self.vertical1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.horizontal1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm1 = nn.BatchNorm2d(channels, eps=NORM_EPSILON)
        self.vertical2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.horizontal2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.norm2 = nn.BatchNorm2d(channels, eps=NORM_EPSILON)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor) -> Tensor:
        residual = torch.relu(self.vertical1(features))
        residual = torch.relu(self.norm1(self.horizontal1(residual)))
        residual = torch.relu(self.vertical2(residual))
        residual = self.dropout(self.norm2(self.horizontal2(residual)))
        return torch.relu(features + residual)


class _Upsampler(nn.Module):
    """(N, C, H, W) -> (N, D, 2 H, 2 W) by a transposed convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(features)))


def _encoder() -> nn.Sequential:
    return nn.Sequential(
        _downsampler(3, 16),
        _downsampler(16, 64),
        *(_Residual(64, dropout=0.03, dilation=1) for _ in range(5)),
        _downsampler(64, 128),
        *(_Residual(128, dropout=0.3, dilation=rate) for rate in (2, 4, 8, 16, 2, 4, 8, 16)),
    )


class ERFNet(SegmentationNetwork):
    """ERFNet with its decoder."""

    name = "erfnet"
    stride = 8
    feature_names = ("encoder", "decoder")
    class_parameter = ("classifier.weight", 1)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = _encoder()
        self.decoder = nn.Sequential(
            _Upsampler(128, 64),
            *(_Residual(64, dropout=0.0, dilation=1) for _ in range(2)),
            _Upsampler(64, 16),
            *(_Residual(16, dropout=0.0, dilation=1) for _ in range(2)),
        )
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        encoded = self.encoder(images)
        return {"encoder": encoded, "decoder": self.decoder(encoded)}


class ERFNetEncoder(SegmentationNetwork):
    """ERFNet's encoder with its own classifier at an eighth of the size, which the paper trains first (IV-B)."""

    name = "erfnet_encoder"
    stride = 8
    feature_names = ("encoder",)
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = _encoder()
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        return {"encoder": self.encoder(images)}
