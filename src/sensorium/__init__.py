"""Sensorium composes frozen, separately pretrained models into one multimodal assistant."""

from __future__ import annotations

__version__ = "0.1.0"
