"""The rolemesh-llama program, main process of one llama-server.

In path order:

parameters -> job (gguf, file_access, command) -> runtime_files -> server (log_tail)
-> readiness (load_progress) -> main: the composition root

`gguf`, `parameters` and `runtime_files` are also the agent's.
"""
