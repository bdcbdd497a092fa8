"""Whole meshes of real parts: gateways, agents, llama-servers, and their users' own clients."""
