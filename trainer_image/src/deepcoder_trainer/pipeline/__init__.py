"""The training loop of one stage: sampling, judging and training overlapped within `maxOffPolicy`.

`controller` is the loop and says who waits for whom; `work` bounds staleness, `groups` fills batches (`refill` draws
anew), `course` decides when a stage is over, `turns` shares devices, `probe` compares samplers with the learner,
`leaving` stores and stops.
"""
