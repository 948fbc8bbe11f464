"""Where images come from: folders and archives, on a disk or in an object store, listed and read without extracting."""
