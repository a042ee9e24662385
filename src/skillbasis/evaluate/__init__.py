"""Evaluation: tasks, generation, grading and the summary with error bars."""
