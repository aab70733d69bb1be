"""What goes wrong on the way to a server and back is a sentence, whatever it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from opd_core.engines.vllm_server.connection import Connection, understood
from opd_core.engines.vllm_server.section import VLLMServerSection
from opd_core.types import VideoOPDError


@contextmanager
def answering(content: bytes, length: int) -> Iterator[str]:
    """The address of a server that promises `length` bytes, sends `content` and hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def to(address: str) -> Connection:
    return Connection(VLLMServerSection(address=address, seconds=10.0))


def test_a_server_on_this_machine_is_asked_past_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(b'{"version": "0.32"}', 19) as address:
        assert to(f"{address}/v1/").version() == "0.32"


@pytest.mark.parametrize("content", [b'{"version": "0.3', b"<html>"])
def test_an_answer_that_is_cut_off_or_none_is_a_sentence(content: bytes) -> None:
    length = 19 if content.startswith(b"{") else len(content)
    with (
        answering(content, length) as address,
        pytest.raises(VideoOPDError, match="does not answer .*goes on where it was"),
    ):
        to(address).version()


def test_an_answer_of_another_form_is_a_sentence() -> None:
    content: dict[str, object] = {"choices": []}
    with (
        pytest.raises(VideoOPDError, match="otherwise than version 0.32 does .*prompt_logprobs"),
        understood("http://there"),
    ):
        assert content["prompt_logprobs"]


@pytest.mark.parametrize("address", ["10.0.0.7:8000", "http://me:secret@there:8000", "http://"])
def test_what_is_no_address_is_told_without_repeating_it(address: str) -> None:
    with pytest.raises(ValueError, match="write http://HOST:PORT, and a key in") as told:
        VLLMServerSection(address=address)
    assert "secret" not in str(told.value).split("[type=")[0]
