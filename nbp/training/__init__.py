"""Training: the Lightning modules, data, optimizers, strategies and callbacks that `nbp.train` composes."""
