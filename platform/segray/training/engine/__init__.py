"""The training step in plain torch. Order of imports: train_state, loop, optimizer_step, optim and ema."""
