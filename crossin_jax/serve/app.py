"""The HTTP interface: OpenAI's paths, health, metrics and the page."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
import contextlib
import hmac
import json
import time
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from crossin_jax.serve import fields
from crossin_jax.serve.answering import Answers
from crossin_jax.serve.metrics import Metrics
from crossin_jax.serve.refusal import Refusal, invalid
from crossin_jax.serve.replies import Replies
from crossin_jax.serve.served import Served

MOST_BYTES = 4 << 20  # of a body
BODY_SECONDS = 60.0
LOOPBACK = frozenset({'localhost', '127.0.0.1', '::1'})


class App:
  """The application of some models. Callable as ASGI.

  Attributes:
    models: by name; the first one is asked by the page in the left column.
    metrics: of all requests.
  """

  def __init__(
    self, models: dict[str, Served], page: str = '', key: str = '', only_loopback: bool = True
  ):
    """Args:
    models: whose engines are started.
    page: HTML of `/`.
    key: clients must send it as a bearer token; '' = none.
    only_loopback: refuse requests to other host names, which a web site may point here.
    """
    self.models, self.metrics = models, Metrics()
    self._page, self._key, self._only_loopback = page, key, only_loopback
    get, post = {'methods': ['GET']}, {'methods': ['POST']}
    routes = [
      Route('/', self._index, **get),
      Route('/health', self._health, **get),
      Route('/metrics', self._show_metrics, **get),
      Route('/v1/models', self._list, **get),
      Route('/v1/models/{name:path}', self._one, **get),
      Route('/v1/completions', self._complete('completions'), **post),
      Route('/v1/chat/completions', self._complete('chat'), **post),
    ]
    self._paths = {route.path for route in routes}
    self._app = Starlette(
      routes=routes,
      exception_handlers={Refusal: _refused, HTTPException: _not_served, Exception: _failed},
    )

  async def __call__(self, scope, receive, send) -> None:
    """Checks the request, hands it on and counts it."""
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    started, status = time.monotonic(), 499  # of clients that left before an answer

    async def counting(message):
      nonlocal status
      status = message.get('status', status)
      await send(message)

    try:
      try:
        self._check(Request(scope))
      except Refusal as refusal:
        await _response(refusal)(scope, receive, counting)
      else:
        await self._app(scope, receive, counting)
    finally:
      path = scope['path'] if scope['path'] in self._paths else 'other'
      self.metrics.count(path, status, time.monotonic() - started)

  def _check(self, request: Request) -> None:
    host, origin = request.headers.get('host', ''), request.headers.get('origin')
    if self._only_loopback and _hostname(f'//{host}') not in LOOPBACK:
      raise Refusal(
        403,
        f'the server answers at localhost only, not at {host!r}; start it with --host to change '
        'that',
      )
    if origin and (not _hostname(origin) or urlsplit(origin).netloc != host):
      raise Refusal(403, f'a page of {origin} may not use this server')
    path = request.url.path
    if self._key and (path.startswith('/v1') or path == '/metrics'):
      given = request.headers.get('authorization', '').removeprefix('Bearer ')
      if not hmac.compare_digest(given.encode(), self._key.encode()):
        raise Refusal(
          401,
          'the API key is missing or wrong; send it as Authorization: Bearer KEY',
          code='invalid_api_key',
          headers={'WWW-Authenticate': 'Bearer'},
        )

  async def _index(self, request: Request) -> Response:
    return HTMLResponse(
      self._page,
      headers={
        'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'; script-src "
        "'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'",
        'Referrer-Policy': 'no-referrer',
      },
    )

  async def _health(self, request: Request) -> Response:
    dead = [name for name, served in self.models.items() if not served.engine.alive]
    body = {'status': 'failed' if dead else 'ok', 'models': list(self.models)}
    return JSONResponse(body, 503 if dead else 200)

  async def _show_metrics(self, request: Request) -> Response:
    return PlainTextResponse(
      self.metrics.text(self.models.values()), media_type='text/plain; version=0.0.4'
    )

  async def _list(self, request: Request) -> Response:
    return JSONResponse({'object': 'list', 'data': list(map(_described, self.models.values()))})

  async def _one(self, request: Request) -> Response:
    return JSONResponse(_described(self._served(request.path_params['name'])))

  def _served(self, name: str) -> Served:
    """The model with this name, or with this path on the command line."""
    for served in self.models.values():
      if name in (served.name, served.path):
        return served
    known = ', '.join(self.models)
    raise Refusal(
      404, f'no model {name!r}; this server has {known}', param='model', code='model_not_found'
    )

  def _complete(self, kind: str):
    """The endpoint of completions or chat completions."""

    async def endpoint(request: Request) -> Response:
      body = fields.parse(await _body(request))
      if not isinstance(name := body.get('model'), str):
        raise invalid('model', f'model must be a string: one of {", ".join(self.models)}')
      served = self._served(name)
      asked = fields.asked(kind, body, served.sampling)
      replies = Replies(asked, served.name, served.prompts.vocabulary)
      answers = Answers(served, asked, await served.tokens(asked))
      if asked.stream:
        parts = _stream(asked, answers, replies)
        # What fails before the first part is a plain error.
        first = await _unless_gone(request, anext(parts))
        return _EventStream(first, parts)
      return JSONResponse(await _unless_gone(request, _whole(answers, replies)))

    return endpoint


def _hostname(url: str) -> str | None:
  """The host of a URL; None if it has none that can be read."""
  try:
    return urlsplit(url).hostname
  except ValueError:
    return None


async def _body(request: Request) -> bytes:
  parts, size = [], 0
  try:
    async with asyncio.timeout(BODY_SECONDS):
      async for part in request.stream():
        parts.append(part)
        if (size := size + len(part)) > MOST_BYTES:
          raise Refusal(413, f'the body is longer than {MOST_BYTES >> 20} MiB; send less at a time')
  except TimeoutError:
    raise Refusal(408, f'the body did not arrive in {BODY_SECONDS:.0f} s; send it again') from None
  return b''.join(parts)


def _usage(answers: Answers) -> dict:
  prompt, completion = answers.prompt_tokens, answers.completion_tokens
  total = prompt + completion
  return {'prompt_tokens': prompt, 'completion_tokens': completion, 'total_tokens': total}


async def _whole(answers: Answers, replies: Replies) -> dict:
  with answers:
    deltas = [delta async for delta in answers.deltas()]
  return replies.complete(deltas, _usage(answers))


async def _stream(asked: fields.Asked, answers: Answers, replies: Replies) -> AsyncIterator[bytes]:
  """Server-sent events."""
  event = lambda value: f'data: {json.dumps(value, ensure_ascii=False)}\n\n'.encode()
  begun = False
  try:
    with answers:
      async for delta in answers.deltas():
        yield event(replies.chunk(delta))
        begun = True
  except Refusal as refusal:
    if not begun:
      raise
    yield event(refusal.body)
    return
  if asked.usage:
    yield event(replies.last_chunk(_usage(answers)))
  yield b'data: [DONE]\n\n'


async def _gone(receive) -> None:
  """Waits until the client has hung up."""
  while (await receive())['type'] != 'http.disconnect':
    pass


async def _unless_gone(request: Request, work: Coroutine):
  """The result of `work`, which is cancelled when the client hangs up.

  Raises:
    Refusal: the client is gone.
  """
  task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise Refusal(499, 'the client has closed the connection')
    return task.result()
  finally:
    await _cancelled(task, gone)


async def _cancelled(*tasks: asyncio.Future) -> None:
  """Cancels tasks that are not done, and waits for their clean-up."""
  for task in tasks:
    task.cancel()
  with contextlib.suppress(asyncio.CancelledError):
    await asyncio.gather(*tasks, return_exceptions=True)


class _EventStream(Response):
  """Sends events until they end or the client hangs up; then it closes their generator at once."""

  def __init__(self, first: bytes, parts: AsyncIterator[bytes]):
    headers = {'Cache-Control': 'no-cache', 'X-Accel-Buffering': 'no'}
    super().__init__(headers=headers, media_type='text/event-stream')
    del self.headers['content-length']
    self._first, self._parts = first, parts

  async def __call__(self, scope, receive, send) -> None:
    async def sending():
      await send({'type': 'http.response.start', 'status': 200, 'headers': self.raw_headers})
      body = lambda part, more=True: send(
        {'type': 'http.response.body', 'body': part, 'more_body': more}
      )
      await body(self._first)
      async for part in self._parts:
        await body(part)
      await body(b'', False)

    task, gone = asyncio.ensure_future(sending()), asyncio.ensure_future(_gone(receive))
    try:
      await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
      if task.done():
        task.result()
    finally:
      await _cancelled(task, gone)
      await self._parts.aclose()


def _described(served: Served) -> dict:
  return {
    'id': served.name,
    'object': 'model',
    'created': served.created,
    'owned_by': 'crossin_jax',
    'max_model_len': served.max_length,
  }


def _response(refusal: Refusal) -> Response:
  return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)


async def _refused(request: Request, refusal: Refusal) -> Response:
  return _response(refusal)


async def _not_served(request: Request, error: HTTPException) -> Response:
  """A path or a method that does not exist."""
  message = f'{request.method} {request.url.path}: {error.detail}'
  return _response(Refusal(error.status_code, message, headers=dict(error.headers or {})))


async def _failed(request: Request, error: Exception) -> Response:
  """A bug; uvicorn prints its traceback."""
  return _response(Refusal(500, f'the server failed ({type(error).__name__}); see its log'))
