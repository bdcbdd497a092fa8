"""What every daemon needs, knowing nothing of roles or GPUs.

daemon     one asyncio main: signals, readiness, reload, exit codes
notify     what a daemon tells its service manager
fd_store   listening sockets that the service manager passes at start
log        log records with fields, and where they go
journal    records in the journal's own protocol
operator_events  rare events with a fixed MESSAGE_ID
request_log  the one record of each request (request_history: the last of them)
exposition  metrics as text (process_numbers: those of this process)
succession  one process of a daemon takes over from another (handover: what is decided)
successor  the side of the old one, predecessor that of the new one
message_channel  what they speak by
listeners  the sockets a daemon accepts on, kept over a restart
tls        the TLS contexts in force
state      state files: atomic, set aside when corrupt
keys       accepted keys and who they belong to
tasks      the only place that starts tasks
tied_process  starts a child that does not outlive this process (tied_exec: before its exec)
child_process  watches over it
"""
