"""The only code that imports ComfyUI. Nodes call it, it calls the engine, nothing here calls back."""
