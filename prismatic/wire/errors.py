"""What a client is told when its request cannot be answered: an HTTP status and a sentence that says what to fix."""

from __future__ import annotations

MAX_MESSAGE_CHARACTERS = 2000


class RequestError(ValueError):
    """A request that its sender must change. Whatever of it is quoted, the message can be sent: it has an end, and is whole characters."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message[:MAX_MESSAGE_CHARACTERS].encode(errors="backslashreplace").decode())


class UnauthorizedError(RequestError):
    """No API key, or a wrong one."""

    status = 401


class ForeignPageError(RequestError):
    """A browser asks for a page of another site."""

    status = 403


class UnknownAdapterError(RequestError):
    """An adapter that this server does not have."""

    status = 404


class UnknownPathError(RequestError):
    """Nothing is there."""

    status = 404


class TooLargeError(RequestError):
    """A body beyond the server's limit."""

    status = 413


class BusyError(RequestError):
    """The server has as much work as it accepts; the same request may succeed later."""

    status = 503
    retry_after_s = 1


class SlowPredictionError(RequestError):
    """The policy did not answer in time."""

    status = 504


class PredictionError(RequestError):
    """The policy failed; the server's log has the reason."""

    status = 500
