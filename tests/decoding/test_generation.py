"""Continuous batching: the tokens of one row at a time, whatever stands beside it, and one program
a bucket.
"""

import collections
import functools

from conftest import init_params, tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.decoding import sampling as sampling_lib
from crossin_jax.decoding.cache import bucket
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.nonfinite import NonFiniteLogits
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder

BOS, EOS = 1, 2


@functools.lru_cache
def tiny(**changes):
  """A model whose greedy tokens vary, and its parameters."""
  model = Decoder(tiny_config(**changes))
  rng = np.random.default_rng(3)
  params = jax.tree.map(
    lambda p: jnp.asarray(np.asarray(p) + 0.3 * rng.standard_normal(p.shape).astype(p.dtype)),
    init_params(model, 3),
  )
  return model, params


def devices(n):
  return Partitioner(mesh_shape=(1, -1, 1), devices=jax.devices()[:n])


def generate(prompts, sampling=None, *, partition=None, rows=4, stop=EOS, model=None, decode=None):
  """All answers to token lists (or Prompts), and the generator."""
  partition, (model, params) = partition or devices(1), model or tiny()
  with partition.activate():
    generator = Generator(
      model,
      params,
      partition,
      bos_id=BOS,
      stop_ids=(stop,),
      sampling=sampling or Sampling(),
      rows=rows,
      decode=decode,
    )
    prompts = [p if isinstance(p, Prompt) else Prompt(p, id=i) for i, p in enumerate(prompts)]
    return generator(prompts), generator


@functools.lru_cache
def _forward(model):
  return jax.jit(
    lambda params, tokens: model.apply({'params': params}, tokens, tokens, enable_dropout=False)[0]
  )


def plainly(prompt, steps, sampling=None, stop=EOS, model=None):
  """Greedy without a cache, one row, the whole text again for each token."""
  sampling, (model, params) = sampling or Sampling(), model or tiny()
  tokens, new = [BOS, *prompt], []
  for _ in range(steps):
    padded = np.zeros((1, 192), np.int32)
    padded[0, : len(tokens)] = tokens
    scores = _forward(model)(params, padded)[len(tokens) - 1][None]
    scores = sampling_lib.penalised(
      scores, jnp.asarray(padded), jnp.asarray([len(tokens)]), sampling
    )
    token = int(jnp.argmax(scores[0]))
    if token == stop:
      return new, 'stop'
    new.append(token)
    tokens.append(token)
  return new, 'length'


def random_prompts(n, longest=40, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(3, 61, rng.integers(0, longest)).tolist() for _ in range(n)]


@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
@pytest.mark.parametrize('rows', [2, 16])
def test_greedy_equals_the_full_forward_pass_through_refills(count, rows):
  """19 ragged prompts, an empty one among them, through fewer rows, with lengths of their own."""
  prompts = [*random_prompts(18), []]
  limits = [1 + 7 * i % 40 for i in range(19)]
  asked = [Prompt(p, max_new_tokens=n) for p, n in zip(prompts, limits)]
  found, generator = generate(asked, partition=devices(count), rows=rows)
  assert [answer.index for answer in found] == list(range(19))
  reasons = collections.Counter()
  for prompt, limit, answer in zip(prompts, limits, found):
    assert (answer.tokens, answer.finish_reason) == plainly(prompt, limit), answer.index
    reasons[answer.finish_reason] += 1
  assert reasons['stop'] > 2 and reasons['length'] > 2, 'both ends occur'
  capacities = {shape[2] for shape in generator.programs.compiled if shape[0] == 'advance'}
  assert len(capacities) > 1, 'the cache grew'


@pytest.mark.parametrize('scan', [True, False])
def test_windows_shorter_than_the_prompts(scan):
  model = tiny(layer_pattern=('local', 'global'), window=9, num_layers=3, scan_layers=scan)
  prompts = random_prompts(7)
  found, _ = generate(prompts, Sampling(max_new_tokens=60), model=model, rows=4, stop=-1)
  for prompt, answer in zip(prompts, found):
    assert answer.tokens == plainly(prompt, 60, stop=-1, model=model)[0], answer.index


