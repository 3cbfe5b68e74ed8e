"""Sensorium composes frozen, separately pretrained models into one multimodal assistant.

import sensorium
model = sensorium.load("mini")
print(model.ask("What is in this picture?", image="apple.jpg"))
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; typing itself takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from sensorium.answer import Answer, Stream
    from sensorium.composition import Composition
    from sensorium.errors import SensoriumError, UsageError
    from sensorium.media import Audio, Image, load_audio, load_image
    from sensorium.messages import Message
    from sensorium.model import Model, load

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Audio",
    "Composition",
    "Image",
    "Message",
    "Model",
    "SensoriumError",
    "Stream",
    "UsageError",
    "load",
    "load_audio",
    "load_image",
]

# Imported on first use: `import sensorium` and `sensorium --help` stay fast.
_HOMES = {
    "Answer": "sensorium.answer",
    "Audio": "sensorium.media",
    "Composition": "sensorium.composition",
    "Image": "sensorium.media",
    "Message": "sensorium.messages",
    "Model": "sensorium.model",
    "SensoriumError": "sensorium.errors",
    "Stream": "sensorium.answer",
    "UsageError": "sensorium.errors",
    "load": "sensorium.model",
    "load_audio": "sensorium.media",
    "load_image": "sensorium.media",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
