"""An S3 on this machine, for as long as a test wants it."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

BUCKET = "videoopd"


@contextmanager
def object_store() -> Iterator[str]:
    """`s3://BUCKET/runs`; the environment of this process, and of those it starts, leads there."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    made = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
    environment = {
        "AWS_ENDPOINT": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
    }
    try:
        urllib.request.urlopen(made).close()
        with patch.dict(os.environ, environment):
            yield f"s3://{BUCKET}/runs"
    finally:
        server.stop()
