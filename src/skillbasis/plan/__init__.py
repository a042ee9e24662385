"""What a run will cost, before it runs."""

from .plan import Plan, Stage, plan_extraction, plan_recipe

__all__ = ["Plan", "Stage", "plan_extraction", "plan_recipe"]
