"""The node agent, in path order.

gpu_watch (nvml: nvml_reading; other_devices; gpu_numbers; gpu_claims) -> inventory -> desired
-> placing -> placement -> instance, transitions -> unit_control
fleet_core, fleet_settings, fleet: the owner of the instances (fleet_memory; upkeep; operator_choices;
adoption: what runs that it has not started)
unit_host: who implements unit_control here:
systemd_units: systemd (systemd_bus: its D-Bus interface; systemd_errors: what its errors mean)
child_supervisor: this process, where systemd is not PID 1 (supervised_unit, child_unit,
child_events: one unit; process_group: what is left of it; notify_socket)
inference: a request to an instance (streaming: which are asked for as streams; batches: which in
parts; request_headers)
node_api: everything else on the port, and on the control socket (loads: a load, told line by line;
model_details)
host_watch -> report -> reporter: what the gateways and people are told
heritage: what one process of the agent leaves to the next
main: the composition root
"""
