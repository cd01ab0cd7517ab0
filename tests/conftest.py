"""What the tests share: four forced CPU devices, a tiny vocabulary, a tiny world and a tiny model."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import sqlite3
import sys

# Test files import the helpers below as `conftest`, in every import mode of pytest.
sys.modules.setdefault('conftest', sys.modules[__name__])

# Before jax is imported, and inherited by subprocesses.
os.environ['JAX_PLATFORMS'] = os.environ.get('CROSSIN_TEST_PLATFORMS', 'cpu')
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ.setdefault('HF_HUB_OFFLINE', '1')
# Small matrices; threads that wait for each other on two cores take longer than one.
for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
  os.environ.setdefault(_name, '1')
# Four devices; and XLA's CPU compiler at its fastest, because tests compile much and compute
# little. Of a program in one piece it compiles the shared parts once.
_FLAGS = [
  '--xla_force_host_platform_device_count=4',
  '--xla_backend_optimization_level=0',
  '--xla_cpu_parallel_codegen_split_count=1',
]
if importlib.metadata.version('jax').startswith('0.10.'):
  # XLA aborts at a flag that it does not know (any more)
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
for _flag in _FLAGS:
  if _flag.split('=')[0] not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_flag}'.strip()

if importlib.util.find_spec('triton'):
  # It comes with torch's CUDA build. Imported after TensorFlow (2.21), Triton (3.7.1) ends the
  # process with a segmentation fault; before it, both work.
  import triton  # noqa: F401

import gin  # noqa: E402
import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from crossin_jax.storage.files import write_json  # noqa: E402

hypothesis.settings.register_profile(
  'tests',
  deadline=None,
  max_examples=int(os.environ.get('CROSSIN_TEST_EXAMPLES', 30)),
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('tests')

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TINY_LANGUAGES = ('en', 'zh', 'vi', 'es')
TINY_MIXTURE = 'world.tested_shared_base_x2x.all.en_zh_vi_es.every'
TINY_SHARES = {'tested': 0.3, 'shared': 0.2, 'base': 0.2, 'x2x': 0.3}


# Tracing makes many objects and few cycles: looking for those often takes a tenth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items):
  """Files with slow tests first: of two workers neither ends with one of them alone."""
  slow = {item.path for item in items if item.get_closest_marker('slow')}
  items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope='module')
def _forget_programs():
  """What a file compiled is of no use to the next one, and takes gigabytes."""
  yield
  if 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()


@pytest.fixture(autouse=True)
def _fresh_gin():
  """No test sees the gin bindings of another."""
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
  """The real data beside the repository, or a skip."""
  path = REPOSITORY.parent / 'shared' / 'data'
  if not path.is_dir():
    pytest.skip(f'{path} is not there: put the real data there')
  return path


@pytest.fixture
def gcs(tmp_path, monkeypatch):
  """A store in place of Google's, empty, and a cache of our own."""
  import fake_gcs

  server = fake_gcs.running()
  server.reset()
  monkeypatch.setenv('CROSSIN_CACHE', str(tmp_path / 'cache'))
  return server


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """An empty cache of huggingface_hub in its offline mode, see `hub_cache.Cache`."""
  constants = pytest.importorskip('huggingface_hub.constants')
  from hub_cache import Cache

  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  cache = Cache(tmp_path / 'hub')
  cache.forget()
  yield cache
  cache.forget()


@pytest.fixture(scope='session')
def tiny_world():
  """18 entities, four languages, ten relations."""
  from crossin_jax.world.world import World

  return World(
    languages=TINY_LANGUAGES, tuning_entities=6, test_entities=12,
    shared_relations=(
      'trade', 'ferry', 'festival', 'radio', 'school', 'museum', 'market', 'council',
    ),
    tested_relations=('harvest', 'reserve'),
  )  # fmt: skip


