"""The functions that learners write in the notebooks, each with its known mistakes; see utils/lessons/checks.py."""

from utils.lessons.tasks import attention, bert, gpt, one, vit

TASKS = {**attention.TASKS, **gpt.TASKS, **bert.TASKS, **vit.TASKS, **one.TASKS}
