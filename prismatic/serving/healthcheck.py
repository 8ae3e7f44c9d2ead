"""`python -m prismatic.serving.healthcheck [PORT]`: status 1 where the server of this machine says that only a new process helps.

For Docker's HEALTHCHECK. A port on which nothing listens is a container that does something else, or is still loading: status 0.
"""

from __future__ import annotations

import http.client
import sys

DEFAULT_PORT = 8777
_TIMEOUT_S = 4.0


def check(port: int) -> str | None:
    """What is wrong; None: nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        reply = connection.getresponse()
        return None if reply.status == 200 else reply.read(500).decode(errors="replace").strip()
    except ConnectionRefusedError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({type(error).__name__})"
    finally:
        connection.close()


if __name__ == "__main__":
    problem = check(int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PORT)
    sys.exit(problem and f"unhealthy: {problem}")
