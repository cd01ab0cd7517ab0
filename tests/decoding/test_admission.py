"""Prompts that come and go while others are decoded, each with settings of its own."""

import dataclasses

import numpy as np
import pytest
from test_generation import BOS, devices, generate, letters, plainly, random_prompts, tiny

from crossin_jax.decoding.admission import CALM, OpenSchedule
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.nonfinite import NonFiniteLogits
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt

GREEDY = Sampling(max_new_tokens=30)
SETTINGS = [
  GREEDY,
  Sampling(max_new_tokens=30, temperature=1.0, seed=3),
  Sampling(max_new_tokens=30, temperature=0.7, top_p=0.8, seed=4),
  Sampling(max_new_tokens=30, temperature=1.5, min_p=0.1, seed=5),
  Sampling(max_new_tokens=30, temperature=1.1, top_p=0.0, seed=6),
  Sampling(max_new_tokens=30, temperature=1.0, seed=7, stop=('K',)),
]


def opened(rows=16, stop=-1, model=None, shrink=None, sampling=None):
  """(generator with settings by row, its open schedule); the mesh must be in force."""
  partition, (model, params) = devices(1), model or tiny()
  generator = Generator(
    model, params, partition, bos_id=BOS, stop_ids=(stop,), sampling=sampling or GREEDY, rows=rows,
    decode=letters, by_row=True, shrink=shrink,
  )  # fmt: skip
  return generator, generator.schedule([], kind=OpenSchedule)


def decoded(generator, schedule, arrive=lambda step: ()) -> dict:
  """(index, sample) -> outcome, until nothing is left; `arrive` is called before each chunk."""
  found, slots, step = {}, None, 0
  more = arrive(step)
  while schedule.unfinished() or more:
    slots, chunk = generator.advance(schedule, slots)
    for outcome in schedule.collect(chunk):
      found[outcome.index, outcome.sample] = outcome
    step += 1
    more = arrive(step)
  return found


def test_rows_with_their_own_settings_have_the_answers_of_those_settings():
  prompts = random_prompts(6, seed=9)
  with devices(1).activate():
    generator, schedule = opened()
    for prompt, sampling in zip(prompts, SETTINGS):
      schedule.add(Prompt(prompt, samples=range(2), sampling=sampling))
    found = decoded(generator, schedule)
  for i, (prompt, sampling) in enumerate(zip(prompts, SETTINGS)):
    samples = 1 if sampling.greedy else 2
    sampling = dataclasses.replace(sampling, samples=samples)
    alone, _ = generate([Prompt(prompt)], sampling, stop=-1, decode=letters)
    for j in range(2):
      own, wanted = found[i, j], alone[j % samples]
      assert (own.tokens, own.text, own.finish_reason) == (
        wanted.tokens, wanted.text, wanted.finish_reason,
      ), (i, j)  # fmt: skip


@pytest.mark.parametrize('shrink', [True, False])
def test_arrivals_while_others_are_decoded(shrink):
  """A crowd that comes in parts, of whom some leave; the rest are answered as alone."""
  prompts = random_prompts(60, seed=10)
  limits = [1 + 11 * i % 50 for i in range(60)]
  draw = np.random.default_rng(0)
  left = list(range(60))
  with devices(1).activate():
    generator, schedule = opened(rows=32, shrink=shrink)
    gone, sizes = set(), set()

    def arrive(step):
      for _ in range(int(draw.integers(0, 12)) if step else 1):
        if left:
          index = schedule.add(Prompt(prompts[left[0]], max_new_tokens=limits[left.pop(0)]))
          if index % 9 == 4:
            schedule.cancel(index)  # before it has a row
            gone.add(index)
      for row in schedule.active_rows():
        if row.prompt % 9 == 7:
          schedule.cancel(row.prompt)  # in its row
          gone.add(row.prompt)
      sizes.add(len(schedule.rows))
      return left

    found = decoded(generator, schedule, arrive)
    assert {8, 32} <= sizes if shrink else sizes == {32}
  assert len(gone) > 8 and {i for i, _ in found} >= set(range(60)) - gone
  for i in range(60):
    if i not in gone:
      assert found[i, 0].tokens == plainly(prompts[i], limits[i], stop=-1)[0], i
  assert not schedule._prompts and not schedule._lengths and not schedule._left
  assert schedule.active_rows() == [] and not schedule.unfinished()


def test_the_batch_shrinks_after_a_calm_time():
  with devices(1).activate():
    generator, schedule = opened(rows=32, shrink=True)
    for prompt in random_prompts(12, seed=11):
      schedule.add(Prompt(prompt, max_new_tokens=3))
    long = schedule.add(Prompt([5], max_new_tokens=64 + 8 * (CALM + 4)))
    sizes = []
    found = decoded(generator, schedule, lambda step: sizes.append(len(schedule.rows)))
  assert sizes[1] == 16 and sizes[-1] == 8
  assert found[long, 0].tokens == plainly([5], 64 + 8 * (CALM + 4), stop=-1)[0]


def test_a_row_without_a_token_fails_alone():
  from test_generation import unreadable

  with devices(1).activate():
    generator, schedule = opened(model=unreadable(2))
    schedule.add(Prompt([8, 9], max_new_tokens=3))
    schedule.add(Prompt([8, 2, 9], samples=range(3), max_new_tokens=3))
    schedule.add(Prompt([7], max_new_tokens=3))
    found = decoded(generator, schedule)
  assert {key: type(one) is NonFiniteLogits for key, one in found.items()} == {
    (0, 0): False, (1, 0): True, (2, 0): False,
  }  # fmt: skip
  assert not schedule._prompts


def test_logprobs_are_of_the_model_and_change_no_token():
  from test_generation import _forward

  prompts = random_prompts(3, seed=12)
  sampling = dataclasses.replace(SETTINGS[2], max_new_tokens=10)
  with devices(1).activate():
    answers = []
    for logprobs in (False, True):
      generator, schedule = opened()
      for prompt in prompts:
        schedule.add(Prompt(prompt, sampling=sampling, logprobs=logprobs))
      answers.append(decoded(generator, schedule))
    model, params = tiny()
    for i, prompt in enumerate(prompts):
      one = answers[1][i, 0]
      assert one.tokens == answers[0][i, 0].tokens and answers[0][i, 0].logprobs is None
      tokens = np.zeros((1, 192), np.int32)
      whole = [BOS, *prompt, *one.tokens]
      tokens[0, : len(whole)] = whole
      logits = np.asarray(_forward(model)(params, tokens), np.float64)
      rows = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
      assert [scored.token for scored in one.logprobs] == one.tokens
      for j, scored in enumerate(one.logprobs):
        row = rows[len(prompt) + j]
        np.testing.assert_allclose(scored.logprob, row[scored.token], atol=1e-5)
        assert [token for token, _ in scored.top] == list(np.argsort(-row)[: len(scored.top)])


def test_later_samples_of_short_prompts_beside_a_long_one():
  """The last samples take rows when the longest prompt of their prefill has ended."""
  prompts = [Prompt([4] * 100, samples=range(8)), Prompt([5] * 5, samples=range(90))]
  sampling = Sampling(temperature=1.0, max_new_tokens=4, samples=90)
  found, _ = generate(prompts, sampling, rows=16, stop=-1)
  assert len(found) == 98
