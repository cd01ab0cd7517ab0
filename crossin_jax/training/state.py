"""The train state, its sharded initialisation, and one training step."""

from collections.abc import Callable
import functools
from typing import Any

from flax import traverse_util
import flax.struct
import jax
import jax.numpy as jnp
import optax

from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.training import losses


@flax.struct.dataclass
class TrainState:
  """Attributes:
  step: int32 [], batches seen, including those whose update was skipped.
  params: the trained parameters: all, or with LoRA the adapters.
  opt_state: the optax state of the trained parameters.
  frozen: the other parameters, not saved with the run; {} if all are trained.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  frozen: Any = flax.struct.field(default_factory=dict)

  @property
  def model_params(self):
    """All parameters of the model."""
    return lora.merge(self.params, self.frozen)


@flax.struct.dataclass
class StepMetrics:
  """Metrics of one step, on the device.

  Attributes:
    sums: loss sums over the batch.
    gradient_norm: float [], before clipping, of the mean loss.
    skipped: bool [], the gradient or the loss was not finite, or the loss above the threshold:
      nothing was changed.
  """

  sums: losses.LossSums
  gradient_norm: jax.Array
  skipped: jax.Array


def state_shardings(model, transform: optax.GradientTransformation, partitioner: Partitioner):
  """Abstract TrainState with the sharding of each leaf; allocates nothing.

  Optimizer leaves are sharded like their parameter; those of another shape (counts, factored
  moments) are replicated.

  Returns:
    A TrainState of jax.ShapeDtypeStruct with shardings.
  """

  split = lambda tree: lora.split(tree, lora.of_model(model))
  trained, frozen = split(_held_shapes(model))
  step = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = TrainState(step, trained, jax.eval_shape(transform.init, trained), frozen)
  params, frozen = split(parameter_shardings(model, partitioner))

  like_params = lambda node: jax.tree.structure(node) == jax.tree.structure(shapes.params)

  def of_optimizer(node):
    if not like_params(node):
      return partitioner.replicated
    return jax.tree.map(
        lambda leaf, param,
        sharding: sharding if leaf.shape == param.shape else partitioner.replicated,
        node, shapes.params, params,
    )  # fmt: skip

  opt_state = jax.tree.map(of_optimizer, shapes.opt_state, is_leaf=like_params)
  shardings = TrainState(partitioner.replicated, params, opt_state, frozen)
  return jax.tree.map(
    lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings
  )


def parameter_shapes(model, partitioner: Partitioner):
  """Shapes, dtypes and shardings of all parameters; allocates nothing."""
  return jax.tree.map(
    lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d),
    _held_shapes(model),
    parameter_shardings(model, partitioner),
  )


def parameter_shardings(model, partitioner: Partitioner):
  """The sharding of every parameter by its logical axes."""
  variables = _abstract_variables(model)
  return partitioner.parameter_shardings(variables['params_axes'], variables['params'])


# Tracing an initialisation takes as long as tracing a step; what is asked for here depends on
# nothing but the model.
@functools.lru_cache(maxsize=64)
def _abstract_variables(model):
  return jax.eval_shape(lambda: _init(model, jax.random.key(0)))


def _held_shapes(model):
  shapes = _abstract_variables(model)['params']
  return jax.eval_shape(functools.partial(_held, model), shapes)


def init_state(model, transform, abstract: TrainState, seed: int, params=None) -> TrainState:
  """A new state, each leaf initialised in its shards: no host ever holds the full model.

  Args:
    model, transform: the model and the optax transformation.
    abstract: of `state_shardings`.
    seed: of the initialisation.
    params: parameters from a checkpoint, a tree with any of the model's
      leaves; they are not drawn.
  """
  known = traverse_util.flatten_dict(params or {})
  flat = traverse_util.flatten_dict(lora.merge(abstract.params, abstract.frozen))
  shardings = {path: leaf.sharding for path, leaf in flat.items() if path not in known}

  def draw(key):
    drawn = traverse_util.flatten_dict(_held(model, _init(model, key)['params']))
    return {path: drawn[path] for path in shardings}

  drawn = jax.jit(draw, out_shardings=shardings)(jax.random.key(seed)) if shardings else {}
  everything = {**known, **drawn}
  trained, frozen = lora.split(traverse_util.unflatten_dict(everything), lora.of_model(model))
  of = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
  opt_state = jax.jit(transform.init, out_shardings=of(abstract.opt_state))(trained)
  step = jax.device_put(jnp.zeros((), jnp.int32), abstract.step.sharding)
  return TrainState(step, trained, opt_state, lora.quantised(frozen, lora.of_model(model)))


def _init(model, key):
  tokens = jnp.zeros((1, 8), jnp.int32)
  return model.init(key, tokens, tokens, enable_dropout=False)


def _held(model, params):
  """Parameters with the frozen ones in the dtype in which they are held."""
  adapters = lora.of_model(model)
  if adapters is None:
    return params
  cast = lambda path, leaf: (
    leaf if lora.is_trained(path, adapters) else leaf.astype(adapters.held_dtype)
  )
  return traverse_util.path_aware_map(cast, params)


def make_train_step(
  model,
  optimizer,
  *,
  tasks: int,
  microbatches: int = 1,
  z_loss: float = 0.0,
  seed: int = 0,
  dropout: bool = False,
  objective: Callable = losses.batch_loss,
) -> Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, StepMetrics]]:
  """One step: gradients of the summed loss over microbatches, divided once by the summed weights.

  Args:
    model: called as `Decoder` is.
    optimizer: `optimizers.Optimizer`.
    tasks: number of tasks of the mixture.
    microbatches: the batch is computed in this many parts; the result is the same.
    z_loss: see `losses.batch_loss`.
    seed: of dropout; the key of a step is folded from (seed, step, microbatch).
    dropout: whether the model has any.
    objective: of `objectives`, called as `losses.batch_loss` is; its sums are divided once.

  Returns:
    A function (state, batch, threshold float []) -> (state, metrics), to be jitted; a mean loss
    above the threshold leaves the step out.
  """

  def step(state: TrainState, batch: dict[str, jax.Array], threshold: jax.Array = jnp.inf):
    base_key = jax.random.fold_in(jax.random.key(seed), state.step)

    def gradients(part, index):
      key = jax.random.fold_in(base_key, index) if dropout else None
      of = lambda params: objective(
        model, lora.merge(params, state.frozen), part, tasks, z_loss, key
      )
      (_, sums), grads = jax.value_and_grad(of, has_aux=True)(state.params)
      return grads, sums

    if microbatches == 1:
      grads, sums = gradients(batch, 0)
    else:
      # Rows i, i + n, i + 2n ... form microbatch i: neighbouring rows are on one device, so every
      # microbatch uses all devices without moving data.
      parts = jax.tree.map(
        lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch
      )
      zeros = jax.tree.map(
        jnp.zeros_like, jax.eval_shape(lambda: gradients(jax.tree.map(lambda x: x[0], parts), 0))
      )

      def accumulate(total, part_and_index):
        return jax.tree.map(jnp.add, total, gradients(*part_and_index)), None

      (grads, sums), _ = jax.lax.scan(accumulate, zeros, (parts, jnp.arange(microbatches)))

    grads = jax.tree.map(lambda g: g / jnp.maximum(sums.weight, 1e-8).astype(g.dtype), grads)
    norm = optax.global_norm(grads)
    finite = (
      jnp.isfinite(norm)
      & jnp.isfinite(sums.loss)
      & (sums.loss <= threshold * jnp.maximum(sums.weight, 1e-8))
    )
    updates, opt_state = optimizer.transform.update(grads, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), opt_state)
    params, opt_state = jax.tree.map(
      lambda n, o: jnp.where(finite, n, o), new, (state.params, state.opt_state)
    )
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), StepMetrics(
      sums, norm, ~finite
    )

  return step


def jit_train_step(model, optimizer, state: TrainState, **options):
  """`make_train_step`, jitted: the state is donated and keeps its sharding.

  Args:
    model, optimizer, options: of `make_train_step`; dropout is what the model has.
    state: arrays, or shapes with shardings.
  """
  adapters = lora.of_model(model)
  dropout = getattr(getattr(model, 'config', None), 'dropout_rate', 0) > 0 or bool(
    adapters and adapters.dropout
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = make_train_step(model, optimizer, dropout=dropout, **options)
  return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
