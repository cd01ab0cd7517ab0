"""Log-probabilities of the answers of preference pairs, and mean losses of the rows beside them.

Letters: B batch, L length, P places for pairs or segments of a row (L + 1), A answers (see
`data.pair_layout`).
"""

import flax.struct
import jax
import jax.numpy as jnp

from crossin_jax.data.pair_layout import ANSWERS, REFERENCE
from crossin_jax.training.losses import weighted


@flax.struct.dataclass
class Answers:
  """Sums over the tokens of each answer of each pair; place p of a row has the pair of id p.

  Answer 0 is the prompt, all of whose tokens count.

  Attributes:
    logps_BPA: float, log-probability.
    tokens_BPA: float, sum of loss weights.
  """

  logps_BPA: jax.Array
  tokens_BPA: jax.Array

  def logps(self, answer: int, mean: bool = False) -> jax.Array:
    """Log-probability of an answer [B, P], or its mean over the tokens; 0 where there is none."""
    logps_BP, tokens_BP = self.logps_BPA[..., answer], self.tokens_BPA[..., answer]
    return logps_BP / jnp.where(tokens_BP > 0, tokens_BP, 1) if mean else logps_BP

  def exist(self, *answers: int) -> jax.Array:
    """Whether a place has all of these answers, bool [B, P]."""
    return jnp.stack([self.tokens_BPA[..., answer] > 0 for answer in answers]).all(axis=0)


def answers_of(batch: dict[str, jax.Array], loss_BL: jax.Array) -> Answers:
  """The answers of a batch with features of pairs, differentiable towards the token losses."""
  pairs_BL = batch['decoder_pair_ids']
  weight_BL = jnp.where(pairs_BL > 0, batch['decoder_loss_weights'].astype(loss_BL.dtype), 0)
  # The prompt has no loss weights; in the plain layout it stands twice.
  of_prompt = jnp.asarray(1.0 if 'decoder_branches' in batch else 0.5, loss_BL.dtype)
  weight_BL = jnp.where((pairs_BL > 0) & (_numbers(batch) == 0), of_prompt, weight_BL)
  logps_BPA = -_by_answer(batch, weighted(weight_BL, loss_BL))
  return Answers(logps_BPA, _by_answer(batch, weight_BL))


def stored_answers(batch: dict[str, jax.Array], like: Answers) -> Answers:
  """The same answers with the log-probabilities that are stored in the batch."""
  logps_BPA = _by_answer(batch, batch[REFERENCE].astype(like.logps_BPA.dtype))
  return like.replace(logps_BPA=logps_BPA)


def means_of_rows(batch: dict[str, jax.Array], loss_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean token loss of each segment that is no pair [B, P], and whether there is one."""
  segments_BL = batch['decoder_segment_ids']
  weight_BL = batch['decoder_loss_weights'].astype(loss_BL.dtype)
  weight_BL = jnp.where(batch['decoder_pair_ids'] == 0, weight_BL, 0)
  weight_BP = _summed(segments_BL, weight_BL)
  exists_BP = weight_BP > 0
  mean_BP = _summed(segments_BL, weighted(weight_BL, loss_BL)) / jnp.where(exists_BP, weight_BP, 1)
  return mean_BP, exists_BP


def tasks_at(batch: dict[str, jax.Array], name: str) -> jax.Array:
  """The task at each place [B, P], where the places are the ids in feature `name`."""
  index_BL = batch[name]
  zeros_P = jnp.zeros(index_BL.shape[1] + 1, jnp.int32)
  place = lambda index_L, tasks_L: zeros_P.at[index_L].max(tasks_L)
  return jax.vmap(place)(index_BL, batch['decoder_task_ids'])


def _numbers(batch):
  """The answer of each token [B, L], in either layout."""
  return batch['decoder_branches' if 'decoder_branches' in batch else 'decoder_answers']


# vmap, not an index for the rows: so the rows of a mesh stay on their devices.
def _summed(index_BL, values_BL):
  zeros_P = jnp.zeros(index_BL.shape[1] + 1, values_BL.dtype)
  return jax.vmap(lambda index_L, x_L: zeros_P.at[index_L].add(x_L))(index_BL, values_BL)


def _by_answer(batch, values_BL):
  pairs_BL = batch['decoder_pair_ids']
  zeros_PA = jnp.zeros((pairs_BL.shape[1] + 1, ANSWERS), values_BL.dtype)
  place = lambda pairs_L, numbers_L, x_L: zeros_PA.at[pairs_L, numbers_L].add(x_L)
  return jax.vmap(place)(pairs_BL, _numbers(batch), values_BL)
