"""The ports that a server takes: each is taken whole, or refused in one sentence."""

from __future__ import annotations

import errno
import socket

from models.errors import WorkspaceError

BACKLOG = 2048
"""Connections that wait in the kernel to be taken."""

_MAX_PORT = 65_535


def bind(host: str, port: int) -> socket.socket:
    """Take the port (0: a free one), and listen at once: only that keeps another process from taking it too."""
    if not 0 <= port <= _MAX_PORT:  # getaddrinfo would take it modulo 65,536
        raise WorkspaceError(f"a port must be from 0 to {_MAX_PORT}, got {port}; name another one with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _elsewhere(host, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise _elsewhere(host, error) from error
        raise WorkspaceError(
            f"a server must have a port of its own, {host}:{port} cannot be taken ({error.strerror}); "
            "name another one with --port, or 0 for any free one"
        ) from error
    return listener


def _elsewhere(host: str, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"a server must have an address of this machine, got {host} ({error.strerror}); give --host one of its own, "
        "127.0.0.1 for this machine alone, 0.0.0.0 or :: for all of its addresses"
    )


def address(listener: socket.socket) -> str:
    """Where a listener is asked over HTTP."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reserve(host: str, port: int) -> socket.socket:
    """Take a gRPC port (0: a free one) for processes that share it; whoever does not is told that it is taken.

    It does not listen: that is what those processes do, by SO_REUSEPORT, and clients reach them alone.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, port))
        # After the port is taken: before, it would be shared with whoever shares his.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        reserved.close()
        raise grpc_taken(host, port) from error
    return reserved


def grpc_taken(host: str, port: int) -> WorkspaceError:
    """Why a gRPC port cannot be had."""
    return WorkspaceError(
        f"a gateway must have a gRPC port of its own, {host}:{port} cannot be taken; change grpc_port, or set it to 0 "
        "for any free one"
    )
