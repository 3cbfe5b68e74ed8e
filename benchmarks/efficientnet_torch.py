"""EfficientNet-Lite as a torch module, for the peers of `train.py`: the network and the weights of `encoders`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.encoders.efficientnet_lite_graph import HEAD_DIM, MEAN, STD, blocks
from sensorium.encoders.pth import read_pth


class Conv(nn.Module):
    """Convolution with its batch norm folded in, then ReLU6 if asked for; TensorFlow's padding."""

    def __init__(
        self, state: Mapping[str, np.ndarray], name: str, norm: str, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        weight = torch.tensor(np.array(state[f"{name}.weight"]))
        gain, bias, mean, variance = (
            torch.tensor(np.array(state[f"{norm}.{part}"]))
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / (variance + 1e-3).sqrt()
        self.weight, self.bias = nn.Parameter(weight * factor[:, None, None, None]), nn.Parameter(bias - mean * factor)
        self.stride, self.groups, self.relu = stride, groups, relu
        total = weight.shape[-1] - stride
        self.pads = (total // 2, total - total // 2)

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.pads
        if before != after:
            x, before = F.pad(x, (before, after, before, after)), 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, before, 1, self.groups)
        return F.relu6(x) if self.relu else x


class EfficientNet(nn.Module):
    """uint8 [B, side, side, 3] -> features [B, cells, 1280] in the dtype of the weights."""

    def __init__(self, variant: int, weights: Path) -> None:
        super().__init__()
        state = read_pth(weights)
        self.stem = Conv(state, "_conv_stem", "_bn0", stride=2)
        self.blocks, self.residual = nn.ModuleList(), []
        for index, block in enumerate(blocks(variant)):
            name = f"_blocks.{index}."
            layers = [Conv(state, name + "_expand_conv", name + "_bn0")] if block.expansion != 1 else []
            layers.append(Conv(state, name + "_depthwise_conv", name + "_bn1", block.stride, block.hidden))
            layers.append(Conv(state, name + "_project_conv", name + "_bn2", relu=False))
            self.blocks.append(nn.Sequential(*layers))
            self.residual.append(block.residual)
        self.head = Conv(state, "_conv_head", "_bn1")

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.permute(0, 3, 1, 2).to(self.stem.weight.dtype) - MEAN) / STD  # channels last, as it lies in memory
        x = self.stem(x)
        for block, residual in zip(self.blocks, self.residual):
            x = block(x) + x if residual else block(x)
        return self.head(x).permute(0, 2, 3, 1).reshape(len(x), -1, HEAD_DIM)
