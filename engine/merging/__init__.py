"""HOW TOGETHER: structure-then-detail token merging (SDTM)."""
