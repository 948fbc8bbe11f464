"""Image pipelines: sources, ingest, dataset, train, tune, evaluate, registry and score, one folder a stage."""
