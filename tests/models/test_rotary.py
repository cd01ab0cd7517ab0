"""Rotary positions by a product, as on TPUs, are those of the plain formula to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.models import rotary


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32', 'float64'])
@pytest.mark.parametrize('size, rotated', [(64, 64), (64, 16), (6, 2)])
@pytest.mark.parametrize('interleaved', [False, True])
def test_a_product_rotates_the_same(dtype, size, rotated, interleaved):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    wide = jnp.promote_types(dtype, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, 5, 3, size)), dtype)
    angle = jnp.asarray(rng.standard_normal((2, 5, rotated // 2)), wide)
    tables = jnp.sin(angle), jnp.cos(angle)
    values = []
    for rotate in (rotary.rotate, rotary.rotate_by_product):
      turned, pull = jax.vjp(lambda x, rotate=rotate: rotate(x, *tables, interleaved), x)
      values.append((turned, *pull(x[::-1])))
    for found, wanted in zip(*values, strict=True):
      assert found.dtype == wanted.dtype == x.dtype
      np.testing.assert_array_equal(found, wanted)
  assert rotated == size or (values[1][0][..., rotated:] == x[..., rotated:]).all()