@pytest.fixture(scope='session')
def tiny_vocabulary(tmp_path_factory, tiny_world):
  """A SentencePiece BPE vocabulary of 1,200 ids, trained on the tiny world."""
  from crossin_jax.data.vocabulary import Vocabulary
  from crossin_jax.world.sources import train_vocabulary

  path = str(tmp_path_factory.mktemp('vocabulary') / 'tiny.model')
  train_vocabulary(tiny_world, 1200, path)
  return Vocabulary(path)


@pytest.fixture
def tiny_settings(tiny_world, tiny_vocabulary):
  """A function (**changes) -> MixtureSettings over the tiny world."""

  def settings(**changes):
    from crossin_jax.world.sources import WorldInstructions, world_texts
    from seqio_tasks.crossin import Preset
    from seqio_tasks.mixtures import MixtureSettings

    return MixtureSettings(**{
        'parallel': WorldInstructions(tiny_world),
        'texts': world_texts(tiny_world),
        'vocabulary': tiny_vocabulary,
        'template': 'plain',
        'presets': (Preset('every', assignment='every'),),
        'validation_rows': 6,
        'max_length': 64,
        'rates': 'shares',
        'shares': TINY_SHARES,
        **changes,
    })  # fmt: skip

  return settings


@pytest.fixture(scope='session')
def tiny_prepared(tmp_path_factory, tiny_world, tiny_vocabulary):
  """(directory, mixture name) of the tiny world, prepared. Read only: copy it before changing
  anything.
  """
  from crossin_jax.world.sources import WorldInstructions, world_texts
  from seqio_tasks.crossin import Preset
  from seqio_tasks.mixtures import MixtureSettings
  from seqio_tasks.prepare import prepare

  directory = str(tmp_path_factory.mktemp('prepared'))
  settings = MixtureSettings(
    parallel=WorldInstructions(tiny_world),
    texts=world_texts(tiny_world),
    vocabulary=tiny_vocabulary,
    template='plain',
    presets=(Preset('every', assignment='every'),),
    validation_rows=6,
    max_length=64,
    rates='shares',
    shares=TINY_SHARES,
  )
  prepare(TINY_MIXTURE, directory, settings, workers=1)
  return directory, TINY_MIXTURE


def replies_in(folder) -> int:
  """How many paid replies a cache directory holds, also while a process writes them."""
  path = pathlib.Path(folder) / 'replies.sqlite'
  if not path.exists():
    return 0
  with contextlib.closing(
    sqlite3.connect(f'file:{path}?mode=ro', uri=True, timeout=30)
  ) as database:
    try:
      return database.execute('SELECT COUNT(*) FROM replies').fetchone()[0]
    except sqlite3.OperationalError:  # the table is being created
      return 0


