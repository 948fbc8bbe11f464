"""The `resnet` command: parse, check, call one function, print; one file a command."""
