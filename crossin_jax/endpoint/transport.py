"""One chat completion over HTTP, by the openai package; what went wrong is told without the key."""

from collections.abc import Mapping, Sequence
import json
import os
import re
import threading
import urllib.parse

from crossin_jax.endpoint.pace import retry_after

RETRIED = (408, 409, 425, 429)  # and all of 500 and above
FATAL = (401, 402, 403, 404)  # every further request would meet the same


class Failure(Exception):
  """A request that brought no reply.

  Attributes:
    kind: a status, or 'connection', 'timeout', 'malformed', 'quota'.
    wait: seconds that the server asked to wait, or None.
    fate: 'retry', 'give up' (this request) or 'fatal' (every request).
  """

  def __init__(self, kind: str, message: str, wait: float | None = None, fate: str = 'retry'):
    super().__init__(message)
    self.kind, self.wait, self.fate = kind, wait, fate


class Transport:
  """Sends requests, each once. Its threads may share it.

  Attributes:
    url: of the endpoint, as messages may show it.
  """

  def __init__(self, base_url: str, api_key_env: str, timeout_seconds: float):
    self.url = _checked_url(base_url)
    self._base_url, self._timeout, self._key_env = base_url, timeout_seconds, api_key_env
    self._key, self._client, self._lock = os.environ.get(api_key_env, ''), None, threading.Lock()

  def close(self) -> None:
    """Lets go of the connections."""
    if self._client is not None:
      self._client.close()

  def post(
    self, model: str, messages: Sequence[Mapping[str, str]], parameters: Mapping[str, object]
  ) -> dict:
    """{'text', 'finish_reason', 'usage' (None if the server did not say)}. Raises Failure."""
    openai = self._openai()
    try:
      # Everything goes by extra_body: the package knows not every parameter that servers know.
      raw = self._client.chat.completions.with_raw_response.create(
        model=model, messages=[dict(message) for message in messages], extra_body=dict(parameters)
      )
      return self._read(json.loads(raw.http_response.content))
    except openai.APIStatusError as error:
      failure = self._of_status(error, model)
    except openai.APIConnectionError as error:
      kind = 'timeout' if isinstance(error, openai.APITimeoutError) else 'connection'
      failure = Failure(kind, self._said(f'{error} {error.__cause__ or ""}'))
    except (
      openai.OpenAIError,
      ValueError,
      KeyError,
      TypeError,
      AttributeError,
      IndexError,
    ) as error:
      failure = Failure(
        'malformed',
        self._said(f'the reply is no chat completion ({type(error).__name__}: {error})'),
      )
    # NB: raised out here, or the package's own exception, which holds headers, would be attached to
    # it
    raise failure

  def _openai(self):
    try:
      import openai
    except ImportError:
      raise ValueError(
        'asking an endpoint needs the openai package: pip install crossin-jax[judge]'
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
    usage = {name: usage.get(name) for name in ('prompt_tokens', 'completion_tokens')}
    return {
      # half a surrogate pair could be written to no file
      'text': self._without_key(text.encode('utf-8', 'replace').decode()),
      'finish_reason': choice.get('finish_reason'),
      'usage': usage if all(isinstance(value, int) for value in usage.values()) else None,
    }

  def _of_status(self, error, model: str) -> Failure:
    status, said = error.status_code, self._said(error.message)
    kind, what = str(status), f'{self.url} answered {status}: {said}'
    if status == 429 and 'insufficient_quota' in f'{error.code} {said}':
      return Failure(
        'quota', f'{what}. The account has no credit left; mend that and start again', fate='fatal'
      )
    if status in RETRIED or status >= 500:
      return Failure(kind, what, retry_after(error.response.headers))
    if status in (401, 403):
      state = 'is set, but its key is not accepted' if self._key else 'is not set'
      remedy = f'The environment variable {self._key_env} {state}; put a valid key there'
      return Failure(kind, f'{what}. {remedy}', fate='fatal')
    if status in FATAL:
      remedy = f'Check the URL (it ends in /v1 as a rule), the model {model!r} and the account'
      return Failure(kind, f'{what}. {remedy}', fate='fatal')
    return Failure(kind, what, fate='give up')

  def _said(self, text: str) -> str:
    """A server's words on one line, short, without the key."""
    text = ' '.join(re.sub(r'[\x00-\x1f\x7f]', ' ', self._without_key(str(text))).split())
    return text if len(text) <= 300 else text[:297] + '...'

  def _without_key(self, text: str) -> str:
    # Shorter ones are no secrets but words such as EMPTY that local servers are given, and replies
    # may hold words.
    return text.replace(self._key, '[key]') if len(self._key) >= 8 else text


def _checked_url(url: str) -> str:
  """The URL without its query."""
  if '@' in url:
    raise ValueError(
      'the URL of the endpoint holds a name or password; secrets come from the environment only'
    )
  parts = urllib.parse.urlsplit(url)
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise ValueError(
      f'{url.split("?")[0]!r} is no URL of an endpoint; it looks like https://api.example.com/v1'
    )
  return urllib.parse.urlunsplit((*parts[:3], '', ''))
