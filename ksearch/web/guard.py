"""Who may ask, and what an answer may do in a browser: around the whole application.

A page of another site can make a browser send requests here, under a name of its own that resolves to this
machine. So a server on the loopback interface answers to loopback names only, and any other asks for a token.
"""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.datastructures import URL, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_PLOTLY_STYLES = (
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
    "'sha256-ji27qzEtxXZW+7dun6UwjHXJ18e6WAin1VvNtkzIE/o='",
    "'unsafe-hashes' 'sha256-wkY2X5hecQzbhnFCqvTpwrUJ1f4X8LH5WFjYUzv1wmU='",
)
"""What plotly.js writes: two style elements that it fills by rules afterwards, and `font-weight:bold`."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {' '.join(_PLOTLY_STYLES)}",
        "img-src 'self' data: blob:",  # plotly.js draws a picture to be saved from a blob
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
"""Of every answer, where it does not have its own."""

COOKIE_S = 30 * 24 * 3600


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request must bring."""

    hosts: frozenset[str] | None
    """Names in the Host header; None: any, because a token is asked for."""
    token: str | None
    cookie: str
    """What keeps the token in a browser; named by the port, because cookies are not kept apart by it."""

    @classmethod
    def of(cls, host: str, port: int, token: str | None) -> Terms:
        """Of a server that is bound there; off the loopback interface it must have a token."""
        assert token or is_loopback(host)
        hosts = frozenset((*LOOPBACK, host)) if is_loopback(host) else None
        return cls(hosts, token, f"ksearch-{port}")

    def knows(self, request: Request) -> bool:
        """Whether the host is one of ours."""
        return self.hosts is None or _name(request) in self.hosts

    def admits(self, request: Request) -> bool:
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = (request.cookies.get(self.cookie, ""), bearer if kind.lower() == "bearer" else "")
        return self.token is None or any(map(self.is_token, given))

    def is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode())


class Guard:
    """Middleware; nothing behind it sees a request that it does not let pass."""

    def __init__(self, app: ASGIApp, terms: Terms) -> None:
        self._app = app
        self._terms = terms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """What is answered instead, if anything."""
        terms = self._terms
        if not terms.knows(request):
            return _text(403, f"This server does not answer to the name {_name(request)!r}.")
        if request.method not in ("GET", "HEAD"):
            return _text(405, "The results are read here, and not changed.", {"Allow": "GET, HEAD"})
        if terms.token and (given := request.query_params.get("token")) is not None:
            if not terms.is_token(given):
                return _text(401, "This is not this server's token; `ksearch browse` prints its address.")
            return self._welcome(request)
        if not terms.admits(request):
            return _text(
                401,
                "This server asks for its token: open the address that `ksearch browse` printed.",
                {"WWW-Authenticate": "Bearer"},
            )
        return None

    def _welcome(self, request: Request) -> Response:
        """The same page without the token in its address, which histories and logs keep."""
        rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
        # The path alone, and with one slash: two would name another host.
        path = "/" + request.url.path.lstrip("/")
        answer = RedirectResponse(str(URL(path).replace(query=urlencode(rest))), 303)
        answer.set_cookie(
            self._terms.cookie, self._terms.token or "", max_age=COOKIE_S, httponly=True, samesite="lax"
        )
        return answer


def _name(request: Request) -> str:
    """Of the Host header, without the port."""
    host = request.headers.get("host", "")
    return host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]


def _text(status: int, words: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"ksearch: {words}\n", status, headers)
