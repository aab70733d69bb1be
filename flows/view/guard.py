"""Who may ask the viewer, and what a page may load: the key, the Host, GET alone, the headers."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""Names by which a browser on this machine, or at the near end of a tunnel, asks for it. Any other
name in the Host header is a page elsewhere that has its own name point here."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Lets requests through that have the key, or the cookie that it was exchanged for."""

    def __init__(self, app: ASGIApp, key: str, port: int) -> None:
        self._app = app
        self._key = key
        self.cookie = f"videoopd-{port}"
        """Named by the port: cookies of one host are shared by all servers on it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        answer = self._answer(scope) or self._app
        await answer(scope, receive, with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """What a request is told that goes no further; None: it goes on."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if _name(headers.get(b"host", "")) not in LOOPBACK:
            return PlainTextResponse("this server answers to loopback names only\n", 400)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("this server is for reading\n", 405, {"Allow": "GET, HEAD"})
        words = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in words if name == "key"]
        if given:
            return self._exchanged(scope["path"], words) if self._right(given[0]) else _refused()
        return None if self._right(_cookie(headers.get(b"cookie", ""), self.cookie)) else _refused()

    def _exchanged(self, path: str, words: list[tuple[str, str]]) -> Response:
        """The same URL without the key, which the browser keeps as a cookie from now on."""
        rest = urlencode([(name, value) for name, value in words if name != "key"])
        # One slash: `//host` would be another host.
        to = "/" + quote(path.lstrip("/\\")) + (f"?{rest}" if rest else "")
        answer = RedirectResponse(to, 303, {"Cache-Control": "no-store"})
        answer.set_cookie(self.cookie, self._key, httponly=True, samesite="strict", path="/")
        return answer

    def _right(self, key: str) -> bool:
        return secrets.compare_digest(key.encode(), self._key.encode())


def _name(host: str) -> str:
    """`localhost:8000` without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _refused() -> Response:
    return PlainTextResponse(
        "no key, or a wrong one: open the address that `videoopd view` has printed\n", 403
    )
