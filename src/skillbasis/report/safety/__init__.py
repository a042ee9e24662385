"""What the report shows of a safety study: its words, its plots, and answers only where they are asked for."""
