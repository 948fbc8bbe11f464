"""Datasets: plain Parquet shards, catalogs that say which of them live, patches, and the order rows are read in."""
