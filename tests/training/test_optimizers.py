"""Schedules against closed forms, AdamW against arithmetic, decay where it belongs."""

import json

from conftest import init_params, tiny_config
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crossin_jax.models.decoder import Decoder
from crossin_jax.training import optimizers


def rates(total, **settings):
  schedule = optimizers.schedule(total, **settings)
  return lambda step: float(schedule(jnp.asarray(step)))


@pytest.mark.parametrize('decay', optimizers.DECAYS)
@pytest.mark.parametrize('warmup', [1, 2, 10])
def test_warmup_moves_from_step_0_and_ends_at_the_peak(decay, warmup):
  rate = rates(100, peak=0.5, decay=decay, warmup_steps=warmup)
  for step in range(warmup):
    np.testing.assert_allclose(rate(step), 0.5 * (step + 1) / warmup, rtol=1e-6)
  np.testing.assert_allclose(rate(warmup), 0.5, rtol=1e-6)


def test_decays_in_closed_form():
  total, warmup, peak, final = 110, 10, 2.0, 0.1
  for step in (10, 11, 35, 60, 109, 110, 500):
    part = min(1.0, (step - warmup) / (total - warmup))
    expected = {
      'cosine': peak * ((1 - final) * 0.5 * (1 + np.cos(np.pi * part)) + final),
      'linear': peak * (1 - (1 - final) * part),
      'rsqrt': peak * np.sqrt(warmup / step),
      'constant': peak,
    }
    for decay, value in expected.items():
      rate = rates(total, peak=peak, decay=decay, warmup_steps=warmup, final_ratio=final)
      np.testing.assert_allclose(rate(step), value, rtol=1e-5, err_msg=f'{decay} {step}')


def test_cosine_equals_optax():
  rate = rates(1000, peak=1e-3, warmup_steps=0)
  theirs = optax.cosine_decay_schedule(1e-3, 1000)
  for step in (0, 1, 499, 500, 999, 1000):
    np.testing.assert_allclose(rate(step), float(theirs(step)), rtol=1e-6, atol=1e-12)


def test_warmup_ratio_and_its_limits():
  assert rates(100, peak=1.0)(2) == pytest.approx(1.0) and rates(100, peak=1.0)(1) == pytest.approx(
    2 / 3
  )
  for settings in ({'warmup_steps': 101}, {'warmup_steps': -1}, {'decay': 'exponential'}):
    with pytest.raises(ValueError, match='schedule'):
      optimizers.schedule(100, **settings)


def numpy_adamw(params, gradients, rate, b1, b2, epsilon, decay, clip, decayed):
  """AdamW of Loshchilov and Hutter, algorithm 2, after clipping by the global norm, in float64."""
  params = {k: v.astype(np.float64) for k, v in params.items()}
  m = {k: np.zeros_like(v) for k, v in params.items()}
  v = {k: np.zeros_like(x) for k, x in params.items()}
  for t, gradient in enumerate(gradients, start=1):
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
    for k, g in gradient.items():
      g = g.astype(np.float64) * (min(1.0, clip / norm) if clip else 1.0)
      m[k] = b1 * m[k] + (1 - b1) * g
      v[k] = b2 * v[k] + (1 - b2) * g**2
      step = (m[k] / (1 - b1**t)) / (np.sqrt(v[k] / (1 - b2**t)) + epsilon)
      params[k] = params[k] - rate(t - 1) * (step + (decay * params[k] if k in decayed else 0))
  return params


def two_leaves(steps=5, scale=3.0):
  rng = np.random.default_rng(0)
  params = {
    'kernel': rng.standard_normal((3, 4)).astype(np.float32),
    'scale': np.ones(4, np.float32),
  }
  return params, [{k: (scale * rng.standard_normal(p.shape)).astype(np.float32) for k, p in params.items()}
                  for _ in range(steps)]  # fmt: skip


def run(optimizer, params, gradients):
  @jax.jit
  def step(gradient, state, params):
    updates, state = optimizer.transform.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = jax.jit(optimizer.transform.init)(params)
  for gradient in gradients:
    params, state = step(gradient, state, params)
  return params


@pytest.mark.parametrize('clip', [1.0, None])
def test_adamw_equals_arithmetic(clip):
  gin.parse_config('schedule.peak = 0.1\nschedule.warmup_steps = 2')
  optimizer = optimizers.adamw(20, weight_decay=0.3, b2=0.95, clip_norm=clip)
  params, gradients = two_leaves()
  expected = numpy_adamw(
    params,
    gradients,
    lambda i: float(optimizer.schedule(i)),
    0.9,
    0.95,
    1e-8,
    0.3,
    clip,
    {'kernel'},
  )
  found = run(optimizer, params, gradients)
  for name in params:
    np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_adamw_equals_torch():
  torch = pytest.importorskip(
    'torch', reason='the comparison with torch.optim.AdamW needs the extra `test`'
  )
  gin.parse_config("schedule.peak = 0.1\nschedule.warmup_steps = 0\nschedule.decay = 'constant'")
  optimizer = optimizers.adamw(20, weight_decay=0.3)
  params, gradients = two_leaves()
  theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
  groups = [
    {'params': [theirs['kernel']], 'weight_decay': 0.3},
    {'params': [theirs['scale']], 'weight_decay': 0.0},
  ]
  adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.999), eps=1e-8)
  for gradient in gradients:
    for name, value in gradient.items():
      theirs[name].grad = torch.tensor(value)
    torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
    adamw.step()
  found = run(optimizer, params, gradients)
  for name in params:
    np.testing.assert_allclose(
      found[name], theirs[name].detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=name
    )


