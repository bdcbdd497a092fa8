"""Programs that use a gateway by the clients of others, run by test_clients.py.

Each runs in an environment of its own, does what agents do, and prints what came out of it.
"""
