"""Sources, Tasks and Mixtures: the only package that uses SeqIO, TFDS and TensorFlow.

Importing the package loads none of them. `register` does; call it after gin is parsed:

    import seqio_tasks
    seqio_tasks.register('alpaca.base_x2x.3000.en_zh_vi_es.default')  # then seqio.get_dataset
"""


def register(mixture: str):
  """Registers the Tasks of one Mixture, and the Mixture, with SeqIO; see
  `seqio_tasks.registration.register`.
  """
  from seqio_tasks import registration

  return registration.register(mixture)
