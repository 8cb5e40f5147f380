"""One module a command, or a few that belong together; `app` says which is where."""
