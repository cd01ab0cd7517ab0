"""What `crossin xinstruction quickstart` does."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a quickstart.

  Attributes:
    languages: output languages, of the world's twelve beside English.
    entities: territories that the world tells of.
    reading_steps: of the base model.
    generator_epochs, response_epochs, rater_epochs: of each kind of model, over its rows; the
      rater's in each round; set_epochs: of the models on a set alone.
    keep_fraction, rounds: see `XInstruction`.
    world_seed: another seed is another world.
  """

  languages: tuple[str, ...] = ('sw', 'ta', 'fi')
  entities: int = 60
  reading_steps: int = 1500
  generator_epochs: float = 4.0
  response_epochs: float = 2.0
  rater_epochs: float = 1.5
  set_epochs: float = 12.0
  keep_fraction: float = 0.25
  rounds: int = 2
  world_seed: int = 0
