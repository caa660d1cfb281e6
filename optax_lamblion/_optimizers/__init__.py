"""What a user builds: factories, and the Optax transformation behind them."""
