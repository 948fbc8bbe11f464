"""Images become a dataset: units are read, checked, split, written and published as one catalog."""
