"""Bytes in: codec, generator, mutator, guidance, and the targets that atheris runs."""
