"""The registry: versions of packaged networks, which of them is champion, and why."""
