"""What a launch needs, a file a subject; preflight.py has the list."""
