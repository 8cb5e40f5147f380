"""What the commands do: a function for each command, one module per command or for a few related ones.

Help and options are in `usage`. A module here is loaded when its command runs.
"""
