"""A stand-in for Google Cloud Storage: its JSON API over HTTP, in memory, as far as gcsfs,
google-cloud-storage and TensorStore use it.

The kept emulators know neither preconditions on generations nor broken answers, and those are what
is tested.
"""

import base64
import dataclasses
import datetime
import functools
import hashlib
import http.server
import json
import os
import re
import threading
import time
import urllib.parse

import google_crc32c


@dataclasses.dataclass
class Object:
  """One object of a bucket."""

  data: bytes
  generation: int
  updated: str
  kind: str = 'application/octet-stream'
  metadata: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Fault:
  """What goes wrong with requests whose 'METHOD path?query' a pattern is found in.

  Attributes:
    pattern: regular expression.
    times: how often.
    status: of the answer; 0 = the connection is dropped, in the middle of the content if there is
      any.
    delay: seconds before the answer; with status None it then is the usual one.
  """

  pattern: str
  times: int = 1
  status: int | None = 503
  delay: float = 0.0


class Gone(Exception):
  """An answer that is an error: status and reason."""


class FakeGcs:
  """The server, in a thread; a context manager.

  Attributes:
    buckets: name -> object name -> Object.
    requests: 'METHOD path?query' of all requests so far.
    faults: see `Fault`.
    url: where it listens.
  """

  def __init__(self, *buckets: str):
    self.buckets = {name: {} for name in buckets}
    self.forbidden: set[str] = set()
    self.requests: list[str] = []
    self.faults: list[Fault] = []
    self.uploads: dict[str, dict] = {}
    self.generation = int(time.time() * 1e6)
    self.lock = threading.RLock()
    handler = type('Handler', (_Handler,), {'store': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.url = f'http://127.0.0.1:{self._server.server_port}'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  @property
  def environment(self) -> dict[str, str]:
    """Variables that send every client here."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'GOOGLE_CLOUD_PROJECT': 'test',
      'GCE_METADATA_ROOT': '127.0.0.1:9',
      'NO_GCE_CHECK': 'true',
    }

  def fail(
    self, pattern: str, times: int = 1, status: int | None = 503, delay: float = 0.0
  ) -> Fault:
    """Adds a fault."""
    self.faults.append(fault := Fault(pattern, times, status, delay))
    return fault

  def names(self, prefix: str = '', bucket: str = 'bucket') -> list[str]:
    """Names of objects, sorted."""
    with self.lock:
      return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

  def read(self, name: str, bucket: str = 'bucket') -> bytes:
    """The content of an object."""
    return self.buckets[bucket][name].data

  def put(
    self, name: str, data: bytes, bucket: str = 'bucket', kind: str = 'application/octet-stream'
  ) -> Object:
    """Writes an object."""
    with self.lock:
      self.generation += 1
      now = datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
      self.buckets[bucket][name] = made = Object(bytes(data), self.generation, now, kind)
      return made

  def reset(self) -> None:
    """Forgets all objects, requests and faults."""
    with self.lock:
      for objects in self.buckets.values():
        objects.clear()
      self.requests.clear()
      self.faults.clear()

  def seen(self, pattern: str) -> list[str]:
    """The requests so far in which a pattern is found."""
    return [request for request in list(self.requests) if re.search(pattern, request)]


@functools.cache
def running() -> FakeGcs:
  """The one server of this process, and the environment that leads to it: clients keep addresses
  for as long as they live.
  """
  server = FakeGcs('bucket', 'secret').__enter__()
  server.forbidden.add('secret')
  os.environ.update(server.environment)
  return server


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 64

  def handle_error(self, request, client_address):
    """A client that went away is no news."""


def crc32c(data: bytes) -> str:
  """As Google writes it."""
  return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
  store: FakeGcs
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True

  def log_message(self, *_):
    pass

  def _serve(self):
    body = self._body()
    url = urllib.parse.urlsplit(self.path)
    self.query = {
      key: values[-1]
      for key, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()
    }
    words = f'{self.command} {urllib.parse.unquote(self.path)}'
    store = self.store
    with store.lock:
      store.requests.append(words)
      fault = next((f for f in store.faults if f.times > 0 and re.search(f.pattern, words)), None)
      if fault:
        fault.times -= 1
    self.dropped = False
    if fault:
      time.sleep(fault.delay)
      self.dropped = fault.status == 0
      if fault.status:
        return self._answer(
          fault.status, {'error': {'code': fault.status, 'message': 'a fault of the test'}}
        )
      if fault.status == 0 and self.command != 'GET':
        self.close_connection = True
        return self.connection.close()
    try:
      with store.lock:
        status, content, headers = self._route(url.path, body)
    except Gone as error:
      status, reason = error.args
      status, content, headers = status, {'error': {'code': status, 'message': reason}}, {}
    return self._answer(status, content, headers)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

  def _body(self) -> bytes:
    if 'chunked' in self.headers.get('Transfer-Encoding', ''):
      parts = []
      while size := int(self.rfile.readline().split(b';')[0], 16):
        parts.append(self.rfile.read(size))
        self.rfile.readline()
      self.rfile.readline()
      return b''.join(parts)
    return self.rfile.read(int(self.headers.get('Content-Length') or 0))

  def _answer(self, status, content=None, headers=None):
    if not isinstance(content, bytes):
      content = b'' if content is None else json.dumps(content).encode()
    self.send_response(status)
    headers = {'Content-Type': 'application/json', **(headers or {})}
    for name, value in headers.items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.dropped:
      content, self.close_connection = content[: len(content) // 2], True
    if status not in (204, 304) and self.command != 'HEAD':
      self.wfile.write(content)
    if self.dropped:
      self.wfile.flush()
      self.connection.close()

  # ---- the calls ----

  def _route(self, path: str, body: bytes):
    """(status, content, headers)."""
    if match := re.fullmatch(r'/upload(/resumable)?/storage/v1/b/([^/]+)/o', path):
      return self._upload(self._bucket(match[2]), match[2], body)
    if match := re.fullmatch(
      r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+?)/(?:copyTo|rewriteTo)/b/([^/]+)/o/(.+)', path
    ):
      source, target = (urllib.parse.unquote(match[i]) for i in (2, 4))
      found = self._object(match[1], source)
      made = self._write(match[3], target, found.data, found.kind)
      resource = self._resource(match[3], target, made)
      done = {
        'done': True,
        'objectSize': len(made.data),
        'totalBytesRewritten': len(made.data),
        'resource': resource,
      }
      return 200, done if 'rewriteTo' in path else resource, {}
    if match := re.fullmatch(r'(?:/download)?/storage/v1/b/([^/]+)/o/(.+)', path):
      return self._one(match[1], urllib.parse.unquote(match[2]))
    if match := re.fullmatch(r'/storage/v1/b/([^/]+)/o/?', path):
      return 200, self._list(match[1]), {}
    if match := re.fullmatch(r'/storage/v1/b/([^/]+)/?', path):
      self._bucket(match[1])
      return (
        200,
        {'kind': 'storage#bucket', 'id': match[1], 'name': match[1], 'location': 'TEST'},
        {},
      )
    raise Gone(404, f'{self.command} {path} is not known here')

  def _bucket(self, name: str) -> dict[str, Object]:
    if name in self.store.forbidden:
      raise Gone(403, f'test@test does not have storage.objects access to {name}')
    if name not in self.store.buckets:
      raise Gone(404, 'The specified bucket does not exist.')
    return self.store.buckets[name]

  def _object(self, bucket: str, name: str) -> Object:
    found = self._bucket(bucket).get(name)
    if found is None or self.query.get('generation') not in (None, str(found.generation)):
      raise Gone(404, f'No such object: {bucket}/{name}')
    return found

  def _check(self, found: Object | None) -> None:
    """Raises if the object is not of the generation that the request is for."""
    current = found.generation if found else 0
    if int(self.query.get('ifGenerationMatch', current)) != current:
      raise Gone(412, 'At least one of the pre-conditions you specified did not hold.')
    if int(self.query.get('ifGenerationNotMatch', -1)) == current:
      raise Gone(304 if self.command == 'GET' else 412, 'not modified')

  def _one(self, bucket: str, name: str):
    if self.command == 'DELETE':
      found = self._bucket(bucket).get(name)
      self._check(found)
      self._object(bucket, name)
      del self._bucket(bucket)[name]
      return 204, None, {}
    found = self._object(bucket, name)
    self._check(found)
    if self.command == 'PATCH' or self.query.get('alt') != 'media':
      return 200, self._resource(bucket, name, found), {}
    headers = {
      'Content-Type': found.kind,
      'x-goog-generation': str(found.generation),
      'x-goog-metageneration': '1',
      'x-goog-stored-content-length': str(len(found.data)),
      'x-goog-hash': f'crc32c={crc32c(found.data)},md5={_md5(found.data)}',
      'ETag': f'"{found.generation}"',
    }
    match = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not match:
      return 200, found.data, headers
    size = len(found.data)
    first = int(match[1]) if match[1] else max(0, size - int(match[2]))
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first >= size:
      return 416, b'', {'Content-Range': f'bytes */{size}'}
    return (
      206,
      found.data[first : last + 1],
      headers | {'Content-Range': f'bytes {first}-{last}/{size}'},
    )

  def _list(self, bucket: str) -> dict:
    query, objects = self.query, self._bucket(bucket)
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    most = min(int(query.get('maxResults') or 1000), 1000)
    items, prefixes, token, last = [], [], None, ''
    for name in sorted(objects):
      inside = name.startswith(prefix) and name >= query.get('startOffset', '')
      if (
        not inside
        or name <= query.get('pageToken', '')
        or ('endOffset' in query and name >= query['endOffset'])
      ):
        continue
      folder = None
      if delimiter and delimiter in name[len(prefix) :]:
        folder = prefix + name[len(prefix) :].split(delimiter)[0] + delimiter
        if folder in prefixes or query.get('pageToken', '').startswith(folder):
          continue
      if len(items) + len(prefixes) == most:
        token = last
        break
      if folder:
        prefixes.append(folder)
      else:
        items.append(self._resource(bucket, name, objects[name]))
      last = folder + '\U0010ffff' if folder else name
    found = {'kind': 'storage#objects', 'items': items, 'prefixes': prefixes}
    return found | ({'nextPageToken': token} if token else {})

  def _upload(self, objects: dict, bucket: str, body: bytes):
    query = self.query
    if 'upload_id' in query:
      return self._go_on(query['upload_id'], body)
    kind = query.get('uploadType')
    if kind == 'media':
      name, data = query['name'], body
      return 200, self._resource(bucket, name, self._write(bucket, name, data)), {}
    if kind == 'multipart':
      boundary = re.search(r'boundary="?([^";]+)"?', self.headers['Content-Type'])[1]
      parts = re.split(rb'\r?\n?--' + re.escape(boundary.encode()), body)
      split = lambda part: re.split(rb'\r?\n\r?\n', part.lstrip(b'\r\n'), maxsplit=1)
      told, (_, data) = json.loads(split(parts[1])[1]), split(b'--'.join(parts[2:3]))
      name = told.get('name') or query['name']
      if (
        'md5Hash' in told
        and told['md5Hash'] != _md5(data)
        or 'crc32c' in told
        and told['crc32c'] != crc32c(data)
      ):
        raise Gone(400, 'Provided hash does not match calculated hash')
      return 200, self._resource(bucket, name, self._write(bucket, name, data)), {}
    if kind == 'resumable':
      told = json.loads(body or b'{}')
      name = told.get('name') or query['name']
      self._check(objects.get(name))
      identity = f'upload{len(self.store.uploads)}'
      self.store.uploads[identity] = {
        'bucket': bucket,
        'name': name,
        'data': bytearray(),
        'query': dict(query),
      }
      place = (
        f'{self.store.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={identity}'
      )
      return 200, {}, {'Location': place}
    raise Gone(400, f'uploadType {kind}')

  def _go_on(self, identity: str, body: bytes):
    upload = self.store.uploads.get(identity)
    if upload is None:
      raise Gone(410, 'the upload is gone')
    if self.command == 'DELETE':
      del self.store.uploads[identity]
      return 499, None, {}
    match = re.fullmatch(
      r'bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)', self.headers.get('Content-Range', '')
    )
    if match and match[1] is not None:
      if int(match[1]) != len(upload['data']):
        raise Gone(400, 'a gap')
      upload['data'] += body
    elif not match:
      upload['data'] += body
    if match and (match[3] == '*' or int(match[3]) > len(upload['data'])):
      headers = {'Range': f'bytes=0-{len(upload["data"]) - 1}'} if upload['data'] else {}
      return 308, None, headers
    del self.store.uploads[identity]
    self.query = upload['query']
    made = self._write(upload['bucket'], upload['name'], bytes(upload['data']))
    return 200, self._resource(upload['bucket'], upload['name'], made), {}

  def _write(self, bucket: str, name: str, data: bytes, kind='application/octet-stream') -> Object:
    self._check(self._bucket(bucket).get(name))
    return self.store.put(name, data, bucket, kind)

  def _resource(self, bucket: str, name: str, found: Object) -> dict:
    return {
      'kind': 'storage#object', 'id': f'{bucket}/{name}/{found.generation}', 'name': name,
      'bucket': bucket,
      'generation': str(found.generation), 'metageneration': '1', 'contentType': found.kind,
      'storageClass': 'STANDARD',
      'size': str(len(found.data)), 'md5Hash': _md5(found.data), 'crc32c': crc32c(found.data),
      'etag': str(found.generation),
      'timeCreated': found.updated, 'updated': found.updated,
      'timeStorageClassUpdated': found.updated,
    }  # fmt: skip


def _md5(data: bytes) -> str:
  return base64.b64encode(hashlib.md5(data).digest()).decode()


def put_folder(gcs, folder, prefix):
  """A local folder as objects."""
  for path in sorted(folder.rglob('*')):
    if path.is_file():
      gcs.put(f'{prefix}/{path.relative_to(folder)}', path.read_bytes())
