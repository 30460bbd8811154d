"""WHERE: what the prompt looks at, as a heatmap, a highlight, and the boxes around it."""
