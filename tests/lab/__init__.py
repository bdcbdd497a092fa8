"""Real parts for tests and the demo, without hardware.

poll          wait for a condition, with a deadline
cache         where what was downloaded or generated is kept between runs
llama_server  finds a llama-server, or fetches the one that Debian builds
models        makes tiny GGUF models that say exactly what a test wants
shapes        makes GGUF models of any size without weights, which take no space on disk
nvml          GPUs that do not exist, as the real NVML binding sees them (nvml_shim.c)
gpu_memory    lets their memory follow the llama-servers that run, on hosts too
rpc_devices   devices that a llama-server has without a GPU
processes     programs started by a test: their output, their end, what they leave behind
notify        plays the service manager's end of $NOTIFY_SOCKET
leftovers     what a test must not leave behind: tasks and processes

Hosts with a real systemd, which need root:

hosts            some hosts on a network of their own, and whether this machine permits that
host             one of them: boot it, run commands there, cut its power (boot_host.sh)
host_root        the Debian that they are started from
private_network  their network, and the place in it where the tests' clients stand
control_group    finds and ends what runs in a host
"""
