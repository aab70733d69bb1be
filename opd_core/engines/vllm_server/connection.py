"""Requests to a vLLM server, and what goes wrong with them as sentences."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from opd_core.engines.vllm_server.section import VLLMServerSection
from opd_core.types import VideoOPDError

FRAMES_FLAG = "--trust-request-mm-kwargs"
"""Without it, a server reads no video as its request says."""
GOES_ON = "rerun the stage, which goes on where it was"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class PromptRefusedError(Exception):
    """The server will not take this one prompt; the reason, in its words."""


class Connection:
    """A server by its address; may be used by several threads."""

    def __init__(self, settings: VLLMServerSection) -> None:
        self.address = settings.address.rstrip("/").removesuffix("/v1")
        self._seconds = settings.seconds
        # A proxy of the environment is another machine: what is loopback here is not there.
        is_here = urlsplit(self.address).hostname in LOOPBACK
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(*proxies)

    def version(self) -> str:
        """Of vLLM there."""
        return str(self._ask("/version").get("version"))

    def models(self) -> dict[str, int]:
        """Name of a model that it serves -> tokens that a prompt with its answer may have."""
        listed = self._ask("/v1/models")["data"]
        return {one["id"]: int(one.get("max_model_len") or 0) for one in listed}

    def render(self, chat: dict[str, Any]) -> dict[str, Any]:
        """The token ids and features that its processor makes of a chat."""
        return self._ask("/v1/chat/completions/render", chat)

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """What it says to token ids and features."""
        return self._ask("/inference/v1/generate", request)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with self._opener.open(request, timeout=self._seconds) as reply:
                content: dict[str, Any] = json.load(reply)
                return content
        except urllib.error.HTTPError as error:
            said = _said(error)
            if error.code == 400 and body is not None and FRAMES_FLAG not in said:
                raise PromptRefusedError(said) from None
            raise self._refusal(path, error.code, said) from None
        except (OSError, ValueError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise VideoOPDError(
                f"the vLLM server at {self.address} does not answer ({why}); start it, or correct "
                f"vllm_server.address, and {GOES_ON}"
            ) from None

    def _refusal(self, path: str, code: int, said: str) -> VideoOPDError:
        where = f"the vLLM server at {self.address}"
        match code:
            case 400 if FRAMES_FLAG in said:
                return VideoOPDError(
                    f"{where} takes no frames that are chosen; start it with {FRAMES_FLAG}, "
                    f"and {GOES_ON}"
                )
            case 403 if "scale-out" in said.lower():
                return VideoOPDError(
                    f"{where} takes no token ids; start it with --enable-scale-out, and {GOES_ON}"
                )
            case 401 | 403:
                return VideoOPDError(f"{where} wants a key; set VLLM_API_KEY to it, and {GOES_ON}")
            case 404:
                return VideoOPDError(
                    f"{where} has no {path} ({said}); give the address of a vLLM server of version "
                    "0.32 or later in vllm_server.address, and the model that it serves in "
                    "vllm_server.model"
                )
            case _:
                return VideoOPDError(f"{where} failed ({code}: {said}); repair it, and {GOES_ON}")


@contextmanager
def understood(address: str) -> Iterator[None]:
    """Turns an answer that lacks what is looked for in it into a sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise VideoOPDError(
            f"the vLLM server at {address} answers otherwise than version 0.32 does "
            f"({type(error).__name__}: {error}); serve the teacher with that version"
        ) from error


def _said(error: urllib.error.HTTPError) -> str:
    try:
        content = json.load(error)
        return str(content.get("error", content).get("message", content)).splitlines()[0]
    except (ValueError, AttributeError, IndexError, OSError):
        return str(error.reason)
