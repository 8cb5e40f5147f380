"""What a user reads of each command in help and completion: names, texts and options, and nothing that needs a cluster.

A command's work is the function of the same name in `commands`.
"""
