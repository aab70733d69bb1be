"""`python -P -m flows.serving` serves the deployments until it is stopped.

With a port it is what `videoopd up` leaves behind: it starts a Prefect server there, which takes as
long as the imports and so begins before them, and which ends with it. Without one it serves for the
server of PREFECT_API_URL.
"""

from __future__ import annotations

import sys

from flows.server import local
from flows.server.prefect_settings import apply, named_server
from opd_core.types import VideoOPDError


def main(port: int | None) -> None:
    """Serve the deployments for a server of our own on `port`, or for the one that is named."""
    if port is None:
        apply()
        if named_server() is None:
            raise VideoOPDError(
                "PREFECT_API_URL names no server to serve the deployments for; set it, or start a "
                "server with them by `videoopd up`"
            )
        from flows.deployments import serve_deployments

        return serve_deployments()
    wait_for_server = local.start_server(port)
    from flows.deployments import serve_deployments

    wait_for_server()
    serve_deployments(registered=local.tell_served)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]) if sys.argv[1:] else None)
    except VideoOPDError as error:
        print(f"videoopd: {error}", file=sys.stderr)
        sys.exit(2)
