"""The functions that learners write in the notebooks, by name."""

from utils.lessons.tasks import attention

TASKS = attention.TASKS
