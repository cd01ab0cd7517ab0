"""A SentencePiece model as a tokenizer of the tokenizers library with the same ids.

transformers reads a bare `.model` as Llama's: BPE without normalisation. A `tokenizer.json` says
what the model really is.
"""

from collections.abc import Iterator
import dataclasses
import struct

# ModelProto.SentencePiece.Type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
# TrainerSpec.ModelType
_UNIGRAM, _BPE, _CHAR = 1, 2, 4
_SPACE = '\u2581'
_NEVER = -1e6  # a score


@dataclasses.dataclass(frozen=True)
class _Model:
  """What a model file says, with the defaults of sentencepiece_model.proto."""

  pieces: list[tuple[str, float, int]]  # text, score, type
  kind: int
  normalization: str
  byte_fallback: bool
  space_behind: bool
  charsmap: bytes
  dummy_prefix: bool
  remove_extra_spaces: bool
  escape_spaces: bool


def convert(path: str, bos_id: int | None = None, *, prefix: str = '', legacy: bool = False):
  """Returns a `tokenizers.Tokenizer` for a SentencePiece model.

  Args:
    path: of the model: Unigram, BPE or characters.
    bos_id: put in front of every text; None = nothing.
    prefix: before the text of every control token.
    legacy: also behind a control token a text gets a word border in front.

  Raises:
    ValueError: a kind of model that the library has no counterpart for.
  """
  import tokenizers
  from tokenizers import decoders, pre_tokenizers

  with open(path, 'rb') as f:
    model = _read(f.read(), prefix)
  if model.kind not in (_UNIGRAM, _BPE, _CHAR) or model.space_behind or not model.escape_spaces:
    raise ValueError(
      f'{path} is a word model, or has its word borders elsewhere than in front of words; no '
      'tokenizer.json can say that'
    )
  tokenizer = tokenizers.Tokenizer(_model(model))
  tokenizer.normalizer = _normalizer(model)
  scheme = ('always' if legacy else 'first') if model.dummy_prefix else 'never'
  # SentencePiece writes a word border in front of a text that begins with a space, too, and
  # Metaspace does not: the first one sees no space, because those are replaced already.
  first = _metaspace(_SPACE if legacy else ' ', scheme)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, _metaspace(_SPACE, 'never')])
  strip = [decoders.Strip(' ', 1, 0)] if model.dummy_prefix else []
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  added = lambda kind: [
    tokenizers.AddedToken(piece, special=kind != _USER_DEFINED, normalized=kind == _USER_DEFINED)
    for piece, _, of in model.pieces
    if of == kind
  ]
  tokenizer.add_special_tokens([*added(_UNKNOWN), *added(_CONTROL)])
  tokenizer.add_tokens(added(_USER_DEFINED))
  if bos_id is not None:
    tokenizer.post_processor = starting_with(model.pieces[bos_id][0], bos_id)
  return tokenizer


def as_llama(path: str, legacy: bool = False):
  """The `tokenizers.Tokenizer` that transformers 5 makes of a model as Llama's: no normalisation,
  and no word border in front of a text that begins with a space.

  Args:
    path: of the model.
    legacy: as in `convert`.
  """
  tokenizer = convert(path, legacy=legacy)
  tokenizer.normalizer = None
  tokenizer.pre_tokenizer = _metaspace(_SPACE, 'always' if legacy else 'first')
  return tokenizer


def starting_with(bos: str | None, bos_id: int | None):
  """The post-processor of tokenizers that puts a token in front of every text, or none."""
  from tokenizers import processors

  if bos_id is None:
    return processors.TemplateProcessing(single='$A', pair='$A $B', special_tokens=[])
  return processors.TemplateProcessing(
    single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, bos_id)]
  )


def _metaspace(replacement: str, scheme: str):
  from tokenizers import pre_tokenizers

  return pre_tokenizers.Metaspace(replacement=replacement, prepend_scheme=scheme, split=False)


