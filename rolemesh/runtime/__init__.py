"""What every daemon needs, knowing nothing of roles or GPUs.

daemon     one asyncio main: signals, readiness, reload, exit codes
notify     what a daemon tells its service manager
log        log lines with fields
listeners  the sockets a daemon accepts on
state      state files: atomic, set aside when corrupt
keys       accepted keys and who they belong to
tasks      the only place that starts tasks
child_process  a child that does not outlive this process (tied_exec: what runs between fork and exec)
"""
