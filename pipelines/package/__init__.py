"""The package: weights, description, preprocessing and one self-contained Python file."""
