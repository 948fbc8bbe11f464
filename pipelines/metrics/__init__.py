"""Figures of merit as pure functions of arrays: accuracy, confusion, calibration, intervals, paired tests."""