def _normalizer(model: _Model):
  from tokenizers import Regex, normalizers

  steps = []
  if model.charsmap:
    # The library reads the map by graphemes and drops what follows a mapped character in one. After
    # these steps none of more than one character is left that is mapped.
    if 'nfkc' in model.normalization:
      steps.append(normalizers.NFKC())
    if 'nmt' in model.normalization:
      steps.append(normalizers.Replace('\r\n', '  '))
    steps.append(normalizers.Precompiled(model.charsmap))
  inner = ' '
  if model.remove_extra_spaces:
    steps.append(normalizers.Replace(Regex(r' +\z'), ''))
    steps.append(normalizers.Replace(Regex(' +'), ' '))
    if model.dummy_prefix:
      # A space in front stands for the word border that a text gets there.
      inner = Regex(r'(?<!\A) ')
    else:
      steps.append(normalizers.Replace(Regex(r'\A '), ''))
  steps.append(normalizers.Replace(inner, _SPACE))
  return normalizers.Sequence(steps)


def _model(model: _Model):
  from tokenizers import models

  unknown = next((i for i, (*_, kind) in enumerate(model.pieces) if kind == _UNKNOWN), None)
  if model.kind == _UNIGRAM:
    # The library would find the others in texts too.
    scores = [
      (piece, score if kind in (_NORMAL, _USER_DEFINED) else _NEVER)
      for piece, score, kind in model.pieces
    ]
    return models.Unigram(scores, unknown, model.byte_fallback)
  return models.BPE(
    vocab={piece: i for i, (piece, *_) in enumerate(model.pieces)},
    merges=_merges(model) if model.kind == _BPE else [],
    unk_token=None if unknown is None else model.pieces[unknown][0],
    fuse_unk=True,
    byte_fallback=model.byte_fallback,
  )


def _merges(model: _Model) -> list[tuple[str, str]]:
  """All pairs of pieces that make a piece, the piece with the highest score first."""
  ids = {piece: i for i, (piece, _, kind) in enumerate(model.pieces) if kind == _NORMAL}
  pairs = []
  for piece in ids:
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in ids and right in ids:
        pairs.append((-model.pieces[ids[piece]][1], ids[piece], ids[left], ids[right], left, right))
  return [(left, right) for *_, left, right in sorted(pairs)]


# ---- the file ----


def _read(data: bytes, prefix: str) -> _Model:
  pieces, trainer, normalizer = [], {}, {}
  for number, value in _fields(data):
    if number == 1:
      piece = dict(_fields(value))
      text, kind = piece[1].decode('utf-8'), piece.get(3, _NORMAL)
      text = prefix + text if kind in (_UNKNOWN, _CONTROL) else text
      pieces.append((text, struct.unpack('<f', piece.get(2, bytes(4)))[0], kind))
    elif number == 2:
      trainer |= dict(_fields(value))
    elif number == 3:
      normalizer |= dict(_fields(value))
  return _Model(
    pieces=pieces,
    kind=trainer.get(3, _UNIGRAM),
    normalization=normalizer.get(1, b'').decode('utf-8'),
    byte_fallback=bool(trainer.get(35, 0)),
    space_behind=bool(trainer.get(24, 0)),
    charsmap=normalizer.get(2, b''),
    dummy_prefix=bool(normalizer.get(3, 1)),
    remove_extra_spaces=bool(normalizer.get(4, 1)),
    escape_spaces=bool(normalizer.get(5, 1)),
  )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(number, value) of the fields of a protocol buffer message; fixed-size values as bytes."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = data[at]
      at += 1
      value |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        return value

  while at < len(data):
    tag = varint()
    if tag & 7 == 0:
      yield tag >> 3, varint()
      continue
    size = {1: 8, 5: 4}.get(tag & 7)
    size = varint() if size is None else size
    yield tag >> 3, data[at : at + size]
    at += size
