"""rolemeshctl: what people ask RoleMesh and tell it.

main -> verbs (which module is which verb) -> one module per verb:
  status, nodes, aliases, explain, ps, cancel, drain, undrain, reload   ask or tell the gateway
  status --versions (status_versions, versions)                what runs and what is installed
  models, load, switch (loading), unload, pin, unpin, node (node_plan, node_gpus)
                                                               ask or tell a node's agent
  config (config_cat, config_delta, config_show)               read this host's configuration files
  key (key_files)                                              client and node keys as drop-ins
  gateway (gateway_invite)                                     a node's key, and the line to type
  node join (join_plan, join_file, join_gateway)               this host becomes a gateway's node
  model (model_add, model_list, model_remove, model_files)     this host's models as drop-ins
  trace (trace_records, host_journal)                          one request, over all hosts
  complete                                                     words for the shell's completion
changes judges (staging), writes (own_files) and takes back what is changed in configuration files.
gateway_address says where the gateway is, gateway_api speaks to it, agents finds the agent that is
meant, agent_place where an agent of this host has its files, output writes for people and for
programs, outcomes has the exit codes. A verb's module is imported only when it is used: the program
has to be quick.
"""
