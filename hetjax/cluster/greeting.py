"""How a process proves that it is of the job before a byte of what it says is parsed.

The server sends a random challenge, the process answers with its HMAC-SHA256 under the secret of the job, and the
server says in one byte that it takes it. All have a fixed size. An answer that was overheard is of no use for another
challenge. The secret lies in the key-value store of JAX's coordinator: who reaches that is in the job.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
import time

SIZE = 32
"""Bytes of a challenge, and of its answer."""
WELCOME = b"+"


def new_secret() -> str:
    """Return a secret for a job, as text."""
    return secrets.token_hex(SIZE)


class Challenge:
    """The server's side of a greeting, over one connection.

    Args:
        connection: The socket, from which nothing has been read.
        secret: The secret of the job.
        seconds: How long the other side may take.
    """

    def __init__(self, connection: socket.socket, secret: str, seconds: float):
        connection.setblocking(False)
        self.socket, self.deadline = connection, time.monotonic() + seconds
        challenge = secrets.token_bytes(SIZE)
        self._expected, self._answer = _answer(challenge, secret), b""
        # So few bytes fit into an empty buffer; where they do not, the other side cannot answer.
        self._sent = _try_send(connection, challenge)

    def receive(self) -> bool | None:
        """Read what has come; returns whether that proves the secret, None while bytes are lacking.

        Reads no byte behind the answer.
        """
        try:
            data = self.socket.recv(SIZE - len(self._answer))
        except BlockingIOError:
            return None
        except OSError:
            return False
        self._answer += data
        if not data or not self._sent:
            return False
        if len(self._answer) < SIZE:
            return None
        return hmac.compare_digest(self._answer, self._expected) and _try_send(self.socket, WELCOME)


def answer(connection: socket.socket, secret: str, seconds: float) -> None:
    """Read the server's challenge, answer it, and wait until it is taken.

    Raises OSError where that fails or takes too long; a server with too many connections may close one, and takes the
    next.
    """
    connection.settimeout(seconds)
    connection.sendall(_answer(_read(connection, SIZE), secret))
    _read(connection, len(WELCOME))


def _read(connection: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        data = connection.recv(size - len(read))
        if not data:
            raise ConnectionError("closed in the middle of a greeting")
        read += data
    return read


def _answer(challenge: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode(), challenge, hashlib.sha256)


def _try_send(connection: socket.socket, data: bytes) -> bool:
    try:
        return connection.send(data) == len(data)
    except OSError:
        return False
