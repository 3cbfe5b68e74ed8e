"""EfficientNet-Lite in torch: pictures to a grid of features. The architecture is that of `efficientnet_lite_graph`.

Its batch norms stay in inference mode: their gain and bias learn, but what they normalise by remains the published
statistics. Those of a batch of some dozen pictures would be noise; they would tie each picture to its neighbours, and
a step to how it is divided among processes; and the graph that runs afterwards folds fixed statistics in, so what is
trained is what runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.encoders import efficientnet_lite_graph as graph
from sensorium.encoders.tensors import read_tensors


class Norm(nn.BatchNorm2d):
    """A batch norm that never leaves inference mode."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=graph.BATCH_NORM_EPSILON)
        self.eval()

    def train(self, mode: bool = True) -> Norm:
        return super().train(False)


class Conv(nn.Conv2d):
    """TensorFlow's padding: what is odd goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        total = kernel - stride
        self.pads = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads) if self.pads[1] else x)


class Bottleneck(nn.Module):
    """Expand, depthwise, project; the parts have the published names."""

    def __init__(self, block: graph.Block) -> None:
        super().__init__()
        self.residual, self.expands = block.residual, block.expansion != 1
        if self.expands:
            self._expand_conv, self._bn0 = Conv(block.inputs, block.hidden), Norm(block.hidden)
        self._depthwise_conv = Conv(block.hidden, block.hidden, block.kernel, block.stride, block.hidden)
        self._bn1 = Norm(block.hidden)
        self._project_conv, self._bn2 = Conv(block.hidden, block.outputs), Norm(block.outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """uint8 [B, side, side, 3] -> [B, cells, 1280]; raises SensoriumError for a file that holds no such weights.

    The classifier is carried along as it was published and never trained.
    """

    def __init__(self, variant: int, weights: Path) -> None:
        super().__init__()
        blocks = graph.blocks(variant)
        self.variant = variant
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2), Norm(32)
        self._blocks = nn.ModuleList(map(Bottleneck, blocks))
        self._conv_head, self._bn1 = Conv(blocks[-1].outputs, graph.HEAD_DIM), Norm(graph.HEAD_DIM)
        self._fc = nn.Linear(graph.HEAD_DIM, graph.CLASSES).requires_grad_(False)
        state, own = read_tensors(weights), self.state_dict()
        for name in graph.weight_names(variant):
            with torch.no_grad():
                own[name].copy_(torch.from_numpy(np.array(graph.tensor(state, name, tuple(own[name].shape)))))

    def forward(self, pixels: Tensor) -> Tensor:
        x = (pixels.permute(0, 3, 1, 2).float() - graph.MEAN) / graph.STD
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).flatten(2).transpose(1, 2)

    def published(self) -> dict[str, np.ndarray]:
        """The weights by their published names."""
        own = self.state_dict()
        return {name: own[name].detach().cpu().numpy() for name in graph.weight_names(self.variant)}
