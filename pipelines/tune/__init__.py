"""Sweeps: many trainings over sampled depths, widths and learning rates, weak ones stopped early, the best kept."""
