"""Speed and fidelity, measured. Never imported by the nodes."""
