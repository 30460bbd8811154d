"""The bundled demo model: generated scenes, a tiny text-to-image model trained on them, and its exact detector."""
