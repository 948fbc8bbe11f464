"""Training: a plain torch loop, the same for one process and for many Ray Train workers."""
