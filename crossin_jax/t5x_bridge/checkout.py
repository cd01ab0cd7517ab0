"""Finds a T5X checkout and makes it work with current packages without changing it."""

import importlib
import importlib.util
import os
import sys
import types

from crossin_jax.errors import CrossinError

HOME = 'T5X_HOME'
REPOSITORY = 'https://github.com/google-research/t5x'
# Module -> package on PyPI: what T5X imports when it trains, evaluates and infers.
PACKAGES = {
  'cached_property': 'cached_property',
  'chex': 'chex',
  'clu': 'clu',
  'fiddle': 'fiddle',
  'gin': 'gin-config',
  'jaxtyping': 'jaxtyping',
  'jestimator': 'jestimator',
  'seqio': 'seqio',
  'tensorboard': 'tensorboard',
  'tensorflow': 'tensorflow',
}
# T5X asks `isinstance(x, airio.core.<one of these>)`, and airio is on no registry.
AIRIO = ('DatasetProviderBase', 'Task', 'Mixture', 'AirIODatasetIterator')


class BridgeError(CrossinError, RuntimeError):
  """T5X or a package that it needs is missing; the message names the remedy."""


def load() -> None:
  """Makes `import t5x` work in this process.

  Raises:
    BridgeError: no checkout, or packages are missing; all of them are named.
  """
  find()
  missing = [
    package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None
  ]
  if missing:
    raise BridgeError(f"T5X needs {', '.join(missing)}: pip install 'crossin-jax[t5x]'")
  stand_in_for_airio()
  give_back_partition_spec()


def find() -> str:
  """Puts the checkout in T5X_HOME, if there is one, on the module path; returns the folder that
  `t5x` lies in.

  Raises:
    BridgeError: T5X_HOME is no checkout, or it is not set and there is no `t5x` on the module path.
  """
  how = f'git clone {REPOSITORY} and set {HOME} to that folder, or put it on PYTHONPATH'
  home = os.environ.get(HOME)
  if home:
    home = os.path.abspath(home)
    if not os.path.isfile(os.path.join(home, 't5x', 'train.py')):
      raise BridgeError(
        f'{HOME} = {home} has no t5x/train.py. T5X is on no package registry: {how}'
      )
    if home not in sys.path:
      sys.path.insert(0, home)
    importlib.invalidate_caches()
    return home
  found = importlib.util.find_spec('t5x')
  if found is None or not found.origin:
    raise BridgeError(f'no T5X: it is on no package registry. {how[0].upper()}{how[1:]}')
  return os.path.dirname(os.path.dirname(found.origin))


def stand_in_for_airio() -> None:
  """Defines the four classes of airio that T5X needs, unless airio is installed."""
  if 'airio' in sys.modules or importlib.util.find_spec('airio') is not None:
    return
  package, core = types.ModuleType('airio'), types.ModuleType('airio.core')
  package.__path__ = []  # a package, for `import airio.core`
  for name in AIRIO:
    setattr(core, name, type(name, (), {'__module__': 'airio.core'}))
  package.core = core
  sys.modules.update({'airio': package, 'airio.core': core})


def give_back_partition_spec() -> None:
  """Sets `jax.experimental.pjit.PartitionSpec`, which jestimator's release imports and JAX has
  moved.
  """
  import jax
  from jax.experimental import pjit

  if not hasattr(pjit, 'PartitionSpec'):
    pjit.PartitionSpec = jax.sharding.PartitionSpec
