"""The tests mirror rolemesh/: rolemesh/x/y.py is tested by tests/x/test_y.py."""
