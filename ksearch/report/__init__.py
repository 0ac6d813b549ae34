"""What was found, for people and for programs: rows (JSON), tables, summaries, the line that moves."""