def test_penalties_see_prompt_and_answer():
  sampling = Sampling(repetition_penalty=1.5, no_repeat_ngram_size=2, max_new_tokens=50)
  prompts = random_prompts(6, seed=1)
  found, _ = generate(prompts, sampling, stop=-1)
  for prompt, answer in zip(prompts, found):
    assert answer.tokens == plainly(prompt, 50, sampling, stop=-1)[0], answer.index
    pairs = list(zip([BOS, *prompt, *answer.tokens], [*prompt, *answer.tokens]))
    new = pairs[len(prompt) :]
    assert len(set(new)) == len(new) and not set(new) & set(pairs[: len(prompt)])


SAMPLED = Sampling(temperature=1.0, top_k=30, top_p=0.95, max_new_tokens=12, seed=7)


def test_a_sample_depends_on_its_id_alone():
  """Not on its neighbours, on how many rows there are, on the order, on devices."""
  prompts = random_prompts(13, seed=2)
  reference = {a.index: a.tokens for a in generate(prompts, SAMPLED, rows=16)[0]}
  fewer_rows = {a.index: a.tokens for a in generate(prompts, SAMPLED, rows=2)[0]}
  other_mesh = {
    a.index: a.tokens for a in generate(prompts, SAMPLED, rows=8, partition=devices(4))[0]
  }
  assert reference == fewer_rows == other_mesh
  some = [11, 3, 5]
  alone = generate([Prompt(prompts[i], id=i) for i in some], SAMPLED)[0]
  assert [a.tokens for a in alone] == [reference[i] for i in some]
  others = generate([Prompt(prompts[i], id=i + 1) for i in some], SAMPLED)[0]
  assert [a.tokens for a in others] != [reference[i] for i in some], 'another id, another draw'
  import dataclasses

  reseeded = {
    a.index: a.tokens for a in generate(prompts, dataclasses.replace(SAMPLED, seed=8), rows=16)[0]
  }
  assert sum(reseeded[i] != reference[i] for i in reference) > 9


@pytest.mark.parametrize(
  'settings', [{'temperature': 1.0}, {'temperature': 1.4, 'top_k': 9, 'top_p': 0.8, 'min_p': 0.02}]
)
def test_frequencies_of_samples_equal_the_filtered_distribution(settings):
  """The first two tokens of 3,000 samples of one prompt; chi-square."""
  from test_sampling import chi_square_passes, our_probabilities

  sampling = Sampling(max_new_tokens=2, samples=3000, seed=1, **settings)
  prompt = [5, 17, 30]
  found, generator = generate([prompt], sampling, rows=64, stop=-1)
  assert sum(shape[0] == 'prefill' for shape in generator.programs.compiled) <= 1, (
    'the prompt is read once'
  )
  assert [a.sample for a in found] == list(range(3000))
  model, params = tiny()

  def expected(tokens):
    padded = np.zeros((1, 192), np.int32)
    padded[0, : len(tokens)] = tokens
    return our_probabilities(
      np.asarray(_forward(model)(params, padded))[len(tokens) - 1][None], settings
    )[0]

  first = np.bincount([a.tokens[0] for a in found], minlength=61)
  assert chi_square_passes(first, 3000 * expected([BOS, *prompt]))
  common = int(first.argmax())
  second = np.bincount([a.tokens[1] for a in found if a.tokens[0] == common], minlength=61)
  assert chi_square_passes(second, first[common] * expected([BOS, *prompt, common]))


def test_samples_of_a_prompt_can_be_asked_for_one_by_one():
  prompts = random_prompts(5, seed=4)
  import dataclasses

  sampling = dataclasses.replace(SAMPLED, samples=3)
  every = {(a.index, a.sample): a.tokens for a in generate(prompts, sampling)[0]}
  assert every.keys() == {(i, s) for i in range(5) for s in range(3)}
  assert len({tuple(tokens) for tokens in every.values()}) > 10
  some = generate(
    [Prompt(prompts[2], id=2, samples=[2]), Prompt(prompts[4], id=4, samples=[0, 1])], sampling
  )[0]
  assert [a.tokens for a in some] == [every[2, 2], every[4, 0], every[4, 1]]


