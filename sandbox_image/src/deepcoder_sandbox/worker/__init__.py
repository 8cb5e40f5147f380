"""What runs on the program's side of the wall: the zygote, and the runners that it forks.

Standard library only. Nothing here ever holds an expected output, a token or another submission's text: a submission
crosses as file descriptors that the zygote hands on unread.
"""