@pytest.mark.parametrize('scan', [True, False])
def test_no_weight_decay_on_norm_scales(scan):
  """With gradients of zero only decay acts: scales stay, everything else shrinks; also when layers
  are stacked.
  """
  gin.parse_config("schedule.peak = 0.1\nschedule.warmup_steps = 0\nschedule.decay = 'constant'")
  params = init_params(Decoder(tiny_config(scan_layers=scan)))
  zeros = jax.tree.map(jnp.zeros_like, params)
  found = run(optimizers.adamw(10, weight_decay=0.5), params, [zeros])
  seen = {True: 0, False: 0}
  for (path, before), after in zip(
    jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(found)
  ):
    scale = path[-1].key == 'scale'
    seen[scale] += 1
    np.testing.assert_allclose(after, before * (1 if scale else 0.95), rtol=1e-6, err_msg=str(path))
  assert seen == ({True: 3, False: 9} if scan else {True: 5, False: 16})


def test_matrices_decay_and_biases_and_sinks_do_not():
  config = tiny_config(
    num_experts=4, mlp_bias=True, router_bias=True, attention_bias='all', attention_sinks=True
  )
  mask = optimizers.decay_mask(init_params(Decoder(config)))
  decayed = {True: set(), False: set()}
  for path, decays in jax.tree_util.tree_leaves_with_path(mask):
    decayed[decays].add(path[-1].key)
  assert decayed[True] - {'lm_head'} == {'kernel', 'router', 'token_embedding'}
  assert decayed[False] == {'scale', 'bias', 'router_bias', 'sinks'}


def test_adafactor_trains():
  gin.parse_config("schedule.peak = 0.05\nschedule.warmup_steps = 0\nschedule.decay = 'constant'")
  optimizer = optimizers.adafactor(100)
  rng = np.random.default_rng(0)
  target = rng.standard_normal((130, 140)).astype(np.float32)
  loss = lambda p: ((p['kernel'] - target) ** 2).mean()
  params = {'kernel': jnp.asarray(rng.standard_normal(target.shape), jnp.float32)}
  state = optimizer.transform.init(params)
  # Second moments are factored: nothing of the parameter's own size is stored twice.
  sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
  assert sum(sizes) < 1000, sizes

  @jax.jit
  def step(params, state):
    updates, state = optimizer.transform.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  first = float(loss(params))
  for _ in range(60):
    params, state = step(params, state)
  assert float(loss(params)) < 0.3 * first


def test_settings_name_every_argument_of_optimizer_and_schedule():
  gin.bind_parameter('schedule.decay', 'linear')
  settings = optimizers.adamw(40, b2=0.95, clip_norm=None).settings
  assert settings['optimizer'] == 'adamw' and settings['adamw.b2'] == 0.95
  assert settings['adamw.clip_norm'] is None and settings['schedule.decay'] == 'linear'
  assert settings['train.total_steps'] == 40
  assert json.loads(json.dumps(settings)) == settings, 'as a checkpoint stores them'
  named = {name.split('.')[-1] for name in optimizers.adafactor(40).settings}
  assert named == {
    'optimizer', 'decay_rate', 'clipping_threshold', 'multiply_by_parameter_scale', 'weight_decay',
    'clip_norm', 'total_steps', 'peak', 'decay', 'warmup_steps', 'warmup_ratio', 'final_ratio',
  }  # fmt: skip


def test_changes_name_settings_that_both_have():
  saved = optimizers.adamw(40, weight_decay=0.1).settings
  assert optimizers.changes(saved, saved) == optimizers.changes(None, saved) == []
  assert optimizers.changes(saved, optimizers.adamw(50, weight_decay=0.0).settings) == [
    'adamw.weight_decay was 0.1, now 0.0',
    'train.total_steps was 40, now 50',
  ]
  assert optimizers.changes(saved, optimizers.adafactor(40).settings) == [
    "optimizer was 'adamw', now 'adafactor'"
  ]


def test_an_optimizer_without_settings_has_its_name():
  def lion(total_steps):
    return optimizers.Optimizer(optax.lion(1e-4), lambda step: 1e-4)

  assert optimizers.build(lion, 7).settings == {'optimizer': 'lion', 'train.total_steps': 7}
  built = optimizers.build(optimizers.adamw, 7)
  assert built.settings['train.total_steps'] == 7 and built.settings['adamw.b1'] == 0.9
