"""The derivatives that a fit uses, against differences."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from crossin_jax.mixing_laws.flags import FORMS
from crossin_jax.mixing_laws.forms import forms_of

numbers = st.floats(-1, 1, allow_subnormal=False)


def test_names():
  assert FORMS == tuple(forms_of('fraction'))


@pytest.mark.parametrize('name', FORMS)
@hypothesis.given(data=st.data(), directions=st.integers(1, 3), chance=st.sampled_from([0.0, 0.25]))
def test_slopes_are_those_of_the_values(name, data, directions, chance):
  form = forms_of('fraction', chance)[name]
  draw = lambda size: np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)))
  x, theta = draw(4 * directions).reshape(4, directions), draw(form.size(directions))
  step = 1e-6 * np.eye(theta.size)
  up, down = (form.value(theta + sign * step, x) for sign in (1, -1))
  np.testing.assert_allclose(form.slope(theta, x).T, (up - down) / 2e-6, atol=1e-7)
