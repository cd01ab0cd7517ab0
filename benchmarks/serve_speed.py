"""`crossin serve` under 64 concurrent clients against the generator of `crossin generate`: the same
checkpoint, prompts, limits and rows.

    python benchmarks/serve_speed.py [--prompts 192] [--rounds 3] [--requests 10000] [--layers 8]

A Llama of 58 million parameters (512 wide, 8 layers, 32,000 ids, f32), random weights, in a
MODEL_DIR. Prompts and answers are as long as Alpaca's (see decode_speed.py), greedy. The server is
a process of its own; 64 threads of this one ask it, each the next prompt when it has its answer.
Rounds alternate, after one that compiles. Prints one JSON object: tokens/s of each, the speed of
the server over the generator (asked: 0.9), in how many answers the texts are equal. Then
`--requests` short requests by 64 clients: the server's memory (VmRSS) after a tenth of them and at
the end, in MB, and whether all rows are free. 0 = leave this part out.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import decode_speed
import jax
import numpy as np

from crossin_jax.checkpoints import parameters
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder, DecoderConfig
from crossin_jax.storage.files import write_json, write_text
from crossin_jax.world.sources import train_vocabulary
from crossin_jax.world.world import World

CLIENTS, IDS = 64, 1200
SIZES = {
  'vocab_size': decode_speed.IDS, 'embed_dim': decode_speed.WIDTH,
  'num_heads': decode_speed.HEADS, 'num_kv_heads': decode_speed.HEADS, 'mlp_dim': decode_speed.MLP,
  'norm_epsilon': 1e-5, 'scan_layers': False, 'dtype': 'float32', 'param_dtype': 'float32',
}  # fmt: skip


def write_model(directory: str, layers: int) -> DecoderConfig:
  """A MODEL_DIR with random weights; returns the configuration."""
  config = DecoderConfig(**SIZES, num_layers=layers)
  decode_speed.LAYERS = layers
  weights = decode_speed.random_weights(np.random.default_rng(0), decode_speed.HEADS)
  parameters.save_params(directory, jax.tree.map(jax.numpy.asarray, weights))
  lines = [f'DecoderConfig.{name} = {value!r}' for name, value in SIZES.items()]
  head = 'import crossin_jax.models.decoder\nimport crossin_jax.train\nMODEL = @Decoder()\n'
  head += 'Decoder.config = @DecoderConfig()\ntrain.model = %MODEL\n'
  text = '\n'.join([head, *lines, f'DecoderConfig.num_layers = {layers}', ''])
  write_text(os.path.join(directory, 'config.gin'), text)
  world = World(languages=('en', 'zh', 'vi', 'es'), tuning_entities=6, test_entities=12)
  train_vocabulary(world, IDS, os.path.join(directory, 'words.model'))
  words = {'file': 'words.model', 'bos_token': None, 'eos_token': None}
  write_json(
    os.path.join(directory, 'prompts.json'),
    {'prompts': {'template': 'plain', 'tags': False}, 'vocabulary': words},
  )
  return config


class Server:
  """`crossin serve` in a process of its own."""

  def __init__(self, directory: str, rows: int):
    self._log = tempfile.NamedTemporaryFile('w+', suffix='.log')
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'crossin_jax.cli', 'serve', directory, '--port', '0', '--name', 'm',
       f'--gin.Generator.rows={rows}'], stderr=self._log,
    )  # fmt: skip
    while True:
      with open(self._log.name, encoding='utf-8') as f:
        text = f.read()
      if found := re.search(r'at http://127\.0\.0\.1:(\d+)/v1', text):
        self.port = int(found[1])
        return
      if self.process.poll() is not None:
        raise RuntimeError(text)
      time.sleep(0.2)

  def ask_all(self, bodies: list[dict]) -> list[dict]:
    """The replies to all bodies by 64 clients with a connection each."""
    local = threading.local()

    def ask(body):
      if not hasattr(local, 'connection'):
        local.connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=600)
      local.connection.request('POST', '/v1/completions', json.dumps(body))
      reply = local.connection.getresponse()
      content = json.loads(reply.read())
      assert reply.status == 200, content
      return content

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
      return list(pool.map(ask, bodies))

  def megabytes(self) -> float:
    """VmRSS."""
    with open(f'/proc/{self.process.pid}/status', encoding='utf-8') as f:
      return int(re.search(r'VmRSS:\s+(\d+) kB', f.read())[1]) / 1024

  def active(self) -> int:
    """Answers that have not ended."""
    connection = http.client.HTTPConnection('127.0.0.1', self.port)
    connection.request('GET', '/metrics')
    text = connection.getresponse().read().decode()
    return sum(map(int, re.findall(r'^crossin_(?:active|waiting)_answers\{.*\} (\d+)', text, re.M)))

  def stop(self) -> int:
    """Ends it; returns its exit status."""
    self.process.terminate()
    return self.process.wait(60)


def drawn(count: int) -> tuple[list[list[int]], list[int]]:
  """Prompts and lengths of answers."""
  rng, prompts, limits = np.random.default_rng(1), [], []
  while len(prompts) < count:
    lengths = decode_speed.lengths_at(decode_speed.PROMPT_LENGTHS, rng)
    prompts += [rng.integers(3, IDS, n).tolist() for n in lengths]
    limits += decode_speed.lengths_at(decode_speed.ANSWER_LENGTHS, rng)
  return prompts[:count], limits[:count]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--prompts', type=int, default=192)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--rows', type=int, default=64)
  parser.add_argument('--layers', type=int, default=8)
  parser.add_argument('--requests', type=int, default=10_000)
  args = parser.parse_args()
  prompts, limits = drawn(args.prompts)
  asked = [Prompt(p, max_new_tokens=n) for p, n in zip(prompts, limits)]
  bodies = [
    {'model': 'm', 'prompt': p, 'max_tokens': n, 'temperature': 0} for p, n in zip(prompts, limits)
  ]
  partition = Partitioner()
  seconds: dict[str, list[float]] = {'generate': [], 'serve': []}
  with tempfile.TemporaryDirectory() as directory, partition.activate():
    model = Decoder(write_model(directory, args.layers))
    source = SavedModel.open(directory)
    generator = Generator(
      model, source.params(model, partition), partition, bos_id=None, stop_ids=source.stop_ids,
      sampling=Sampling(), decode=source.prompts.vocabulary.decode, rows=args.rows,
    )  # fmt: skip
    server = Server(directory, args.rows)
    for round_ in range(args.rounds + 1):
      started = time.perf_counter()
      own = generator(asked)
      middle = time.perf_counter()
      replies = server.ask_all(bodies)
      times = {'generate': middle - started, 'serve': time.perf_counter() - middle}
      print(f'round {round_}: {times}', file=sys.stderr)
      for name, value in times.items():
        seconds[name] += [value] if round_ else []  # the first one compiles
    tokens = sum(len(answer.tokens) for answer in own)
    ratios = [a / b for a, b in zip(seconds['generate'], seconds['serve'])]
    equal = sum(a.text == b['choices'][0]['text'] for a, b in zip(own, replies))
    result = {
      'answers': len(own),
      'tokens': tokens,
      'tokens_per_second': {k: round(tokens / statistics.median(v), 1) for k, v in seconds.items()},
      'speed_of_serve_over_generate': round(statistics.median(ratios), 3),
      'equal_texts': equal,
    }
    if args.requests:
      short = {'model': 'm', 'prompt': [5, 6, 7], 'max_tokens': 2, 'temperature': 1}
      memory, started = [], time.perf_counter()
      for part in (args.requests // 10, args.requests - args.requests // 10):
        server.ask_all([short] * part)
        memory.append(round(server.megabytes(), 1))
      result['short_requests'] = {
        'requests': args.requests,
        'per_second': round(args.requests / (time.perf_counter() - started), 1),
        'megabytes_after_a_tenth_and_all': memory,
        'answers_left': server.active(),
      }
    result['exit_status'] = server.stop()
  print(json.dumps({**result, 'rows': args.rows, 'load': os.getloadavg()}))
  return 0


if __name__ == '__main__':
  sys.exit(main())
