"""The workshop: what makes and shows the pack, and is in no packed zip."""
