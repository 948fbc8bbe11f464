"""Residual networks described by a frozen specification and built with plain torch."""
