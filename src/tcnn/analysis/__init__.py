"""Looking into a hybrid: capture its attention, measure it, draw it."""
