"""Where a network looks: functions (model, images) -> heat maps (N, H, W); one file per method."""
