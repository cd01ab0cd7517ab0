"""What T5X needs to run this project's models and mixtures; T5X itself is a checkout of its user,
and is loaded only when used.
"""
