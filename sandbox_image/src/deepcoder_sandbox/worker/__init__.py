"""The program's side of the security boundary: the zygote, and the runners that it forks.

It uses the standard library only. Nothing here ever holds an expected output, a token or another submission's text: a
submission crosses the boundary as file descriptors that the zygote passes on unread.
"""
