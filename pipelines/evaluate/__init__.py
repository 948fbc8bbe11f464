"""What a network is worth on rows it has not seen: figures, pictures, and its worst mistakes."""
