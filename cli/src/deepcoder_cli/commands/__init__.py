"""One module per command, or for a few related commands; `app` says which command is in which module."""
