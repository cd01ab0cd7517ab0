"""Sources, Tasks and Mixtures: the only package that uses SeqIO, TFDS and TensorFlow.

Importing the package loads none of them; `register` (which does) is to be called after gin is
parsed:

    import seqio_tasks
    mixture = seqio_tasks.register('alpaca.base_x2x.3000.en_zh_vi_es.default')
    seqio.get_mixture_or_task(mixture)
"""


def register(mixture: str):
  """Registers the Tasks of one Mixture, and the Mixture, with SeqIO; see
  `seqio_tasks.registration.register`.
  """
  from seqio_tasks import registration

  return registration.register(mixture)