def letters(tokens, shown=()):
  return ''.join(chr(ord('A') + t) for t in tokens)


def test_stop_texts_end_a_row_and_are_cut_off():
  prompts = random_prompts(9, seed=5)
  free = [a.tokens for a in generate(prompts, Sampling(max_new_tokens=40), stop=-1)[0]]
  stop = (letters(free[0][10:12]), letters(free[1][20:23]))
  sampling = Sampling(max_new_tokens=40, stop=stop)
  found, _ = generate(prompts, sampling, stop=-1, decode=letters)
  reasons = collections.Counter()
  for tokens, answer in zip(free, found):
    text = letters(tokens)
    at = min((text.find(s) for s in stop if s in text), default=None)
    reasons[answer.finish_reason] += 1
    if at is None:
      assert (answer.text, answer.tokens, answer.finish_reason) == (text, tokens, 'length')
      continue
    assert (answer.text, answer.finish_reason) == (text[:at], 'stop_string')
    length = min(i for i in range(len(tokens) + 1) if any(s in letters(tokens[:i]) for s in stop))
    assert answer.tokens == tokens[:length], 'up to the token that completes it'
  assert reasons['stop_string'] >= 2


def test_stop_texts_need_a_decoder():
  with pytest.raises(ValueError, match='Sampling.stop needs a decode function'):
    generate([[4]], Sampling(stop=('x',)))


def test_one_program_a_bucket():
  """A second call with other prompts of the same buckets compiles nothing at all; no program is
  compiled twice.
  """
  sampling = Sampling(max_new_tokens=30)
  _, generator = generate(random_prompts(20, seed=6), sampling, stop=-1)
  compiled = list(generator.programs.compiled)
  assert len(set(compiled)) == len(compiled)
  assert {shape[0] for shape in compiled} >= {'prefill', 'insert', 'advance'}
  buckets = {bucket(n) for n in range(1, 41)}
  assert {shape[2] for shape in compiled if shape[0] == 'prefill'} <= buckets
  assert sum(shape[0] == 'prefill' for shape in compiled) <= len(buckets)

  heard = []
  listen = lambda name, seconds, **_: (
    heard.append(name) if name.endswith('backend_compile_duration') else None
  )
  # whatever JAX compiles beside the programs
  generate(random_prompts(20, seed=6), sampling, stop=-1)
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    permuted = [row[::-1] for row in random_prompts(20, seed=6)]
    _, again = generate(permuted, sampling, stop=-1)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert again.programs is generator.programs and again.programs.compiled == compiled
  # `unrolled` jits a function of its own at each call; the programs are none of it.
  assert len(heard) <= 1, heard


def test_the_last_rows_go_on_in_a_smaller_batch():
  prompts = [Prompt([4 + i], max_new_tokens=150 if i in (3, 9) else 2) for i in range(32)]
  found, generator = generate(prompts, rows=32, stop=-1)
  assert {shape[1] for shape in generator.programs.compiled if shape[0] == 'advance'} >= {32, 8}
  for i in (3, 9, 20):
    assert found[i].tokens == plainly([4 + i], prompts[i].max_new_tokens, stop=-1)[0]


def test_answers_come_before_all_are_done():
  partition, (model, params) = devices(1), tiny()
  with partition.activate():
    generator = Generator(
      model,
      params,
      partition,
      bos_id=BOS,
      stop_ids=(-1,),
      sampling=Sampling(max_new_tokens=120),
      rows=2,
    )
    stream = generator.stream(
      [Prompt([5], max_new_tokens=3), Prompt([6]), Prompt([7], max_new_tokens=3)]
    )
    assert [next(stream).index for _ in range(3)][-1] == 1


def test_no_prompts_no_answers():
  assert generate([])[0] == []


def test_buckets():
  assert [bucket(n) for n in (0, 1, 16, 17, 24, 25, 33, 48, 49, 100, 129, 192, 193)] == [
      16, 16, 16, 24, 24, 32, 48, 48, 64, 128, 192, 192, 256,
  ]  # fmt: skip


