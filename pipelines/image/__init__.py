"""The one image path: bytes in, uint8 RGB out; shared by ingest, training, evaluation, scoring and the package."""
