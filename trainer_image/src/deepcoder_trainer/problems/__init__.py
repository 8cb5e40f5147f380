"""From files to problems: published layouts, choice of tests, prompt encoding, and the order of drawing.

`files` yields rows. `rows` reads our own layout and the published training schema, and `readers` reads every other
layout, as Records (`record`). `dataset` makes the training problems from them. All of it is pure except `files` and
`dataset`, which read local files. Remote data is downloaded first (`checkpoint.sources`).
"""
