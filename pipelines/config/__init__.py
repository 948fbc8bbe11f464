"""Typed configuration: the strict base model, loading with overrides, reference texts, presets."""
