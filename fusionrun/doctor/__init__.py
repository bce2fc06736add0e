"""What a launch needs and how long it will take, before it starts."""
