"""What tests of several packages share."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from serving.triton import server
from tests.triton_server import IS_INSTALLED, TritonServer

# The same examples in every run, however slow the machine; others: pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory) -> Iterator[TritonServer]:
    if not IS_INSTALLED:
        pytest.skip("no tritonserver on the path and nvidia-pytriton is not installed")
    directory = tmp_path_factory.mktemp("triton")
    try:
        yield TritonServer(server.up(directory, directory / "repository"))
    finally:
        server.down(directory)
