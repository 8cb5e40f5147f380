"""The training loop of one stage: sampling, judging and training overlapped within `maxOffPolicy`.

`controller` is the loop and describes what waits for what; `work` bounds staleness, `groups` fills batches (`refill`
redraws groups), `course` decides when a stage is over, `turns` shares devices, `probe` compares samplers with the
learner, `leaving` saves and stops.
"""
