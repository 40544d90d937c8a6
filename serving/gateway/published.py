"""From references to the models that a gateway serves."""

from __future__ import annotations

from pathlib import Path

from models.errors import ConfigError
from models.manifest import FamilyName
from registry import deployment
from serving.runtime.protocol import ServedModel


class Published:
    """What can be served out of a deployment directory; every bundle is opened and verified once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._opened: dict[str, ServedModel] = {}

    def open(self, ref: str) -> ServedModel:
        """Open the model that NAME@alias, NAME/VERSION or a directory means; NotFoundError or BundleError otherwise."""
        if ref not in self._opened:
            name, version, bundle = deployment.resolve(self._directory, ref)
            served = ServedModel(name, version, bundle)
            self._opened[ref] = next((known for known in self._opened.values() if known.ref == served.ref), served)
        return self._opened[ref]

    def only_champion(self, family: FamilyName) -> ServedModel | None:
        """Give the champion of the only name of this family, None without one; ConfigError where there are several."""
        champions = [
            pointer.name
            for pointer in deployment.names(self._directory)
            if pointer.family == family and "champion" in pointer.aliases
        ]
        if len(champions) > 1:
            raise ConfigError(
                f"{self._directory} must have one {family} champion to serve it without being told, it has "
                f"{', '.join(champions)}; name one in models.{family}",
                field=f"models.{family}",
            )
        return self.open(f"{champions[0]}@champion") if champions else None

    def expect(self, served: ServedModel, family: FamilyName, field: str) -> ServedModel:
        """Give the model back where it is of this family; ConfigError otherwise."""
        if served.bundle.manifest.family != family:
            raise ConfigError(
                f"{field} must name a model of the family {family}, {served.ref} is of the family "
                f"{served.bundle.manifest.family}; name another one",
                field=field,
            )
        return served
