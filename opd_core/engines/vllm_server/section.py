"""What a config says of the server: [vllm_server]."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from opd_core.config.section import Section


class VLLMServerSection(Section):
    """A vLLM server that is there already (`vllm serve ... --enable-scale-out`), for a teacher with
    `engine = "vllm_server"`. `VLLM_API_KEY` of the environment is sent along where it is set."""

    address: str = "http://127.0.0.1:8000"
    """Where it answers, with or without `/v1`."""
    model: str | None = None
    """The name that it serves the teacher under; None: the only one that it serves."""
    listed: Annotated[int, Field(gt=0)] = 64
    """Tokens that it lists at each position (at most its `--max-logprobs`). Of what it does not
    list, nobody knows how likely tokens are that no policy may say."""
    together: Annotated[int, Field(gt=0)] = 8
    """Requests that are on their way at once."""
    seconds: Annotated[float, Field(gt=0)] = 600.0
    """For the answer to one request; then the stage stops."""
    compare: bool = True
    """Whether a stage compares the answers to its first prompt with a forward pass of the weights
    in `teacher.path`, where they are here: else only the prompt is proven to be ours."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", address):
            raise ValueError(  # without it: there may be a password in it
                "vllm_server.address is no address; write http://HOST:PORT, and a key in "
                "VLLM_API_KEY of the environment"
            )
        return address
