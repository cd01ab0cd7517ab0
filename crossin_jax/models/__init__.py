"""Flax models: one decoder, one attention front."""
