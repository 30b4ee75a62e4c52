"""Studies: what the lessons say about all three models, measured. `python -m utils.studies NAME`; see __main__.py."""
