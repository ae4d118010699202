"""An edit carried out on a model, and what decides it: activations, what is coupled with what."""
