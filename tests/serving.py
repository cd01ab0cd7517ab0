"""A server of `crossin serve` in a thread of the tests, on a free port."""

import argparse
import asyncio
import contextlib
import socket
import threading
import time
import urllib.request

import small_models

from crossin_jax.serve import page, served

CHAT = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
END, IM = '<|endoftext|>', '<|im_end|>'


def write_model(folder, seed=0, length=512, texts=(), **changes):
  """A random model of transformers with a chat template; returns it.

  Args:
    folder: made.
    seed: 0 = the model of `small_models`; others change it.
    length: of its context.
    texts: that the vocabulary knows, beside its own.
    changes: of its configuration.
  """
  import torch

  names = {'bos_token': None, 'eos_token': IM}
  ids = small_models.write_tokenizer(
    str(folder), [END, '<|im_start|>', IM], names, CHAT, texts=texts, size=700 if texts else 380
  )
  size = max(ids.values()) + 1
  model = small_models.write_model(
    str(folder), vocab_size=size, max_position_embeddings=length, eos_token_id=ids[IM], **changes
  )
  if seed:
    torch.manual_seed(seed)
    with torch.no_grad():
      for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p) * p.shape[-1] ** -0.5)
    model.save_pretrained(str(folder))
  return model


class Running:
  """A server in a thread."""

  def __init__(self, paths, names, *, queue=256, max_length=None, key='', rows=16):
    import uvicorn

    from crossin_jax.serve.app import App

    bindings = ['Partitioner.mesh_shape = (-1, 1, 1)', f'Generator.rows = {rows}']
    args = argparse.Namespace(gin_file=[], gin_search_paths='', gin_bindings=bindings)
    limits = served.Limits(queue, max_length)
    self.models = served.load_all(list(map(str, paths)), names, args, limits)
    text = page.render(self.models.values(), ['en', 'ur', 'ta'], bool(key))
    self.app = App(self.models, text, key)
    for model in self.models.values():
      model.engine.start()
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    self.port = listener.getsockname()[1]
    self.url = f'http://127.0.0.1:{self.port}'
    config = uvicorn.Config(self.app, log_level='critical', lifespan='off')
    self._server = uvicorn.Server(config)
    self._server.capture_signals = contextlib.nullcontext
    work = lambda: asyncio.run(self._server.serve(sockets=[listener]))
    self._thread = threading.Thread(target=work, daemon=True)
    self._thread.start()
    self._listener = listener
    while not self._server.started:
      time.sleep(0.01)

  def client(self, **options):
    """The official client, without retries."""
    import openai

    options = {'api_key': 'none', 'max_retries': 0, 'timeout': 120, **options}
    return openai.OpenAI(base_url=f'{self.url}/v1', **options)

  def metrics(self) -> dict[str, float]:
    """'crossin_active_answers' -> the sum over models."""
    found = {}
    with urllib.request.urlopen(f'{self.url}/metrics', timeout=30) as reply:
      for line in reply.read().decode().splitlines():
        if not line.startswith('#'):
          name, value = line.rsplit(' ', 1)
          name = name.partition('{')[0]
          found[name] = found.get(name, 0.0) + float(value)
    return found

  def await_idle(self, seconds=20) -> dict[str, float]:
    """Metrics once nothing is active or waiting."""
    until = time.monotonic() + seconds
    while True:
      found = self.metrics()
      if not found['crossin_active_answers'] and not found['crossin_waiting_answers']:
        return found
      assert time.monotonic() < until, found
      time.sleep(0.02)

  def stop(self):
    self._server.should_exit = True
    self._thread.join(20)
    self._listener.close()
    for model in self.models.values():
      assert model.engine.close(30)
      model.close()


@contextlib.contextmanager
def running(paths, names=(None, None), **settings):
  server = Running(paths, names, **settings)
  try:
    yield server
  finally:
    server.stop()