def write_prepared(
  directory, tasks, *, name='synthetic', max_length=64, parts=2, bos_id=1, vocabulary_size=100_000
) -> str:
  """Writes a prepared mixture by hand and returns its name.

  Args:
    directory: D of `crossin_jax.data.prepared`.
    tasks: name -> (rate, volume or None, list of (tokens, weights) or, for pairs, of (tokens,
      weights, branches)).
    name, max_length, bos_id, vocabulary_size: of the mixture.
    parts: Arrow files per task.
  """
  from crossin_jax.data import prepared

  directory = str(directory)
  entries = []
  for task, (rate, volume, examples) in tasks.items():
    folder = os.path.join(directory, 'tasks', task)
    os.makedirs(folder, exist_ok=True)
    size = -(-len(examples) // parts) if examples else 1
    records = []
    for first in range(0, len(examples), size):
      chunk = examples[first : first + size]
      file = f'train-{first // size:05d}.arrow'
      prepared.write_part(
        os.path.join(folder, file),
        [(f'{task}/{first + i}', first + i, *example) for i, example in enumerate(chunk)],
      )
      records.append({
          'file': file,
          'examples': len(chunk),
          'tokens': int(sum(len(t) for t, *_ in chunk)),
          'loss_tokens': float(sum(np.sum(w) for _, w, *_ in chunk)),
      })  # fmt: skip
    source, _, language = task.partition('.')
    info = {
      'name': task,
      'source': source,
      'component': 'x',
      'mode': 'base',
      'source_language': 'en',
    }
    write_json(
      os.path.join(folder, 'manifest.json'),
      {
        'format': prepared.FORMAT,
        'fingerprint': f'of {task}',
        'fingerprint_parts': {'source': task},
        'task': info | {'target_language': language or 'en'},
        'splits': {'train': {'parts': records, 'dropped': {}, 'shortened': {}}},
        'source_rows_set_aside': {},
      },
    )
    entries.append(
      {'task': task, 'component': 'x', 'rate': rate, 'volume': volume, 'fingerprint': f'of {task}'}
    )
  write_json(
    os.path.join(directory, 'mixtures', f'{name}.json'),
    {
      'format': prepared.FORMAT,
      'name': name,
      'tasks': entries,
      'max_length': max_length,
      'vocabulary': {'bos_id': bos_id, 'size': vocabulary_size, 'eos_id': 2, 'file': 'none'},
    },
  )
  return name


def ragged_batch(rng, rows, length, *, vocabulary=61, tasks=3, uneven=True):
  """A packed batch with ragged segments and padding, and the examples in it.

  Returns:
    (features of `crossin_jax.data.stream`, list of (row, start, tokens, weights, task)).
  """
  from crossin_jax.data.stream import empty_rows, write_segment

  batch, examples = empty_rows(rows, length), []
  for row in range(rows):
    start, segment = 0, 1
    while start < length - 3:
      size = int(rng.integers(2, length // 2))
      if start + size > length or (segment > 1 and rng.random() < 0.2):
        break
      tokens = rng.integers(0, vocabulary, size).astype(np.int32)
      weights = rng.random(size).astype(np.float32) if uneven else np.ones(size, np.float32)
      weights[: int(rng.integers(0, size))] = 0
      task = int(rng.integers(tasks))
      write_segment(batch, row, start, segment, tokens, weights, 1, task)
      examples.append((row, start, tokens, weights, task))
      start, segment = start + size, segment + 1
  return batch, examples


# `tiny_config` with a vocabulary of 1216 ids, as config.gin of a MODEL_DIR.
TINY_GIN = """
import crossin_jax.models.decoder
import crossin_jax.train
MODEL = @Decoder()
Decoder.config = @DecoderConfig()
DecoderConfig.vocab_size = 1216
DecoderConfig.embed_dim = 16
DecoderConfig.num_layers = 2
DecoderConfig.num_heads = 4
DecoderConfig.num_kv_heads = 2
DecoderConfig.mlp_dim = 24
train.model = %MODEL
"""


def tiny_config(**changes):
  """A DecoderConfig of two layers that compiles in a moment."""
  from crossin_jax.models.decoder import DecoderConfig

  sizes = {
    'vocab_size': 61,
    'embed_dim': 16,
    'num_layers': 2,
    'num_heads': 4,
    'num_kv_heads': 2,
    'mlp_dim': 24,
  }
  return DecoderConfig(**{**sizes, **changes})


def init_params(model, seed=0):
  """Parameters of a model in their usual sizes, drawn by NumPy: JAX's own initialiser takes seconds
  to compile.
  """
  import jax
  import jax.numpy as jnp

  tokens = jnp.zeros((1, 4), jnp.int32)
  init = lambda key: model.init(key, tokens, tokens, enable_dropout=False)['params']
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      return jnp.ones(leaf.shape, leaf.dtype)
    fan_in = 1 if name == 'token_embedding' and not model.config.tie_embeddings else leaf.shape[-2]
    fan_in = leaf.shape[-1] if name == 'token_embedding' and model.config.tie_embeddings else fan_in
    return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))
