"""Whom a client of an https gateway trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi

from models.errors import InputError


def context(url: str, ca_file: Path | None) -> ssl.SSLContext | None:
    """Make what checks the certificate of an https address; None for a plain one.

    ca_file: certificates, in PEM, of who may sign (None: those whom this machine or everybody trusts). InputError where
    it is none, or would do nothing.
    """
    if not url.startswith("https:"):
        if ca_file is not None:
            raise InputError(f"ca_file does nothing for {url}; leave it out, or give an https address")
        return None
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # what ssl raises is one too
        raise InputError(
            f"ca_file must be a readable file of certificates in PEM, got {ca_file} ({error}); correct it"
        ) from error
    if ca_file is None:
        made.load_verify_locations(certifi.where())
    return made
