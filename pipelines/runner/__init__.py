"""The runner: all stages of a pipeline in one command, each skipped when its output stands."""
