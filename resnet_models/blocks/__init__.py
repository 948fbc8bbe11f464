"""Residual blocks: one file per kind, each with its shortcut as its own business."""
