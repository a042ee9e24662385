"""Who may ask: this machine's browser, by the address that was printed, and no page of another site.

A page of another site can make a browser send requests to a loopback address, and by rebinding its own name to that
address it can read the answers. Against both, every request must name this server as its host and come from its own
pages; and a secret of each start keeps other users of the machine out.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1_000_000
MAX_QUERY_BYTES = 20_000
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src data:; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Guard:
    """An ASGI application that lets requests through to another."""

    app: ASGIApp
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def hosts(self) -> tuple[str, ...]:
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def address(self) -> str:
        """What is opened in a browser."""
        return f"http://127.0.0.1:{self.port}/?{urlencode({'token': self.token})}"

    @property
    def cookie(self) -> str:
        """Name of the cookie with the secret; cookies know no ports, so the port is in it."""
        return f"skillbasis-{self.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through."""
        headers, method = Headers(scope=scope), scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return _refused(403, f"this server answers to {' and '.join(self.hosts)} only")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{hosts[0].lower()}":
            return _refused(403, "this server does not answer to pages of other sites")
        if method not in ("GET", "HEAD", "POST"):
            return _refused(405, "only GET and POST are understood")
        if method == "POST" and origin is None:
            return _refused(403, "a change has to come from a page of this server")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return _refused(403, "this server does not answer to pages of other sites")
        if len(scope.get("query_string", b"")) > MAX_QUERY_BYTES:
            return _refused(414, f"the query is longer than {MAX_QUERY_BYTES:,} bytes")
        if method == "POST":
            length = headers.get("content-length", "")
            if not (length.isascii() and length.isdecimal()):
                return _refused(411, "the request does not say how long it is")
            if int(length) > MAX_BODY_BYTES:
                return _refused(413, f"the request is longer than {MAX_BODY_BYTES:,} bytes")
        return self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        """A way in for the address that was printed, a refusal without the secret, None for who has it."""
        try:
            crumb = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            crumb = None
        if crumb is not None and hmac.compare_digest(crumb.value.encode(), self.token.encode()):
            return None
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and hmac.compare_digest(given.encode(), self.token.encode()):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        return _refused(403, "open the address that 'skillbasis explore' has printed; it holds the key to this server")


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=status)


def _with_headers(send: Send) -> Send:
    """Adds the headers of every answer; a page may bring a policy of its own."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", POLICY)
        await send(message)

    return sending
