"""Training step in plain torch. Import order: train_state, loop, optimizer_step, optim and ema."""
