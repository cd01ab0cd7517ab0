"""One chat completion over HTTP by the openai package; errors never contain the key."""

from collections.abc import Mapping, Sequence
import json
import os
import re
import threading
import urllib.parse

from crossin_jax.endpoint.ledger import TOKENS
from crossin_jax.endpoint.pace import retry_after

RETRIED = (408, 409, 425, 429)  # and all from 500 on
FATAL = (401, 402, 403, 404)  # every further request would fail too


class Failure(Exception):
  """A request without a reply.

  Attributes:
    kind: a status, or 'connection', 'timeout', 'malformed', 'quota'.
    wait: seconds that the server asked to wait, or None.
    fate: 'retry', 'give up' (this request) or 'fatal' (every request).
  """

  def __init__(self, kind: str, message: str, wait: float | None = None, fate: str = 'retry'):
    super().__init__(message)
    self.kind, self.wait, self.fate = kind, wait, fate


class Transport:
  """Sends each request once. Threads may share it.

  Attributes:
    url: of the endpoint, without secrets, for messages.
  """

  def __init__(self, base_url: str, api_key_env: str, timeout_seconds: float):
    self.url = _checked_url(base_url)
    self._base_url, self._timeout, self._key_env = base_url, timeout_seconds, api_key_env
    self._key, self._client, self._lock = os.environ.get(api_key_env, ''), None, threading.Lock()

  def close(self) -> None:
    """Closes the connections."""
    if self._client is not None:
      self._client.close()

  def post(
    self, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]
  ) -> dict:
    """{'text', 'finish_reason', 'usage' (None if the server omits it)}. Raises Failure."""
    openai = self._openai()
    try:
      # extra_body, since servers have parameters that the package does not know.
      raw = self._client.chat.completions.with_raw_response.create(
        model=model, messages=[dict(message) for message in messages], extra_body=dict(parameters)
      )
      return self._read(json.loads(raw.http_response.content))
    except openai.APIStatusError as error:
      failure = self._status_failure(error, model)
    except openai.APIConnectionError as error:
      kind = 'timeout' if isinstance(error, openai.APITimeoutError) else 'connection'
      failure = Failure(kind, self._line(f'{error} {error.__cause__ or ""}'))
    except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError) as error:
      text = f'the reply is no chat completion ({type(error).__name__}: {error})'
      failure = Failure('malformed', self._line(text))
    # NB: raised here, or the exception of the package, which holds headers, would be attached.
    raise failure

  def _openai(self):
    try:
      import openai
    except ImportError:
      raise ValueError(
        'an endpoint needs the openai package: pip install crossin-jax[judge]'
      ) from None
    with self._lock:
      if self._client is None:
        self._client = openai.OpenAI(
          api_key=self._key or 'none', base_url=self._base_url, timeout=self._timeout, max_retries=0
        )
    return openai

  def _read(self, body: dict) -> dict:
    if isinstance(body, dict) and body.get('error'):  # some servers send errors with status 200
      raise ValueError(str(body['error']))
    choice = body['choices'][0]
    text = choice['message'].get('content') or ''
    if isinstance(text, list):  # in parts
      text = ''.join(part.get('text', '') for part in text)
    usage = body.get('usage') or {}
    usage = {name: usage.get(name) for name in TOKENS}
    return {
      # Half a surrogate pair cannot be encoded.
      'text': self._without_key(text.encode('utf-8', 'replace').decode()),
      'finish_reason': choice.get('finish_reason'),
      'usage': usage if all(isinstance(value, int) for value in usage.values()) else None,
    }

  def _status_failure(self, error, model: str) -> Failure:
    status, message = error.status_code, self._line(error.message)
    kind, what = str(status), f'{self.url} answered {status}: {message}'
    if status == 429 and 'insufficient_quota' in f'{error.code} {message}':
      remedy = 'The account has no credit left; add credit and start the same command again'
      return Failure('quota', f'{what}. {remedy}', fate='fatal')
    if status in RETRIED or status >= 500:
      return Failure(kind, what, retry_after(error.response.headers))
    if status in (401, 403):
      state = 'is set, but its key is not accepted' if self._key else 'is not set'
      remedy = f'The environment variable {self._key_env} {state}; put a valid key there'
      return Failure(kind, f'{what}. {remedy}', fate='fatal')
    if status in FATAL:
      remedy = f'Check the URL (usually it ends in /v1), the model {model!r} and the account'
      return Failure(kind, f'{what}. {remedy}', fate='fatal')
    return Failure(kind, what, fate='give up')

  def _line(self, text: str) -> str:
    """A message of a server as one short line without the key."""
    text = ' '.join(re.sub(r'[\x00-\x1f\x7f]', ' ', self._without_key(str(text))).split())
    return text if len(text) <= 300 else text[:297] + '...'

  def _without_key(self, text: str) -> str:
    # Shorter keys are words such as EMPTY for local servers, which replies may contain.
    return text.replace(self._key, '[key]') if len(self._key) >= 8 else text


def _checked_url(url: str) -> str:
  """The URL without its query."""
  if '@' in url:
    raise ValueError(
      'the URL of the endpoint contains a name or password; pass secrets in the environment only'
    )
  parts = urllib.parse.urlsplit(url)
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise ValueError(
      f'{url.split("?")[0]!r} is no URL of an endpoint; it looks like https://api.example.com/v1'
    )
  return urllib.parse.urlunsplit((*parts[:3], '', ''))
