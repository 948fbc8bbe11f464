"""Ray clusters: submit stages as jobs, what code travels with them, and whether a machine is fit."""
