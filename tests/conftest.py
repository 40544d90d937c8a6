"""What tests of several packages share."""

from collections.abc import Iterator

import pytest

from serving.triton import server
from tests.triton_server import IS_INSTALLED, TritonServer


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory) -> Iterator[TritonServer]:
    if not IS_INSTALLED:
        pytest.skip("no tritonserver on the path and nvidia-pytriton is not installed")
    directory = tmp_path_factory.mktemp("triton")
    try:
        yield TritonServer(server.up(directory, directory / "repository"))
    finally:
        server.down(directory)
