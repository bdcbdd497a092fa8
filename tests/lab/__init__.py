"""Real parts for tests and the demo, without hardware or root.

poll          wait for a condition, with a deadline
cache         where what was downloaded or generated is kept between runs
llama_server  finds a llama-server, or fetches the one that Debian builds
models        makes tiny GGUF models that say exactly what a test wants
nvml          GPUs that do not exist, as the real NVML binding sees them (nvml_shim.c)
processes     programs started by a test: their output, their end, what they leave behind
notify        plays the service manager's end of $NOTIFY_SOCKET
leftovers     what a test must not leave behind: tasks and processes
"""
