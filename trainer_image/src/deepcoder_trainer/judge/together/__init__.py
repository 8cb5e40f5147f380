"""Judging over Together Code Interpreter, a hosted API that runs Python and knows nothing of judging.

Its protocol, as published (docs.together.ai/reference/tci-execute and tci-sessions; togethercomputer/openapi,
openapi.yaml, `ExecuteRequest` and `ExecuteResponse`; togethercomputer/together-python, types/code_interpreter.py):
`POST /tci/execute` with a bearer key and `{code, language: "python", session_id?, files?}` answers
`{data: {session_id, status, outputs: [{type, data}]}, errors: null}`, or `{data: null, errors: […]}`. `type` is stdout,
stderr, error (the code itself failed), display_data or execute_result. Without a session_id it starts a new session;
each is billed and lives for half an hour or an hour (the pages differ). No limit of time, memory, output or rate is
published, nor a way to end a session.

So the judge is split. `harness` and `runner` are sent there as text: the first runs the program once a test in a
process of its own, under limits, and reports what came of it; the second is that process. `report` reads the report
and compares here. What follows from where the parts are:

- expected outputs never leave the trainer. (rLLM's `codetool_check_correctness` sends them along and takes "the API
  reported no error" for a pass, so that a program which leaves early passes and an API that is down is a wrong answer.)
- every submission has a session of its own: nothing that a program leaves behind reaches another;
- harness and program have the same user there, so a program can forge the report. A forged output is compared all the
  same, so it earns nothing that printing it would not; forged times and limits are worth only what they are beside a
  right answer; a report that does not hold together is the judge's failure, never a pass.
"""
