"""The interface of a task family, under its public name."""

from celo2.tasks.families.base import TaskFamily

__all__ = ["TaskFamily"]
