"""One real gateway for the tests of those who ask it."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle
from tests.serving import authority as authorities
from tests.serving.gateway.conftest import gateway


@pytest.fixture(scope="session")
def url(tmp_path_factory) -> Iterator[str]:
    directory, bundles = tmp_path_factory.mktemp("deployment"), tmp_path_factory.mktemp("bundles")
    publish(directory, "shop-query", {"champion": Published("3", tiny_bundle(bundles, "intent"))})
    publish(directory, "shop-ltr", {"champion": Published("2", tiny_bundle(bundles, "ranking"))})
    with gateway(directory, {"deadline_ms": 30_000}) as opened:
        yield str(opened.base_url).rstrip("/")


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> tuple[Path, ssl.SSLContext]:
    return authorities.make(tmp_path_factory.mktemp("tls"))
