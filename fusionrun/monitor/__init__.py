"""What every rank is doing: records, heartbeats, their gather, and the live table."""
