"""What the report reads of a run: a frozen dataclass per record of its artifacts, a file per artifact."""
