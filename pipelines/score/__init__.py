"""Scoring: an archive of images and a registered network become one Parquet row per member."""
