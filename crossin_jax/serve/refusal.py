"""Errors of requests, in the shape that clients of OpenAI's protocol read."""

from crossin_jax.errors import CrossinError


class Refusal(CrossinError):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    param: the field at fault, or None.
    code: for programs: 'model_not_found', 'context_length_exceeded' ... or None.
    headers: of the response.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.param, self.code, self.headers = status, param, code, headers or {}

  @property
  def body(self) -> dict:
    """The JSON of the response."""
    kind = {401: 'authentication_error', 403: 'permission_error', 429: 'rate_limit_error'}
    by_status = 'server_error' if self.status >= 500 else 'invalid_request_error'
    return {
      'error': {
        'message': str(self),
        'type': kind.get(self.status, by_status),
        'param': self.param,
        'code': self.code,
      }
    }


def invalid(param: str | None, message: str, code: str | None = None) -> Refusal:
  """A request with a wrong field."""
  return Refusal(400, message, param=param, code=code)
