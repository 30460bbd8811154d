"""Tests of the engine, on the device and in the precision that the environment names."""

import inputs

inputs.move()
