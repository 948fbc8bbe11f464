"""Trained networks made deeper, wider or shallower, their weights and optimiser state carried along."""
