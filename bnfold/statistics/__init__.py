"""The training mode put to work: do stored statistics fit the data, and if not, which ones would."""
