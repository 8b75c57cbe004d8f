"""ERFNet: Efficient Residual Factorized ConvNet (Romera et al., IEEE T-ITS 2018).

Three downsampler blocks (1/2, 1/4, 1/8), residual blocks whose 3x3 convolutions are factorized into 3x1 and 1x3
("non-bottleneck-1D"), and a decoder of transposed convolutions. Layers, channels and dilations: Table I of the paper;
dropout 0.03 at 1/4, 0.3 at 1/8 and none in the decoder, and the normalisation's epsilon 1e-3, as in the author's
code, github.com/Eromera/erfnet_pytorch, train/erfnet.py.

Parameters: 2.064 M with 19 and with 20 classes (the paper's 2.06 M). Multiply-adds at 512x1024 with 20 classes:
26.61 G; Table 5 of the MiDE-Net report says 26.74 G, which counts 2 more operations per value that a batch
normalisation puts out.

Images (N, 3, H, W) with H and W multiples of 8 give logits (N, C, H, W): the last layer is a learnt (transposed)
convolution, so there is no lower resolution at which classifying would be equal.

Deviation: the encoder's own classifier, which the author uses only while pretraining the encoder, is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anomseg_ros.networks.base import EnlargingSegmentationNetwork, SegmentationNetwork

NORM_EPSILON = 1e-3


class _Downsampler(nn.Module):
    """(N, C, H, W) -> (N, D, H / 2, W / 2): a strided convolution beside max-pooling, as in ENet's initial block."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(out_channels, eps=NORM_EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        joined = torch.cat((self.conv(features), self.pool(features)), 1)
        return torch.relu(self.norm(joined))


class _Residual(nn.Module):
    """Non-bottleneck-1D: (N, C, H, W) -> (N, C, H, W); only the second pair of convolutions is dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        rate = dilation
        self.vertical1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.horizontal1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm1 = nn.BatchNorm2d(channels, eps=NORM_EPSILON)
        self.vertical2 = nn.Conv2d(channels, channels, (3, 1), padding=(rate, 0), dilation=(rate, 1))
        self.horizontal2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, rate), dilation=(1, rate))
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
        _Downsampler(3, 16),
        _Downsampler(16, 64),
        *(_Residual(64, dropout=0.03, dilation=1) for _ in range(5)),
        _Downsampler(64, 128),
        *(_Residual(128, dropout=0.3, dilation=rate) for rate in (2, 4, 8, 16, 2, 4, 8, 16)),
    )


class ERFNet(EnlargingSegmentationNetwork):
    """ERFNet with its decoder."""

    name = "erfnet"
    stride = 8
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

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.decoder(self.encoder(images))
        return features


class ERFNetEncoder(SegmentationNetwork):
    """ERFNet's encoder with a classifier of its own, at an eighth of the size: what the paper trains first (IV-B)."""

    name = "erfnet_encoder"
    stride = 8
    class_parameter = ("classifier.weight", 0)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.encoder = _encoder()
        self.classifier = nn.Conv2d(128, num_classes, 1)

    def classify(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.encoder(images))
        return logits
