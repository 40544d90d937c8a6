"""TLS as a gateway's callers meet it: an authority of the tests' own, and a proxy that ends TLS before a gateway."""

import asyncio
import contextlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority's file, and what a server needs that it signed for 127.0.0.1."""
    now = datetime.now(UTC)

    def certificate(name: str, key, issuer: str, signer, *, is_authority: bool) -> x509.Certificate:
        def named(common: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

        return (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(signer, hashes.SHA256())
        )

    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    files = {
        "authority.pem": certificate("a shop", authority_key, "a shop", authority_key, is_authority=True).public_bytes(
            pem
        ),
        "server.pem": certificate("gateway", server_key, "a shop", authority_key, is_authority=False).public_bytes(pem),
        "server.key": server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    return directory / "authority.pem", context


@contextlib.contextmanager
def terminating(url: str, tls: ssl.SSLContext) -> Iterator[str]:
    """The https address of a proxy before the server at `url`."""
    target = urlsplit(url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer))

    async def end() -> None:
        server.close()
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.wait(mine, timeout=60) if mine else None
        for _ in range(50):  # turns: transports close later than those who wrote to them
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls), loop).result()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