def unreadable(token):
  """The tiny model with an output head of its own, and NaN in the embedding of a token."""
  model, params = tiny(tie_embeddings=False)
  table = params['decoder']['token_embedding']
  table = table if token is None else table.at[token].set(jnp.nan)
  damaged = {**params['decoder'], 'token_embedding': table}
  return model, {**params, 'decoder': damaged}


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'temperature': 1.0},
    {'temperature': 0.8, 'top_p': 0.9},
    {'temperature': 1.0, 'top_p': 0.0},
  ],
  ids=str,
)
@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
def test_logits_that_are_not_finite_name_prompt_and_step(settings, count):
  prompts = [*random_prompts(6, seed=5), [8, 2, 9], *random_prompts(3, seed=6)]
  sampling = Sampling(max_new_tokens=1, **settings)
  with pytest.raises(NonFiniteLogits, match='prompt 7 of 10: .* not finite at step 1') as error:
    generate(prompts, sampling, model=unreadable(2), stop=-1, partition=devices(count))
  assert error.value.exit_status == 1
  assert (error.value.index, error.value.sample, error.value.step) == (6, 0, 1)


def test_the_step_is_the_one_behind_the_token_that_breaks_it():
  """The last new token of each of six answers, the longest of which take two chunks of 32."""
  sampling, steps = Sampling(max_new_tokens=60), []
  for prompt in random_prompts(6, seed=8):
    tokens = generate([prompt], sampling, model=unreadable(None), stop=-1)[0][0].tokens[:-1]
    new = [i for i, t in enumerate(tokens) if t not in (0, *prompt, *tokens[:i])]
    with pytest.raises(NonFiniteLogits, match=f'at step {new[-1] + 2} of the answer'):
      generate([prompt], sampling, model=unreadable(tokens[new[-1]]), stop=-1)
    steps.append(new[-1] + 2)
  assert len(set(steps)) > 2 and max(steps) > 32


def test_answers_that_ended_are_yielded_before_the_error():
  prompts = [Prompt([8, 9], max_new_tokens=3), Prompt([8, 2], max_new_tokens=9), Prompt([7, 7])]
  model, params = unreadable(2)
  partition = devices(1)
  found = []
  with partition.activate(), pytest.raises(NonFiniteLogits, match='prompt 2 of 3'):
    generator = Generator(
      model, params, partition, bos_id=BOS, stop_ids=(-1,), rows=4,
      sampling=Sampling(max_new_tokens=5),
    )  # fmt: skip
    for answer in generator.stream(prompts):
      found.append(answer)
  assert {answer.index for answer in found} == {0, 2}


def test_the_sample_without_a_token_is_named():
  sampling = Sampling(temperature=1.0, top_p=0.9, samples=3, max_new_tokens=4)
  with pytest.raises(NonFiniteLogits, match='prompt 1 of 1, sample 0: '):
    generate([[2]], sampling, model=unreadable(2), stop=-1)


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_vocabulary_that_no_repeat_ngram_size_exhausts_is_named(temperature):
  sampling = Sampling(temperature=temperature, no_repeat_ngram_size=1, max_new_tokens=70)
  with pytest.raises(
    NonFiniteLogits, match='no_repeat_ngram_size = 1 forbids every token'
  ) as error:
    generate([[5, 6, 7]], sampling, stop=-1)
  assert error.value.step == 61 - 4 + 1, 'BOS and the prompt are forbidden from the start'


def test_a_stop_text_before_the_damage_ends_the_answer():
  whole, limit = unreadable(None), Sampling(max_new_tokens=12)
  tokens = generate([[8, 9]], limit, model=whole, stop=-1)[0][0].tokens
  bad = next(t for t in tokens[2:] if t not in (8, 9, *tokens[:2]))
  stopped = Sampling(max_new_tokens=12, stop=(letters(tokens[:2]),))
  found = generate([[8, 9]], stopped, model=unreadable(bad), stop=-1, decode=letters)[0][0]
  assert found.finish_reason == 'stop_string' and found.text == ''
