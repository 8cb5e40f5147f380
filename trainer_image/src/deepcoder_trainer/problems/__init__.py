"""From files to problems: published layouts, choosing tests, encoding prompts, and the order of drawing.

`files` yields rows, `rows` reads our own layout and the published training schema, `readers` every other one, as
Records (`record`); `dataset` makes of them what is trained on. All of it is pure but `files` and `dataset`, which read
local files. What is remote is brought here first (`sources`).
"""
