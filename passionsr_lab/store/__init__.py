"""One store: calibrated models and their scores, under a key made of everything that decides them."""
