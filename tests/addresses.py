"""Addresses for runs of several processes on this machine."""

import random
import socket

# Below the ports that Linux gives to outgoing connections, so that no other test's connection takes
# one between this choice and the seconds after which process 0 listens.
_PORTS = range(12_000, 32_000)


def free_address() -> str:
  """'127.0.0.1:PORT': neither that port, JAX's, nor the one above it, the roll call's, is used."""
  draw = random.SystemRandom()
  while True:
    port = draw.choice(_PORTS)
    try:
      with socket.create_server(('', port)), socket.create_server(('', port + 1)):
        return f'127.0.0.1:{port}'
    except OSError:
      continue
